"""Rows by columns: TRL's forms of datasets beside tuples, what reaches a trainer of them, and what is refused with its number."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridle
import bridle.api.rows as rows_module
from bridle.api.inputs import as_prompts, demonstrations_of, judged_of, preferences_of, prompts_of
from bridle.core.errors import BridleError, DataError, NoUsableRows, UsageError
from bridle.core.records import Message, Pair, Prompt
from bridle.models.encoding import encode_documents
from tests.api.dataset import Dataset
from tests.models.tiny import one_sentence, template
from tests.models.tiny import policy as tiny_policy
from tests.training.runs import DEVICE, same, weights


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture
def model() -> bridle.Model:
    return bridle.Model(tiny_policy(), DEVICE)


SKY = Prompt.from_text("The sky is")
ASKED = Prompt.from_text("What color is the sky?")
TURNS = [user("Hello."), assistant("Hello!"), user("What color is the sky?")]
LONG = Prompt(tuple(Message(turn["role"], turn["content"]) for turn in TURNS))  # type: ignore[arg-type]
ASKS = [user("What color is the sky?")]
SHARE = {"source": "UltraChat", "num_turns": 1}

FORMS: dict[str, tuple[Callable[[Any], Any], Any, Any]] = {
    "language modelling": (demonstrations_of, {"text": "The sky is blue."}, "The sky is blue."),
    "dialogue": (demonstrations_of, {"messages": [*TURNS, assistant("It is blue.")]}, (LONG, "It is blue.")),
    "dialogue with more columns": (
        demonstrations_of, {"messages": [*ASKS, assistant("It is blue.")], **SHARE}, (ASKED, "It is blue."),
    ),
    "a conversation": (demonstrations_of, [*ASKS, assistant("It is blue.")], (ASKED, "It is blue.")),
    "prompt-completion": (demonstrations_of, {"prompt": "The sky is", "completion": " blue."}, (SKY, "blue.")),
    "prompt-completion, conversational": (
        demonstrations_of, {"prompt": ASKS, "completion": [assistant("It is blue.")]}, (ASKED, "It is blue."),
    ),
    "preference": (
        preferences_of, {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, (SKY, "blue.", "green."),
    ),
    "preference, implicit prompt": (
        preferences_of, {"chosen": "The sky is blue.", "rejected": "The sky is green."}, (SKY, "blue.", "green."),
    ),
    "preference, conversational": (
        preferences_of, {"prompt": ASKS, "chosen": [assistant("Blue.")], "rejected": [assistant("Green.")]}, (ASKED, "Blue.", "Green."),
    ),
    "preference, conversational, implicit prompt": (
        preferences_of,
        {"chosen": [*TURNS, assistant("Blue.")], "rejected": [*TURNS, assistant("Green.")], "score_chosen": 9.0, "score_rejected": 2.0},
        (LONG, "Blue.", "Green."),
    ),
    "prompt-only": (prompts_of, {"prompt": "The sky is"}, SKY),
    "prompt-only, conversational": (prompts_of, {"prompt": TURNS}, LONG),
    "a question by another name": (prompts_of, {"question": "What color is the sky?", "answer": "#### 3"}, ASKED),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_each_form_says_what_a_tuple_says(name: str) -> None:
    """From a dataset, a list, or what can be gone through once."""
    read, row, expected = FORMS[name]
    for data in ([row], iter([row]), *([Dataset([row])] if isinstance(row, dict) else [])):
        [found] = read(data)
        plain = (found.prompt, found.chosen.text, found.rejected.text) if isinstance(found, Pair) else found
        assert plain == expected


def test_what_a_comparison_weighs_and_by_how_much_it_is_won() -> None:
    """The pairs of one verdict share its weight, the verdicts on one prompt that of the prompt."""
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2.5, "weight": 3},
        {"prompt": "d", "chosen": "b", "rejected": "c"},
        {"prompt": "d", "completions": ["x", "y", "z"], "ranks": [2, 1, 3]},
    ]
    found = [(pair.chosen.text, pair.rejected.text, pair.weight, pair.strength) for pair in preferences_of(rows)]
    assert found == [
        ("b", "c", 3.0, 2.5), ("b", "c", 0.5, None), ("y", "x", 1 / 6, None), ("y", "z", 1 / 6, None), ("x", "z", 1 / 6, None),
    ]  # fmt: skip


def test_arrays_and_numbers_of_numpy_are_read_as_what_they_hold() -> None:
    """As a table's rows, and a dataset in NumPy's format, have them."""
    row = {
        "prompt": np.array(TURNS),
        "chosen": np.array([assistant("Blue.")]),
        "rejected": np.array([assistant("Red.")]),
    }
    [pair] = preferences_of([{**row, "margin": np.int64(2)}])
    assert (pair.prompt, pair.chosen.text, pair.strength) == (LONG, "Blue.", 2.0)
    [prompt] = prompts_of([{"prompt": row["prompt"], "solution": np.array(["1", "2"])}])
    assert prompt.meta == {"given": TURNS, "columns": {"solution": ["1", "2"]}}


def test_a_call_learns_the_same_from_rows_and_from_tuples(model: bridle.Model) -> None:
    examples = [(f"What is {i}?", f"It is {i}.") for i in range(8)]
    pairs = [(prompt, "A cat.", "No no.") for prompt, _ in examples]
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3}
    for train, tuples, names in (
        (bridle.sft, examples, ("prompt", "completion")),
        (bridle.dpo, pairs, ("prompt", "chosen", "rejected")),
    ):
        rows = Dataset([dict(zip(names, row, strict=True)) for row in tuples])
        by_rows, by_tuples = (bridle.Model(tiny_policy(), DEVICE) for _ in range(2))
        train(by_rows, rows, **settings)  # type: ignore[operator]
        train(by_tuples, tuples, **settings)  # type: ignore[operator]
        assert same(weights(by_tuples.policy.module), by_rows.policy.module)
        assert not same(weights(model.policy.module), by_rows.policy.module)


def test_a_column_of_margins_counts_unless_another_was_chosen(
    model: bridle.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = Dataset([{"prompt": f"{i}?", "chosen": "A cat.", "rejected": "No.", "margin": 20.0} for i in range(4)])
    losses, log = list[float](), list[Any]()
    for given in ({}, {"margin": 0.0}):
        bridle.reward_model(model, rows, max_new_tokens=2, on_log=lambda *line: log.append(line), **given)
        losses.append(log[-1][2]["loss"])
    assert losses[0] - losses[1] > 15
    assert capsys.readouterr().err.count("the rows' column counts as it is (margin = 1)") == 1


def test_texts_are_learnt_whole(model: bridle.Model) -> None:
    bos, eos = template().bos_ids[0], template().eos_id
    [ids] = template().document_ids(["The sky is blue."])
    assert encode_documents(template(), ["The sky is blue."], 96)[0] == [([bos], ids[1:])] and ids[-1] == eos
    pieces, report = encode_documents(template(), ["The sky is blue.", " "], 5)
    assert all(len(prompt) == 1 and len(answer) <= 4 for prompt, answer in pieces)
    assert [bos, *(token for _, answer in pieces for token in answer)] == ids, "each token is learnt once"
    assert report.kept == 1 and report.noted.total() == 1
    rows = [{"text": "The sky is blue."}] * 4 + [{"messages": [*ASKS, assistant("Blue.")]}]
    assert bridle.sft(model, rows, epochs=1)["answer_tokens"] > 4 * (len(ids) - 1)


# ------------------------------------------------------------------------------------------------ what is refused


WRONG: list[tuple[Callable[[Any], Any], Any, str]] = [
    (
        demonstrations_of,
        [{"prompt": "a", "completion": "b", "label": True}],
        r"row 0 with the columns prompt, completion, label is not a demonstration \(it is a vote\)",
    ),
    (
        preferences_of,
        [{"prompt": "a", "good_answer": "b", "bad_answer": "c"}],
        r"columns prompt, good_answer, bad_answer .*nearest form is {prompt, chosen, rejected}: .*chosen and rejected$",
    ),
    (preferences_of, [{"prompt": "a", "chosen": "b"}], "only one of chosen and rejected.* rename or add rejected"),
    (
        demonstrations_of,
        [{"instruct": "a", "outputs": "b"}],
        "nearest form is {instruction, output}: rename or add instruction and output",
    ),
    (demonstrations_of, [{"prompt": "a"}] * 300, "row 0 .*it is a prompt.* rename or add completion"),
    (prompts_of, [{"foo": "a"}], "row 0 with the columns foo is not a prompt.* rename or add prompt"),
    (demonstrations_of, [[user("Hi.")]], "row 0 is not a demonstration .*nearest form is {messages}: look at what"),
    (
        preferences_of,
        [{"prompt": "a", "chosen": "b", "rejected": text} for text in ("c", "b", " ", "b ")],
        r"3 of 4 rows cannot be used.*2: identical answers \(rows 1, 3\); 1: empty answer \(row 2\)",
    ),
    (demonstrations_of, [{"prompt": "a", "completion": "b"}, ("a", "b")], r"row 1 is tuple .*as the first row is"),
    (demonstrations_of, {"train": Dataset([]), "test": Dataset([])}, r"a dict of train, test .*data\['train'\]"),
    (demonstrations_of, {"prompt": ["a"]}, "a dict of prompt was given; give a list with a dict for each row"),
    (prompts_of, [user("Hi.")], "a single conversation was given; put it into a list"),
    (preferences_of, "a", "a single text was given; put it into a list"),
    (preferences_of, 3, "comparisons are a list, got int '3'"),
    (as_prompts, [{"prompt": "a"}, {"prompt": " "}], "1 of 2 rows hold no prompt"),
]


@pytest.mark.parametrize(("read", "data", "words"), WRONG, ids=[words[:40] for _, _, words in WRONG])
def test_what_fits_no_form_is_refused_in_a_sentence(read: Callable[[Any], Any], data: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read(data)
    assert one_sentence(str(caught.value))


def test_a_table_is_told_its_way() -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(DataError, match=r"a table was given; give its rows, data.to_dict\('records'\)"):
        demonstrations_of(pandas.DataFrame({"prompt": ["a"], "completion": ["b"]}))


def test_few_rows_that_cannot_be_used_are_left_out_by_number(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": str(i), "completion": "" if i in (3, 5, 7, 8) else "Yes."} for i in range(20)]
    rows[11] = {"prompt": "a", "completion": None}
    assert len(demonstrations_of(Dataset(rows))) == 15
    told = capsys.readouterr().err
    assert "rows: 5 of 20 left out, 4: empty answer (rows 3, 5, 7, …); 1: it is a prompt (row 11)" in told


def test_a_call_refuses_before_anything_is_trained(model: bridle.Model, tmp_path: Path) -> None:
    before = weights(model.policy.module)
    for train in (bridle.sft, bridle.dpo, bridle.reward_model):
        with pytest.raises(BridleError, match="row 0 with the columns foo"):
            train(model, Dataset([{"foo": "a"}]), folder=tmp_path / "run")  # type: ignore[operator]
    with pytest.raises(NoUsableRows, match="row 0 with the columns foo"):
        bridle.grpo(model, Dataset([{"foo": "a"}]), lambda prompts, answers: [0.0] * len(answers))
    assert same(before, model.policy.module) and not (tmp_path / "run").exists()


def test_answers_that_are_good_or_bad_by_themselves_stand_beside_comparisons() -> None:
    rows = [
        {"prompt": "The sky is", "completion": " blue.", "label": True},
        {"prompt": ASKS, "completion": [assistant("Green.")], "label": False},
        {"prompt": "The sky is", "chosen": "blue.", "rejected": "green."},
    ]
    pairs, votes = judged_of(Dataset(rows))
    assert [(pair.prompt, pair.chosen.text, pair.rejected.text) for pair in pairs] == [(SKY, "blue.", "green.")]
    assert [(prompt, vote.completion.text, vote.value) for prompt, vote in votes] == [
        (SKY, "blue.", 1.0),
        (ASKED, "Green.", 0.0),
    ]
    with pytest.raises(
        DataError, match="row 0 with the columns prompt, completion is not an answer that is good or bad"
    ):
        judged_of([{"prompt": "The sky is", "completion": "blue."}])


# ---------------------------------------------------------------------------------------------------- streams, mixtures


def endless(name: str) -> Iterator[dict[str, Any]]:
    return ({"prompt": f"{name} {i}", "completion": "Yes."} for i in count())


class Stream:
    """As a `datasets.IterableDataset`: it begins anew each time, and has no length."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(8))


