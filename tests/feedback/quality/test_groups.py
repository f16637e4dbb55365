"""Groups of people by profile: shown from five on, and never so that a subtraction tells of fewer."""

from pathlib import Path

import numpy as np
import pytest

from bridle.core.records import Completion, Judgement, LabelerKind, Prompt
from bridle.feedback.people.accounts import change_account, create_account
from bridle.feedback.quality.groups import group_quality, publishable
from tests.feedback.conftest import new_store

EVERYBODY = {f"p{number:02}" for number in range(20)}


def people(*numbers: int) -> set[str]:
    return {f"p{number:02}" for number in numbers}


@pytest.mark.parametrize(
    ("groups", "shown"),
    [
        ({"five": people(*range(5))}, {"five"}),
        ({"four": people(*range(4))}, set()),
        ({"all": EVERYBODY}, set()),  # it would say of each what they chose
        ({"all but four": people(*range(16))}, set()),
        ({"all but five": people(*range(15))}, {"all but five"}),
        ({"ten": people(*range(10)), "six of them": people(*range(6))}, {"ten"}),  # ten less six is four
        ({"ten": people(*range(10)), "five of them": people(*range(5))}, {"ten", "five of them"}),
        ({"ten": people(*range(10)), "seven": people(*range(10, 17))}, {"ten"}),  # three are in neither
        ({"ten": people(*range(10)), "the others": people(*range(10, 20))}, {"ten", "the others"}),
        ({"eight": people(*range(8)), "eight others": people(*range(1, 9))}, {"eight"}),  # each has one that the other lacks
    ],
)  # fmt: skip
def test_no_group_tells_of_fewer_than_five(groups: dict[str, set[str]], shown: set[str]) -> None:
    found = publishable({("region", name): group for name, group in groups.items()}, EVERYBODY)
    assert {value for _, value in found} == shown


def test_groups_of_other_traits_are_subtracted_too() -> None:
    groups = {("region", "africa"): people(*range(10)), ("age", "18-24"): people(*range(9))}
    assert publishable(groups, EVERYBODY) == {("region", "africa"): people(*range(10))}


def test_a_group_is_measured(tmp_path: Path) -> None:
    """Six people agree with one another and always choose the left; six others say the opposite, and where a coin puts it."""
    rng = np.random.default_rng(0)
    with new_store(tmp_path / "store.sqlite") as store:
        prompts = [Prompt.from_text(f"Question {n}?") for n in range(30)]
        pairs = [[Completion(prompt.id, text) for text in ("yes", "no")] for prompt in prompts]
        store.add_prompts(prompts, split="train", source="test")
        store.add_completions([answer for pair in pairs for answer in pair], source="test")
        items = store.add_items(pairs, study="first")
        for number, name in enumerate(sorted(people(*range(12)))):
            best = 0 if number < 6 else 1
            create_account(store, name, "annotator")
            change_account(store, name, by=name, profile={"region": ["europe" if best == 0 else "africa"], "age": []})
            order = [(0, 1) if best == 0 else ((0, 1), (1, 0))[rng.integers(2)] for _ in items]
            store.add_judgements(
                Judgement(item, name, LabelerKind.PERSON, ((best,), (1 - best,)), shown, seconds=4.0)
                for item, shown in zip(items, order, strict=True)
            )
        africa, europe = group_quality(store, "first")
        assert (africa.value, africa.people, europe.value, europe.people) == ("africa", 5, "europe", 5)
        assert europe.measures["raw"].value == 1 and europe.measures["others"].value == 0
        assert europe.measures["left"].value == 1 and 0.4 < (africa.measures["left"].value or 0) < 0.6
        assert europe.measures["seconds"].value == 4.0
        change_account(store, "p00", by="p00", profile={})
        change_account(store, "p01", by="p01", profile={})
        assert [one.value for one in group_quality(store, "first")] == ["africa"]
