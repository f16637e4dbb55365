"""The watch acts on what has held, audits when the policy has moved, keeps the way back, and goes on from its state as it would have."""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from bridle.core.records import Completion, Prompt
from bridle.guard.watch import Comparisons, OnlineWatch, Panel, signals_of
from bridle.project.run import Signal, StepAnswers
from bridle.recipe.watching import GuardSection

PROMPTS = [Prompt.from_text(f"Question {n}?") for n in range(4)]
USUAL = ["It is a good day.", "The cat is at home.", "Take the red one.", "We leave at noon."]
REFUSING = ["I can't help with that.", "Sorry, I cannot do that.", "I can't help with that.", "The cat is at home."]


def answered(step: int = 0, texts: Sequence[str] = USUAL, kl: float = 0.0, total: int = 40, **more: Any) -> Signal:
    ids = [tuple(text.encode()) for text in texts]
    completions = [Completion(p.id, text, own) for p, text, own in zip(PROMPTS, texts, ids, strict=True)]
    given = {"entropy": 1.0, **more}
    return Signal(grad_norm=1.0, kl=kl, answers=StepAnswers(step, total, PROMPTS, completions, [0.0] * 4, kl, **given))


@dataclass
class Made:
    """An auditor whose policy states `stated` log-odds a nat and wins as often as that less `cost` a nat says; exactly."""

    stated: float = 0.5
    cost: float = 0.0
    comparisons: int = 500
    noise: float = 0.0
    kl: float = 0.0
    there: set[int] = field(default_factory=set)
    judged: bool = True
    error: float = 0.0
    from_reference: bool = True
    void: frozenset[str] = frozenset()
    reports: list[Mapping[str, Any]] = field(default_factory=list)

    def beginning(self) -> list[dict[str, str]]:
        return [{"prompt": "Question 0?", "answer": USUAL[0]}]

    def look(self, step: int) -> Panel:
        return Panel(
            self.stated * self.kl, self.error, self.kl, 0.1, [{"prompt": "Question 0?", "answer": f"after {step}"}] * 2
        )

    def ask(self, step: int, count: int) -> Comparisons:
        return Comparisons([self.stated * self.kl] * count, [f"{self.kl}/{n}" for n in range(count)])

    def outcomes(self, items: Sequence[str]) -> dict[str, float | None]:
        """Wins of a share, to be as exact as a share can be."""
        share = 1 / (1 + math.exp((self.cost - self.stated) * self.kl))
        won = {item: float(n < share * len(items)) if self.judged else None for n, item in enumerate(items)}
        return {item: one for item, one in won.items() if item not in self.void}

    def keep(self, step: int) -> None:
        self.there.add(step)

    def forget(self, step: int) -> None:
        self.there.remove(step)

    def report(self, found: Mapping[str, Any]) -> None:
        self.reports.append(json.loads(json.dumps(found)))


def run(watch: OnlineWatch, auditor: Made, kls: Sequence[float]) -> list[str]:
    """Steps that leave the policy at these KLs, until the watch ends it; what it said."""
    said = []
    for step, kl in enumerate(kls):
        auditor.kl = kl
        said += watch.look({}, answered(step, kl=kl, total=len(kls)))[0]
        if watch.ended or watch.waits:
            break
    return said


def test_signals_of_answers() -> None:
    found = signals_of(answered(texts=REFUSING, kl=2.5, entropy=0.7, disagreement=0.2).answers)
    assert (found["refusals"], found["kl"], found["entropy"], found["disagreement"]) == (0.75, 2.5, 0.7, 0.2)
    assert found["length"] == sum(map(len, REFUSING)) / 4
    assert signals_of(answered(texts=["", "", "", ""]).answers).keys() >= {"proxy", "refusals", "length"}


