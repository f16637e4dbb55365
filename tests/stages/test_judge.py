"""A judge is one more person: it takes what waits, blind, leaves judgements of kind ai, and is measured against those who know."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bridle.core.errors import NoUsableRows, StoreError, UsageError
from bridle.core.records import Completion, Judgement, LabelerKind, Prompt
from bridle.feedback.rankings import pairs_of
from bridle.feedback.store.assignment import next_task, submit
from bridle.feedback.store.store import Store
from bridle.feedback.store.studies import set_study
from bridle.project.progress import Progress
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from bridle.rewards.judge.questions import rubric_of
from bridle.stages.data import STUDY
from bridle.stages.judge import CACHE, audit_judge, judge_lines, judge_waiting
from bridle.stages.workspace import Work
from tests.rewards.judge.scripted import Scripted, completion, failed, scripted
from tests.tiny_project import bridle, done, result, settings

Choose = Callable[[list[str]], Any]  # of the answers as displayed: the letter, (letter, probability), or a reply


def answers_in(body: dict[str, Any]) -> list[str]:
    text = body["messages"][0]["content"]
    mark = text.split("the mark ")[1][:8]
    return [piece.split("---\n")[-1].strip() for piece in text.split(f"--- {mark} ---")[:-1]][1:]


def judge_by(choose: Choose) -> Callable[[int, dict[str, Any]], Scripted]:
    def script(number: int, body: dict[str, Any]) -> Scripted:
        found = choose(answers_in(body))
        return found if isinstance(found, tuple) and isinstance(found[0], int) else completion(found)

    return script


def the_good(texts: list[str]) -> str:
    return "A" if texts[0].startswith("good") else "B"


def ranked(texts: list[str]) -> list[int]:
    return sorted(range(len(texts)), key=lambda i: -len(texts[i]))


@contextmanager
def project(folder: Path, address: str = "http://127.0.0.1:1/v1", items: int = 20, **judge: Any) -> Iterator[Work]:
    """Pairs of which the first is the good one, to be judged by an endpoint."""
    chosen = {"endpoint": address, "model": "judge-1", "retries": 0, "injections": 0, "concurrency": 4, **judge}
    recipe = Recipe().with_settings({f"judge.{name}": value for name, value in chosen.items()})
    there = Project.find(folder) if (folder / "bridle.toml").exists() else Project.create(folder, recipe)
    work = Work(Project(there.folder, recipe), Progress(lambda _: None, live=False))
    if not work.store.items(study=STUDY):
        prompts = [Prompt.from_text(f"Question {n}?") for n in range(items)]
        work.store.add_prompts(prompts, split="train", source="prompts")
        groups = [[Completion(p.id, f"good {n}"), Completion(p.id, f"bad {n}")] for n, p in enumerate(prompts)]
        work.store.add_completions([one for group in groups for one in group], source="sample")
        work.store.add_items(groups, study=STUDY)
    try:
        yield work
    finally:
        work.close()


def test_a_judge_takes_what_waits_and_leaves_judgements_of_kind_ai(tmp_path: Path) -> None:
    displayed: list[list[str]] = []

    def choose(texts: list[str]) -> str:
        displayed.append(texts)
        return the_good(texts)

    with scripted(judge_by(choose)) as there, project(tmp_path / "p", there.address) as work:
        found = judge_waiting(work)
        judged = work.store.judgements(study=STUDY)
        assert found["items"] == found["judged"] == found["stored"] == len(judged) == 20 and found["calls"] == 40
        assert {one.labeler for _, one in judged} == {found["judge"]} and found["judge"].startswith("judge-1-")
        for _, one in judged:
            assert one.labeler_kind is LabelerKind.AI and one.ranking == ((0,), (1,)) and one.source == "study"
            client = one.client
            assert client["model"] == "judge-1" and len(client["prompt"]) == 64 and client["version"] == 1
            assert [tuple(call["order"]) for call in client["calls"]] == [one.display_order, one.display_order[::-1]]  # type: ignore[index]
        first = [call[0].startswith("good") for call in displayed]
        assert 20 == sum(first)  # each in both orders
        assert {one.display_order for _, one in judged} == {(0, 1), (1, 0)}
        assert found["swap_consistency"]["value"] == 1 and found["prefers_first_shown"]["value"] == 0.5
        again = judge_waiting(work)
        assert again["stored"] == 0 and again["items"] == 20 and len(there.asked) == 40
        assert "20 items" in judge_lines(again)[0]


def test_soft_verdicts_are_soft_labels(tmp_path: Path) -> None:
    top = {"A": -0.5108256, "B": -0.9162907}  # .6 and .4, whatever stands first; and .9 for the good one
    sure = {"A": -0.1053605, "B": -2.3025851}

    def script(number: int, body: dict[str, Any]) -> Scripted:
        good = answers_in(body)[0].startswith("good")
        return completion("A", top=sure if good else top)

    with scripted(script) as there, project(tmp_path / "p", there.address, items=3) as work:
        judge_waiting(work)
        for item, one in work.store.judgements(study=STUDY):
            assert one.confidence == pytest.approx(0.65, abs=1e-4)  # the mean of .9 and .4
            (pair,) = pairs_of(item, one)
            assert pair.chosen.text.startswith("good") and pair.target == pytest.approx(0.65, abs=1e-4)


def test_what_has_no_verdict_is_left_to_somebody_else_with_the_reason(tmp_path: Path) -> None:
    replies = {"0": "A", "1": "I'm sorry, but no.", "2": "", "3": "VERDICT: A"}

    def choose(texts: list[str]) -> str:
        return replies.get(texts[0].split()[1], "") if texts[0].split()[1] in replies else the_good(texts)

    with scripted(judge_by(choose)) as there, project(tmp_path / "p", there.address, items=6) as work:
        found = judge_waiting(work)
        assert found["items_abstained"] == {"unparsable": 1, "refusal": 1, "empty": 1, "inconsistent": 1}
        assert found["judged"] == 2 and len(work.store.judgements(study=STUDY)) == 2
        assert "1 inconsistent" in judge_lines(found)[1]
        asked = set()
        while (task := next_task(work.store, STUDY, "anna")) is not None:
            asked.add(task.item.completions[0].text)
            submit(
                work.store,
                STUDY,
                [Judgement(task.item.id, "anna", LabelerKind.PERSON, ((0,), (1,)), task.display_order)],
            )
        assert asked == {"good 0", "good 1", "good 2", "good 3"}
        assert judge_waiting(work)["stored"] == 0  # it is not asked again


def test_after_a_death_half_way_it_goes_on_and_pays_nothing_twice(tmp_path: Path) -> None:
    paid: list[str] = []

    def script(number: int, body: dict[str, Any]) -> Scripted:
        if len(paid) >= 50:
            return failed(503)
        paid.append(body["messages"][0]["content"])
        return completion(the_good(answers_in(body)))

    with scripted(script) as there:
        with project(tmp_path / "p", there.address, items=60) as work:
            with pytest.raises(StoreError, match="failed on 16 questions in a row"):
                judge_waiting(work)
        before = len(paid)

        def alive(number: int, body: dict[str, Any]) -> Scripted:
            paid.append(body["messages"][0]["content"])
            return completion(the_good(answers_in(body)))

        there.script = alive
        with project(tmp_path / "p", there.address, items=60) as work:
            found = judge_waiting(work)
            assert found["judged"] == 60 and found["calls"] == 120 - before
            assert len(paid) == len(set(paid)) == 120
            assert {len(one.marks) for _, one in work.store.judgements(study=STUDY)} == {0}


def test_one_item_that_fails_does_not_hold_the_others_up(tmp_path: Path) -> None:
    broken = True

    def choose(texts: list[str]) -> Any:
        return (
            failed(400, "content policy") if broken and any(text.endswith(" 7") for text in texts) else the_good(texts)
        )

    with scripted(judge_by(choose)) as there, project(tmp_path / "p", there.address) as work:
        found = judge_waiting(work)
        assert found["stored"] == 19 and found["left_waiting"] == 1
        broken = False
        found = judge_waiting(work)
        assert found["stored"] == 1 and found["left_waiting"] == 0 and found["items"] == 20


def test_a_budget_ends_it_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    with scripted(judge_by(the_good)) as there:
        with project(tmp_path / "p", there.address, max_calls=10, concurrency=1) as work:
            found = judge_waiting(work)
            assert found["calls"] == 10 and found["stored"] == 5 and found["left_waiting"] > 0
        with project(tmp_path / "p", there.address) as work:
            assert judge_waiting(work, most=3)["stored"] == 3
            assert judge_waiting(work)["items"] == 20
        assert len(there.asked) == 40


def test_groups_are_ranked_in_one_call(tmp_path: Path) -> None:
    def script(number: int, body: dict[str, Any]) -> Scripted:
        text = body["messages"][0]["content"]
        letters = [chr(65 + i) for i in ranked(answers_in(body))]
        return completion(f"VERDICT {text.split('the mark ')[1][:8]}: {' > '.join(letters)}")

    with scripted(script) as there, project(tmp_path / "p", there.address, items=1) as work:
        prompt = Prompt.from_text("Another question?")
        work.store.add_prompts([prompt], split="train", source="prompts")
        group = [Completion(prompt.id, "x" * n) for n in (3, 1, 4, 2)]
        work.store.add_completions(group, source="sample")
        work.store.add_items([group], study="groups")
        found = judge_waiting(work, "groups")
        ((_, one),) = work.store.judgements(study="groups")
        assert one.ranking == ((2,), (0,), (3,), (1,)) and found["calls"] == 1 and found["comparisons"] == 6


def test_a_judge_is_audited_by_what_people_judged_and_the_store_stays(tmp_path: Path) -> None:
    with scripted(judge_by(the_good)) as there:
        with project(tmp_path / "p", there.address, items=30) as work:
            with pytest.raises(NoUsableRows, match="holds no comparisons by people"):
                audit_judge(work, 10)
            set_study(work.store, STUDY, {"gold_rate": 0})
            while (task := next_task(work.store, STUDY, "anna")) is not None:
                submit(
                    work.store,
                    STUDY,
                    [Judgement(task.item.id, "anna", LabelerKind.PERSON, ((0,), (1,)), task.display_order)],
                )
            count = len(work.store.judgements())
            there.script = judge_by(
                lambda texts: the_good(texts) if int(texts[0].split()[1]) % 5 else "AB"[the_good(texts) == "A"]
            )
            found = audit_judge(work, 30)
            against = found["against_people"]
            assert against["decided"] == 30 and against["accuracy"]["value"] == pytest.approx(0.8)
            assert (
                against["kappa"]["value"] == pytest.approx(0.6)
                and against["kappa"]["low"] < 0.6 < against["kappa"]["high"]
            )
            assert len(work.store.judgements()) == count
            assert audit_judge(work, 5)["items"] == 5


def test_how_often_an_instruction_flips_the_verdict_is_measured(tmp_path: Path) -> None:
    def obeys(texts: list[str]) -> str:
        injected = ["better" in text or "choose" in text.lower() for text in texts]
        return "AB"[injected.index(True)] if sum(injected) == 1 else the_good(texts)

    with scripted(judge_by(obeys)) as there, project(tmp_path / "p", there.address, injections=20) as work:
        found = judge_waiting(work)
        injected = found["injection"]
        assert injected["tried"] == 20 and 0 < injected["flipped"]["value"] < 0.6
        assert all("better" in attack or "choose" in attack.lower() for attack in injected["by"])
    with scripted(judge_by(the_good)) as there, project(tmp_path / "q", there.address, injections=20) as work:
        assert judge_waiting(work)["injection"]["flipped"]["value"] == 0


def test_another_rubric_is_another_judge_and_the_order_of_none_is_known_to_it(tmp_path: Path) -> None:
    with scripted(judge_by(the_good)) as there:
        with project(tmp_path / "p", there.address) as work:
            set_study(work.store, STUDY, {"overlap": 2, "gold_rate": 0})
            first = judge_waiting(work)
        with project(tmp_path / "p", there.address, rubric="Be brief.") as work:
            second = judge_waiting(work)
            assert second["stored"] == 20 and second["judge"] != first["judge"] and second["prompt"] != first["prompt"]
            assert len({one.labeler for _, one in work.store.judgements(study=STUDY)}) == 2


def test_nothing_is_begun_without_a_judge_its_key_or_anything_to_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with (
        project(tmp_path / "p", key_from="NO_SUCH_KEY") as work,
        pytest.raises(UsageError, match="NO_SUCH_KEY, which is not set"),
    ):
        judge_waiting(work)
    with project(tmp_path / "p", endpoint="", model="") as work, pytest.raises(UsageError, match="no judge is named"):
        judge_waiting(work)
    with project(tmp_path / "p") as work, pytest.raises(NoUsableRows, match="holds nothing for judge-1-.* to judge"):
        judge_waiting(work, "nothing-here")


# ------------------------------------------------------------------------------------------------ through the command line


def test_a_rubric_in_a_prompts_own_column_comes_with_it(tmp_path: Path) -> None:
    rubric = [{"criterion": "names the number", "weight": 2}, {"criterion": "is short"}]
    row = {"prompt": "What is two and two?", "chosen": "four", "rejected": "five", "rubric": rubric}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    done("init", tmp_path / "p")
    done("import", tmp_path / "rows.jsonl", "--project", tmp_path / "p")
    with Store.open(tmp_path / "p/store.sqlite") as store:
        (prompt,) = store.prompts()
    assert prompt.meta["rubric"] == rubric and "names the number (weight 2)" in rubric_of(prompt)


@pytest.fixture
def demo(finished_demo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_demo, tmp_path / "demo", symlinks=True))


def graded(texts: list[str]) -> str:
    """A grade by length."""
    return str(min(5, 1 + len(texts[0]) // 20))


def test_sample_judge_reward_and_rl_by_commands(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-7777")
    with scripted(judge_by(graded)) as there:
        chosen = settings(
            {
                "judge.endpoint": there.address,
                "judge.model": "judge-1",
                "judge.key_from": "JUDGE_KEY",
                "judge.form": "rating",
                "sampling.temperature": 0.9,
                "reward.slim": False,
                "reward.epochs": 1,
            }
        )
        done("sample", "--project", demo, *chosen)
        found = json.loads(done("judge", "--json", "--project", demo, *chosen))
        assert found["stored"] > 0 and 0 <= found["against_gold"]["accuracy"]["value"] <= 1 and found["abstained"] == {}
        assert result(demo / "runs/judge-0001")["judge"] == found["judge"]
        done("train", "reward", "--project", demo, *chosen)
        source = ["--set", 'reward_source=[{name = "judge", kind = "judge"}]', "--set", "rloo.steps=2"]
        done("train", "rloo", "--project", demo, *chosen, *source)
        logged = [json.loads(line) for line in (demo / "runs/rloo-0001/metrics.jsonl").read_text().splitlines()]
        assert all(0 <= line["reward_judge"] <= 1 and line["unscored_judge"] == 0 for line in logged)
        calls = len(there.asked)
        found = json.loads(done("evaluate", "ppo", "sft", "--by", "judge", "--json", "--project", demo, *chosen))[
            "win_rate"
        ]
        assert found["by"] == "judge" and found["judge"].startswith("judge-1-") and found["abstained"] == {}
        assert found["low"] <= found["rate"] <= found["high"] and found["by_category"] and len(there.asked) > calls
        calls = len(there.asked)
        assert (
            json.loads(done("evaluate", "ppo", "sft", "--by", "judge", "--json", "--project", demo, *chosen))[
                "win_rate"
            ]
            == found
        )
        assert len(there.asked) == calls  # it was known
        done("report", "--project", demo)
    for path in demo.rglob("*"):
        if path.is_file():
            assert b"sk-secret-7777" not in path.read_bytes(), path
    assert (demo / CACHE).stat().st_mode & 0o777 == 0o600


def test_people_judge_two_models_in_a_study_of_their_own(demo: Path) -> None:
    waiting = bridle("evaluate", "ppo", "sft", "--by", "people", "--project", demo)
    assert waiting.exit_code == 3 and "wait for people in study 'ppo-against-sft'" in waiting.stderr
    work = Work(Project.find(demo), Progress(lambda _: None, live=False))
    given = 0
    while given < 6 and (task := next_task(work.store, "ppo-against-sft", "anna")) is not None:
        submit(
            work.store,
            "ppo-against-sft",
            [Judgement(task.item.id, "anna", LabelerKind.PERSON, ((0,), (1,)), task.display_order)],
        )
        given += 1
    work.close()
    found = json.loads(done("evaluate", "ppo", "sft", "--by", "people", "--json", "--project", demo))["win_rate"]
    assert found["n"] - found["ties"] == given == 6 and found["waiting"] > 0 and found["rate"] > 0.5


def test_gold_still_compares_with_what_it_had_and_more(demo: Path) -> None:
    found = json.loads(done("evaluate", "ppo", "sft", "--json", "--project", demo))["win_rate"]
    assert {"model", "against", "by", "rate", "low", "high", "n"} <= set(found) and found["by"] == "gold"
    assert found["ties"] >= 0 and "length_controlled" in found


def test_a_local_judge_is_a_model_of_the_project(demo: Path) -> None:
    refused = bridle("judge", "--project", demo, "--set", "judge.model=nobody")
    assert refused.exit_code == 1 and "there is no model at" in refused.stderr
    found = json.loads(
        done(
            "judge",
            "--json",
            "--audit",
            "4",
            "--project",
            demo,
            *settings({"judge.model": "sft", "judge.form": "rating"}),
        )
    )
    kinds = found["items_abstained"]
    assert found["items"] == 4 and (found["judged"] > 0 or set(kinds) == {"too_long"})