def test_a_stream_is_read_to_its_end_and_that_is_said(model: bridle.Model, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = model.copy(), model.copy()
    bridle.sft(one, list(Stream()), epochs=1, batch_size=4)
    capsys.readouterr()
    bridle.sft(other, Stream(), epochs=1, batch_size=4, eval=Stream())
    assert capsys.readouterr().err.count("8 rows were read from a stream, to its end") == 2
    assert same(weights(one.policy.module), other.policy.module)


def test_a_stream_without_an_end_is_refused(model: bridle.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "MOST_READ", 50)
    calls: list[Callable[[], Any]] = [
        lambda: bridle.sft(model, endless("a")),
        lambda: bridle.ppo(model, endless("a"), reward=lambda prompts, answers: []),
        lambda: bridle.mixture([(endless("a"), 1), (endless("b"), 2)]),
    ]
    for call in calls:
        with pytest.raises(DataError, match=r"within 50 rows; say how many to take: .*limit=10_000") as caught:
            call()
        assert one_sentence(str(caught.value))


def test_a_mixture_takes_of_each_source_by_its_weight(capsys: pytest.CaptureFixture[str]) -> None:
    """At every point as near as can be; what runs out first ends it, and is named."""
    few = [{"prompt": f"few {i}"} for i in range(10)]
    found = bridle.mixture([(few, 1), (endless("a"), 2.5)])
    assert "mixture: 37 rows, 10 of source 1, 27 of source 2; source 1 has no more" in capsys.readouterr().err
    assert found == bridle.mixture([(few, 1), (endless("a"), 2.5)]) and found != bridle.mixture(
        [(few, 1), (endless("a"), 2.5)], seed=1
    )
    first = [row["prompt"] for row in found if "few" in row["prompt"]]
    assert sorted(first) == sorted(row["prompt"] for row in few) != first, "shuffled, none twice"
    for end in range(1, len(found)):
        assert abs(sum("few" in row["prompt"] for row in found[:end]) - end / 3.5) <= 1
    capsys.readouterr()
    assert len(bridle.mixture([(few, 1), (endless("a"), 1)], limit=7)) == 7
    assert "7 rows, 4 of source 1, 3 of source 2; that is limit = 7" in capsys.readouterr().err


@pytest.mark.parametrize("given", [([],), ([[{"prompt": "a"}]],), ([([{"prompt": "a"}], 0)],), ([([], 1.0)], 0)])
def test_what_is_no_mixture_is_refused(given: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError, match=r"a list of \(rows, weight\), weights above 0") as caught:
        bridle.mixture(given[0], limit=given[1] if len(given) > 1 else None)
    assert one_sentence(str(caught.value))