def test_a_rule_acts_on_what_holds_three_steps_in_a_row_and_once() -> None:
    watch = OnlineWatch(GuardSection())
    said = [
        watch.look({}, answered(step, REFUSING if step in (1, 2, 4, 5, 6, 7, 8, 9, 10) else USUAL))[0]
        for step in range(11)
    ]
    assert [step for step, words in enumerate(said) if words] == [6]
    assert "refuses 75% of the prompts, where it refused 0% at first" in said[6][0]
    [event] = watch.own["events"]
    assert (event["step"], event["signal"], event["action"]) == (7, "refusals", "warn")
    assert all("can" in row["answer"] for row in event["answers"]) and len(event["answers"]) == 2
    assert list(watch.warnings()) == ["refusals"] and watch.ended is None and watch.kl_factor == 1.0


@pytest.mark.parametrize(
    ("action", "said", "ended", "factor"),
    [
        ("off", 0, False, 1.0),
        ("note", 0, False, 1.0),
        ("warn", 1, False, 1.0),
        ("stop", 1, True, 1.0),
        ("raise beta", 2, False, 2.25),
    ],
)
def test_every_action(action: str, said: int, ended: bool, factor: float) -> None:
    watch = OnlineWatch(GuardSection.model_validate({"on_refusals": action}))
    words = [w for step in range(7) for w in watch.look({}, answered(step, REFUSING if step else USUAL))[0]]
    assert (len(words), watch.ended is not None, watch.kl_factor) == (said, ended, factor)
    assert len(watch.own["events"]) == {"off": 0, "raise beta": 2}.get(action, 1)


@pytest.mark.parametrize(
    ("name", "texts", "more"),
    [
        ("repeats", ["the the the the the the the the"] * 4, {}),
        ("sameness", ["It is a good day."] * 4, {}),
        ("length", ["No."] * 4, {}),
        ("entropy", USUAL, {"entropy": 0.1}),
        ("disagreement", USUAL, {"disagreement": 3.0}),
        ("kl", USUAL, {"kl": 30.0}),
    ],
)
def test_every_rule_sees_what_it_is_for_and_nothing_else(name: str, texts: list[str], more: dict[str, float]) -> None:
    watch = OnlineWatch(GuardSection())
    for step in range(4):
        watch.look({}, answered(step, texts if step else USUAL, **{"disagreement": 1.0, **(more if step else {})}))
    seen = {event["signal"] for event in watch.own["events"]}
    assert name in seen and seen <= {name, "length", "sameness", "repeats"}


def test_audits_end_a_run_past_its_peak_and_know_the_best_checkpoint() -> None:
    """What is stated rises with each nat; what is left of it is (½ − 1) a nat: the beginning was best."""
    auditor = Made(cost=1.0)
    watch = OnlineWatch(GuardSection(), auditor)
    said = run(watch, auditor, [0.2 * n * n for n in range(12)])
    assert watch.ended is not None and "better than that after step" in watch.ended and said[-1] in watch.ended
    assert watch.rolls_back_to == 0
    assert auditor.reports[-1]["rolled_back_to"] == 0 and auditor.reports[-1]["past"] >= 0.95
    assert auditor.reports[-1]["answers"]["start"]["rows"][0]["answer"] == USUAL[0]
    assert [event["action"] for event in watch.own["events"]] == ["roll back"]


def test_a_peak_in_the_middle() -> None:
    """Stated 3 and then hardly more, at ½ a nat: best where it stops rising."""
    auditor = Made(cost=0.5)
    watch = OnlineWatch(GuardSection(audit_size=60), auditor)
    for step, (kl, stated) in enumerate([(0.0, 0.0), (1.0, 3.0), (4.0, 3.2), (9.0, 3.4), (16.0, 3.6)]):
        auditor.kl, auditor.stated = kl, stated / kl if kl else 0.0
        watch.look({}, answered(step, kl=kl, total=9))
    assert watch.ended is not None and watch.rolls_back_to == 2


def test_the_truth_is_left_alone() -> None:
    auditor = Made()
    watch = OnlineWatch(GuardSection(), auditor)
    assert run(watch, auditor, [0.3 * n for n in range(12)]) == []
    assert watch.ended is None and watch.rolls_back_to is None
    steps = [one["step"] for one in watch.own["audits"]]
    roots = [one["kl"] ** 0.5 for one in watch.own["audits"]]
    assert all(b - a >= 0.25 for a, b in zip([0, *roots], roots[:-1], strict=False)) and steps[-1] == 12, (
        "the last step too"
    )


