"""Critique and revision from end to end on a tiny playground: the critic is taught, chains are kept, taken up again and taken down."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from bridle.core.records import Completion, FinishReason, LabelerKind, Prompt
from bridle.demo.recipes import RECIPES
from bridle.feedback.people.chains import chain_record, correct_chain, find_chains
from bridle.feedback.store import tables
from bridle.feedback.store.store import Store
from bridle.feedback.upkeep.takedown import take_down
from bridle.models.policy import Policy
from bridle.project.kept import read_parents
from bridle.project.project import Project
from bridle.rewards.constitution.constitution import shipped_constitution
from bridle.rewards.constitution.dialogues import critique_prompt, draw_principle
from bridle.rewards.judge.judge import VERSION
from bridle.rewards.judge.local import word_ids, word_probabilities
from bridle.rewards.judge.questions import harmless
from bridle.stages import revise as stage
from bridle.stages.critic import project_constitution, train_critic
from bridle.stages.data import STUDY
from bridle.stages.methods import METHODS
from bridle.stages.workspace import Work
from tests.stages.test_methods import Quiet
from tests.tiny_project import PLAYGROUND, bridle, complaint, done, result, settings, weights

TINY: dict[str, Any] = {
    **PLAYGROUND, "data.pretrain_tokens": 12_000, "data.heldout_prompts": 16, "data.probe_prompts": 6, "data.compared_heldout": 4,
    "model.max_positions": 192, "sampling.max_new_tokens": 12, "constitution.prompts": 10, "constitution.rounds": 2,
    "constitution.critic_answers": 40,
}  # fmt: skip


@pytest.fixture(scope="module")
def revised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of the recipe: the critic, whose answers were revised, SL-CAI with and without benign answers, and what they are worth."""
    project = tmp_path_factory.mktemp("revise") / "project"
    printed = done("demo", "--recipe", "constitution", "--out", project, *settings(TINY))
    assert "Share of harmful requests that are answered, round by round" in printed and "SL-CAI: answers" in printed
    return project


@pytest.fixture
def project(revised: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(revised, tmp_path / "project"))


@pytest.fixture
def store(project: Path) -> Iterator[Store]:
    with Store.open(project / "store.sqlite") as store:
        yield store


def chains(store: Store) -> list[tuple[Prompt, dict[str, Any], str]]:
    """Every step of a revision: the prompt that was asked, its note, the reply; of benign answers nothing, which are only criticised."""
    asked = [(prompt, dict(prompt.meta["chain"]), one.text) for prompt, one in store.completions(split=stage.CHAIN)]
    return [step for step in asked if step[1]["round"]]


def test_the_critic_is_a_copy_of_sft_and_changes_nothing_else(revised: Path) -> None:
    found = result(revised / "runs/critic-0001")
    assert weights(revised, "critic") != weights(revised, "sft")
    assert 40 <= found["answers"] <= 2 * (16 + 2 * 6) and found["answers"] % 2 == 0 and 0 <= found["exact"] <= 1
    assert {"harm_recall", "false_alarms", "preference_easy_harm", "harm_before", "harm_after"} <= set(found)
    with Quiet(revised, {"constitution.critic_answers": 41}) as work:
        other = work.recipe
        assert other.hash_of("model", "sft") == Project.find(revised).recipe.hash_of("model", "sft")
    with Quiet(revised, {}) as work:
        assert train_critic(work, reuse=True)["model"] == found["model"]


def test_the_demo_ends_in_a_report(revised: Path) -> None:
    summary = json.loads((revised / "summary.json").read_text())
    assert (
        list(summary["stages"]) == [stage.name for stage in RECIPES["constitution"]]
        and summary["recipe"] == "constitution"
    )
    page = (revised / "report.html").read_text()
    for title in ("Revision round by round", "The principles", "What harmlessness costs", "A critic is taught"):
        assert title in page, title
    refused = bridle("demo", "--recipe", "constitutoin", "--out", revised)
    assert refused.exit_code == 2 and "'constitution'" in complaint(refused)