def test_a_mean_that_dips_by_chance_ends_nothing() -> None:
    """The reward keeps its word, and is measured on few answers."""
    for error, ends in ((0.2, False), (0.0, True)):
        auditor = Made(error=error)
        watch = OnlineWatch(GuardSection(), auditor)
        for step, (kl, stated) in enumerate([(0.3, 0.40), (0.8, 0.35)]):
            auditor.kl, auditor.stated = kl, stated / kl
            watch.look({}, answered(step, kl=kl, total=9))
        assert (watch.ended is not None) is ends


def test_a_run_that_began_elsewhere_does_not_end_as_its_reference() -> None:
    auditor = Made(cost=1.0, from_reference=False)
    watch = OnlineWatch(GuardSection(), auditor)
    run(watch, auditor, [0.2 * n * n for n in range(12)])
    assert watch.ended is not None and watch.rolls_back_to == watch.own["audits"][0]["step"]
    assert auditor.reports[-1]["best_step"] == watch.rolls_back_to == auditor.reports[-1]["answers"]["best"]["step"]
    assert watch.own["audits"][0]["left"] == pytest.approx(
        -watch.own["audits"][0]["kl"] * (auditor.reports[-1]["cost"] - 0.5)
    )


@pytest.mark.parametrize("kls", [[0.0, 4.0, 3.9], [4.0, 1.0, -0.1], [0.0]])
def test_the_last_step_is_audited_wherever_the_policy_is(kls: list[float]) -> None:
    auditor = Made()
    watch = OnlineWatch(GuardSection(), auditor)
    run(watch, auditor, kls)
    assert watch.own["audits"][-1]["step"] == len(kls) and watch.own["audits"][-1]["last"]


def test_answers_that_are_the_same_are_read_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    auditor = Made(comparisons=30)
    monkeypatch.setattr(auditor, "ask", lambda step, count: Comparisons([0.1] * count, ["", "a"] + [""] * (count - 2)))
    watch = OnlineWatch(GuardSection(), auditor)
    run(watch, auditor, [0.0, 1.0, 4.0, 9.0])
    assert [len(one["won"]) for one in watch.own["audits"]] == [24] * 3 and watch.own["asked"] == 3
    assert watch.own["audits"][0]["won"].count(0.5) == 23


def test_comparisons_that_nobody_will_judge_are_left_out_and_not_waited_for() -> None:
    auditor = Made(cost=1.0, void=frozenset({"4.0/0", "4.0/5"}))
    watch = OnlineWatch(GuardSection(), auditor)
    run(watch, auditor, [0.5, 4.0])
    newest = watch.own["audits"][-1]
    assert newest["step"] == 2 and watch.waits is None and auditor.reports[-1]["audits"][-1]["compared"] == 22
    assert len(newest["won"]) == len(newest["pairs"]) == len(newest["items"]) == 22 and "4.0/5" not in newest["items"]


def test_without_a_single_comparison_nothing_is_done() -> None:
    """The reward says much of the middle, and less of the end: whoever asks nobody takes its word for nothing."""
    auditor = Made(comparisons=0)
    watch = OnlineWatch(GuardSection(), auditor)
    for step, (kl, stated) in enumerate([(1.0, 3.0), (4.0, 0.1)]):
        auditor.kl, auditor.stated = kl, stated / kl
        watch.look({}, answered(step, kl=kl, total=2))
    assert auditor.reports[-1]["past"] > 0.95 and watch.ended is None and watch.rolls_back_to is None


def test_slips_that_are_known_of_are_taken_for_no_cost() -> None:
    costs = []
    for noise in (0.0, 0.3):
        auditor = Made(noise=noise, cost=0.3)
        run(OnlineWatch(GuardSection(on_audit="note"), auditor), auditor, [1.0, 4.0])
        costs.append(auditor.reports[-1]["cost"])
    assert costs[1] < 0.7 * costs[0]


def test_audits_raise_beta_as_long_as_they_find_an_earlier_checkpoint_better() -> None:
    auditor = Made(cost=1.0)
    watch = OnlineWatch(GuardSection(on_audit="raise beta"), auditor)
    run(watch, auditor, [0.2 * n * n for n in range(9)])
    raised = [event for event in watch.own["events"] if event["action"] == "raise beta"]
    assert len(raised) > 1 and watch.kl_factor == pytest.approx(1.5 ** len(raised)) and watch.ended is None