def test_every_step_is_kept_with_its_round_and_principle(project: Path, store: Store) -> None:
    steps = chains(store)
    with Quiet(project, {}) as work:
        ours, seed = project_constitution(work), work.recipe.seed
        prompts = {prompt.id: prompt for prompt in work.store.prompts(source="red-team")}
    assert {note["round"] for _, note, _ in steps} == {1, 2} and {note["of"] for _, note, _ in steps} == set(prompts)
    for asked, note, _ in steps:
        principle = draw_principle(ours, prompts[note["of"]], note["round"] - 1, seed)
        assert note["principle"] == principle.name and asked.text in (principle.critique, principle.revision)
        assert asked.messages[0] == prompts[note["of"]].messages[0]
    critiques = [note for asked, note, _ in steps if len(asked.messages) == 3]
    counts = Counter(note["of"] for note in critiques)  # one where the same answer met the same principle twice
    assert set(counts) == set(prompts) and set(counts.values()) <= {1, 2} and sum(counts.values()) > 12
    found = result(project / "runs/revise-0001")
    assert found["answers"] == 10 and [row["round"] for row in found["by_round"]] == [0, 1, 2]
    assert sum(row["drawn"] for row in found["by_principle"].values()) == 20
    lines = [json.loads(line) for line in (project / "runs/revise-0001/chains.jsonl").read_text().splitlines()]
    assert len(lines) == 10 and all(len(line["steps"]) == 2 for line in lines)


def test_what_comes_of_it_are_answers_to_imitate_and_pairs(project: Path, store: Store) -> None:
    lines = {
        line["id"]: line
        for line in map(json.loads, (project / "runs/revise-0001/chains.jsonl").read_text().splitlines())
    }
    counts = store.counts()["completions"]
    [revised] = [name for name in counts if name.startswith("revised:")]
    answers = {prompt.id: one.text for prompt, one in store.completions(source=revised)}
    assert answers and all(lines[key]["steps"][-1]["answer"] == text for key, text in answers.items())
    for item, judgement in store.judgements(study="constitution", criterion="constitution"):
        first, last = (one.stripped for one in item.completions)
        assert (
            first == lines[item.prompt.id]["answer"].strip()
            and last == lines[item.prompt.id]["steps"][-1]["answer"] != first
        )
        assert judgement.ranking == ((1,), (0,)) and judgement.labeler.startswith("critic ")
    assert not store.judgements(study="constitution"), "nothing on the whole, so no reward model learns from it unasked"


def test_what_is_there_is_not_asked_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "runs/revise-0001/result.json").unlink()  # as if it had been killed at the end
    asked: list[int] = []
    plain = stage.ask_model
    monkeypatch.setattr(
        stage, "ask_model", lambda w, p, prompts, *rest: asked.append(len(prompts)) or plain(w, p, prompts, *rest)
    )
    before = (project / "runs/revise-0001/chains.jsonl").read_bytes()
    done("revise", "--project", project)
    assert sum(asked) == 0 and (project / "runs/revise-0001/chains.jsonl").read_bytes() == before