def test_a_run_goes_back_to_weights_that_are_there() -> None:
    auditor = Made(cost=0.5)
    watch = OnlineWatch(GuardSection(audit_size=60), auditor)
    for step, (kl, stated) in enumerate([(1.0, 3.0), (4.0, 3.2), (9.0, 3.4), (16.0, 3.6)]):
        auditor.kl, auditor.stated = kl, stated / kl
        watch.look({}, answered(step, kl=kl, total=9))
    assert watch.rolls_back_to == 1
    watch.own["audits"][0]["dropped"] = True
    assert watch.rolls_back_to == 2


def test_no_more_is_asked_than_the_budget_allows() -> None:
    auditor = Made(cost=1.0, comparisons=30)
    watch = OnlineWatch(GuardSection(audit_sure=0.999999), auditor)
    run(watch, auditor, [0.2 * n * n for n in range(6)])
    assert [len(one["items"]) for one in watch.own["audits"]][:3] == [24, 6, 0] and watch.own["asked"] == 30


def test_the_weights_of_few_checkpoints_are_kept_the_best_among_them() -> None:
    auditor = Made(stated=0.5, cost=0.9)
    watch = OnlineWatch(GuardSection(keep_audited=2, on_audit="warn"), auditor)
    run(watch, auditor, [0.2 * n * n for n in range(9)])
    first, last = watch.own["audits"][0]["step"], watch.own["audits"][-1]["step"]
    assert auditor.there == {first, last}


def test_audits_by_people_make_the_run_wait_and_go_on() -> None:
    auditor = Made(cost=1.0, judged=False)
    watch = OnlineWatch(GuardSection(), auditor)
    run(watch, auditor, [0.5, 4.0, 9.0])
    assert watch.waits is not None and watch.waits.startswith("for 24 comparisons") and watch.ended is None
    later = OnlineWatch(GuardSection(), auditor)
    later.state.clear()
    later.state.update(json.loads(json.dumps(watch.state)))  # as a checkpoint keeps it
    later.resume()
    assert later.waits == watch.waits
    auditor.judged, auditor.kl = True, 9.0
    [said] = later.resume()
    assert (
        later.waits is None
        and later.ended is not None
        and said in later.ended
        and None not in later.own["audits"][0]["won"]
    )


def test_a_resumed_watch_goes_on_as_it_would_have() -> None:
    kls, limits = [0.2 * n * n for n in range(9)], GuardSection(audit_sure=0.98)
    whole, half = OnlineWatch(limits, Made(cost=0.8)), OnlineWatch(limits, Made(cost=0.8))
    run(whole, whole.auditor, kls)  # type: ignore[arg-type]
    for step, kl in enumerate(kls[:4]):
        half.auditor.kl = kl  # type: ignore[union-attr]
        half.look({}, answered(step, kl=kl, total=9))
    rest = OnlineWatch(limits, half.auditor)
    kept = copy.deepcopy(json.loads(json.dumps(half.state)))
    rest.state.clear()
    rest.state.update(kept)
    rest.resume()
    for step, kl in enumerate(kls[4:], 4):
        if rest.ended is None:
            rest.auditor.kl = kl  # type: ignore[union-attr]
            rest.look({}, answered(step, kl=kl, total=9))
    assert rest.state == json.loads(json.dumps(whole.state))


def test_while_the_critic_warms_up_nothing_is_compared_with() -> None:
    watch = OnlineWatch(GuardSection())
    watch.look({}, Signal(frozen=True, answers=answered(texts=REFUSING).answers))
    assert watch.own["first"] == {}


def test_a_checkpoint_of_before_there_was_a_watch_is_resumed() -> None:
    watch = OnlineWatch(GuardSection(), Made())
    watch.state.clear()
    watch.state.update({"held": {}, "warned": {}})
    watch.resume()
    assert watch.look({}, answered())[1] is None and watch.ended is None and watch.own["first"]