def test_sl_cai_imitates_a_persons_correction_in_place_of_the_models_answer(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = find_chains(store)[:2]
    for text in ("Not this.", "No, and here is why."):
        correct_chain(store, first.number, text, by="anna")
    given: list[dict[str, str]] = []

    def imitate(work: Any, run: Any, name: str, rows: Any, *rest: Any) -> dict[str, Any]:
        given.append({prompt.id: text for prompt, text in rows})
        return {"demonstrations": len(rows)}

    monkeypatch.setattr(stage, "imitate_demonstrations", imitate)
    with Quiet(project, {}) as work:
        found = METHODS["sl-cai"].train(work)
    of, other = (chain_record(store, one.number) for one in (first, second))
    assert of is not None and other is not None and found["corrected"] == 1
    [imitated] = given
    assert imitated[of.prompt_id] == "No, and here is why." and imitated.get(other.prompt_id, "") == other.last
    correct_chain(store, second.number, "Another one.", by="ben")
    with Quiet(project, {}) as work:
        METHODS["sl-cai"].train(work, reuse=True)
    assert given[1][other.prompt_id] == "Another one.", "a correction makes another run of it"
    take_down(store, store_hash(store, "No, and here is why."), reason="asked for", by="owner")
    gone = chain_record(store, first.number)
    assert gone is not None and not any(step.critique or step.revision for step in gone.steps) and not gone.last
    assert not corrections(store, of.prompt_id), "the earlier correction goes too"


def store_hash(store: Store, text: str) -> str:
    with store.reading() as connection:
        table = tables.completion.c
        return str(connection.execute(select(table.content_sha256).where(table.text == text)).scalar_one())


def corrections(store: Store, prompt: str) -> list[str]:
    """What stands of them in the table."""
    with store.reading() as connection:
        table = tables.completion.c
        mine = select(table.text).where(table.prompt_sha256 == prompt, table.source.startswith("corrected:"))
        return [text for text in connection.execute(mine).scalars() if text]


def test_a_chain_goes_with_any_of_its_texts(project: Path, store: Store) -> None:
    steps = chains(store)
    gone, other = sorted({note["of"] for _, note, _ in steps})[:2]
    one = next(asked for asked, note, _ in steps if note["of"] == gone)
    mine = [p for p, note, _ in steps if note["of"] == gone]
    take_down(store, one.id, reason="asked for", by="owner")
    with store.reading() as connection:
        table = tables.prompt
        rows = {
            row.sha256: row for row in connection.execute(select(table).where(table.c.sha256.in_([p.id for p in mine])))
        }
        texts = connection.execute(select(tables.completion.c.text).where(tables.completion.c.prompt_sha256.in_(rows)))
        assert not any(texts.scalars())
        assert not any(message["content"] for row in rows.values() for message in row.messages)
        revised = tables.completion.c.source.startswith("revised:")
        left = select(tables.completion.c.text).where(revised, tables.completion.c.prompt_sha256 == gone)
        assert not any(connection.execute(left).scalars())
    assert {note["of"] for _, note, _ in chains(store)} == {note["of"] for _, note, _ in steps} - {gone}
    assert any(note["of"] == other for _, note, _ in chains(store))
    prompts = store.prompts(source="red-team")
    assert gone in {prompt.id for prompt in prompts}, "the request itself stays, for it alone was not taken down"
    take_down(store, other, reason="asked for", by="owner")
    assert other not in {note["of"] for _, note, _ in chains(store)}


def test_sl_cai_imitates_them_beside_its_own_answers_to_benign_prompts(project: Path) -> None:
    found, alone = (result(project / f"runs/{name}-0001") for name in ("sl-cai", "sl-cai-alone"))
    assert found["demonstrations"] == found["revised"] + found["benign"] and found["revised"] > 0
    assert alone["benign"] == 0 and alone["demonstrations"] == alone["revised"]
    assert weights(project, "sft") != weights(project, "sl-cai-alone")
    before = weights(project, "sl-cai")
    done("train", "sl-cai", "--project", project)
    assert weights(project, "sl-cai") == before, "the command does what the demo did"


def test_benign_answers_are_imitated_only_where_the_critic_finds_no_fault(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A critic whose every reply is scripted: by its last principle it finds fault with every third answer."""
    plain, stop_at = stage.ask_model, 2
    with Quiet(project, {"constitution.prompts": 4}) as work:
        ours = project_constitution(work)

    def ask(work: Work, policy: Policy, prompts: Sequence[Prompt], *rest: Any) -> list[Completion | None]:
        if not prompts or prompts[0].text not in [one.critique for one in ours.principles]:
            found = plain(work, policy, prompts, *rest)  # so small a model never ends
            return [one and replace(one, finish_reason=FinishReason.STOP) for one in found]
        last = ours.principles[-1].critique
        faulty = [one.text == last and sum(one.messages[1].content.encode()) % 3 == 0 for one in prompts]
        words = ["Rude." if fault else ours.nothing for fault in faulty]
        return [Completion(one.id, text, weight_stamp=policy.stamp) for one, text in zip(prompts, words, strict=True)]

    monkeypatch.setattr(stage, "ask_model", ask)
    monkeypatch.setattr(stage, "CHUNK", stop_at)
    done("revise", "--project", project, *settings({"constitution.prompts": 4}))
    found = result(project / "runs/revise-0002")
    assert found["benign_kept"] <= 4 and found["benign_answers"] <= 4 * stage.TRIED
    key = read_parents(project / "runs/revise-0002")["key"]
    answers, kept = (
        {prompt.id: one.text for prompt, one in store.completions(source=stage.source_of(name, key))}
        for name in (stage.BENIGN, stage.KEPT)
    )
    fine = {key: text for key, text in answers.items() if sum(text.strip().encode()) % 3}
    assert found["benign_kept"] == len(kept) > 0 and kept.items() <= fine.items() and len(fine) < len(answers)
    assert len(kept) == 4 or set(kept) == set(fine), "all that are fine, or as many as there are revised ones"
    done("train", "sl-cai", "--project", project, *settings({"constitution.prompts": 4}))
    assert result(project / "runs/sl-cai-0002")["benign"] == min(len(kept), found["kept"])


def test_without_revisions_there_is_nothing_to_imitate(project: Path) -> None:
    shutil.rmtree(project / "runs/revise-0001")
    found = bridle("train", "sl-cai", "--project", project)
    assert found.exit_code == 1 and "`bridle revise` makes them" in complaint(found)


def test_principles_that_do_not_fit_the_context_end_the_run(project: Path, tmp_path: Path) -> None:
    """SFT by the constitution that comes with bridle, each principle made longer than so small a model reads."""
    ours = shipped_constitution("en").read_text()
    (project / "ours.toml").write_text(
        ours.replace('critique = "Say', f'critique = "{"Read it well. " * 60}Say').replace(
            "Name each", "Read it well. " * 60
        )
    )
    own = {"constitution.file": "ours.toml", "constitution.model": "sft", "constitution.benign": 0.0}
    found = bridle("revise", "--project", project, *settings(own))
    assert found.exit_code == 1 and "critiques leaves room for 12 new tokens in the context of" in complaint(found)


CRITIC_JUDGES = settings({"judge.model": "critic", "judge.form": "rating"})


def test_the_critic_is_a_judge_like_any_other(project: Path, store: Store) -> None:
    """It is asked as it was taught, of one answer at a time, by the one judge that there is; its verdicts lie in the store as a model's."""
    done("sample", "--project", project)
    found = json.loads(done("judge", "--json", "--project", project, *CRITIC_JUDGES))
    given = [(item, one) for item, one in store.judgements(study=STUDY) if one.labeler == found["judge"]]
    assert found["stored"] == len(given) > 0 and found["abstained"] == {} and found["form"] == "rating"
    assert 0 <= found["agreement_with_gold"] <= 1 and found["clear_pairs"] > 0
    with Quiet(project, {}) as work:
        policy, data = work.read_policy(project / "models/critic"), work.data
        question, grades = data.critic.question(), data.critic.grades()
        ours = project_constitution(work).principle("overall")
        for item, one in given[:3]:
            assert one.labeler_kind is LabelerKind.AI and one.client["model"] == "critic"
            assert one.client["prompt"].startswith(found["prompt"]) and one.client["version"] == VERSION
            asked = [critique_prompt(item.prompt, harmless(answer.text), ours) for answer in item.completions]
            assert asked[0].messages[-1].content == question
            each = word_probabilities(policy, [word_ids(policy.template, p, list(grades)) for p in asked], work.device)
            worth = [sum(grades[word] * p for word, p in row.items()) for row in each]
            assert one.client["scores"] == pytest.approx(worth, abs=1e-5)
            assert [worth[group[0]] for group in one.ranking] == sorted(
                (worth[group[0]] for group in one.ranking), reverse=True
            )
    refused = bridle("judge", "--project", project, "--set", "judge.model=critic")
    assert refused.exit_code == 2 and "judge.form = 'rating'" in complaint(refused)


def test_reinforcement_learning_asks_the_critic_itself(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole group at once, and what comes back is its expected grade on the scale of its verdicts. It is taught where it is not there."""
    critic = project / "models/critic"
    critic.rename(project / "critic-before")
    monkeypatch.setattr(
        "bridle.stages.judge.train_critic", lambda work: shutil.copytree(project / "critic-before", critic)
    )
    source = ["--set", 'reward_source=[{name = "critic", kind = "judge"}]']
    done("train", "rloo", "--project", project, *CRITIC_JUDGES, *source)
    logged = [json.loads(line) for line in (project / "runs/rloo-0001/metrics.jsonl").read_text().splitlines()]
    assert logged and all(0 < line["reward_critic"] < 1 and line["unscored_critic"] == 0 for line in logged)
    noted = json.loads((project / "runs/rloo-0001/parents.json").read_text())
    assert noted["judge"], "another critic would be another run"
