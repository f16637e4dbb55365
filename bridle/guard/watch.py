"""The watch over a run that learns from its own answers: it audits with fresh comparisons, sees what changes, acts, and knows the way back.

At each logged step   signals of the step's answers, and rules over them, each with an action of the recipe (`guard.on_…`)
When √KL has grown    an audit: some answers of the policy as it is now are compared with the reference's, by people or simulated ones;
                      `guard/stopping.py` tells what a nat costs, which checkpoint is best, and whether an earlier one is better
Actions               note · warn · raise beta · stop (the policy as it is) · roll back (to the best audited checkpoint)

Rules over signals act on what has held for some logged steps in a row, and once; what they compare with is the run's own first step. All
that was seen is state: it lies in the checkpoints, and a resumed run goes on as it would have. Who is asked, and how weights are kept,
is handed in (`Auditor`); what cannot learn at all is `guard/health.py`'s.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from bridle.core.errors import DataError
from bridle.core.text import beginning_of
from bridle.guard.health import EARLY, Health
from bridle.guard.stopping import Audited, judge_checkpoints
from bridle.guard.texts import compression_ratio, distinct_ngrams, refusal_rate, repeated_share, words_of_refusal
from bridle.maths.statistics import mean_and_se
from bridle.project.run import Signal, StepAnswers
from bridle.recipe.watching import Action, GuardSection

Signals = dict[str, float]
ENDING: tuple[Action, ...] = ("stop", "roll back")
RAISED = 1.5  # by which "raise beta" multiplies the KL weight, each time
CHANCE = 0.5  # a run that nothing stopped keeps an earlier checkpoint that is better with more than this probability
SAMPLES, ANSWER = 2, 2000  # answers that an event shows, and characters of each


class Panel(NamedTuple):
    """The policy as it is now on the audit's prompts: the mean log-odds of beating the reference that the calibrated reward states, and
    its KL in nats, both with their standard errors, and rows {"prompt", "answer"} to look at."""

    stated: float
    stated_se: float
    kl: float
    kl_se: float
    rows: list[dict[str, str]]


class Comparisons(NamedTuple):
    """Comparisons of an audit: for each, the log-odds stated of this pair, and the item that people judge; "" where both answers were
    the same, which is a tie."""

    stated: list[float]
    items: list[str]


class Auditor(Protocol):
    """Who is asked, and where weights are kept. `comparisons`: what the budget allows in all; `noise`: share of judgements that slip;
    `from_reference`: the run began as the reference, to which it can go back."""

    @property
    def comparisons(self) -> int: ...

    @property
    def noise(self) -> float: ...

    @property
    def from_reference(self) -> bool: ...

    def beginning(self) -> list[dict[str, str]]:
        """The reference's answers to the prompts of `Panel.rows`."""

    def look(self, step: int) -> Panel: ...

    def ask(self, step: int, count: int) -> Comparisons:
        """After `look`."""

    def outcomes(self, items: Sequence[str]) -> dict[str, float | None]:
        """By item 1 where the policy's answer was preferred, 0, one half for a tie; None where nobody has judged it yet. One that nobody
        will judge, because who was asked could not or because it is excluded, is left out."""

    def keep(self, step: int) -> None:
        """The policy's weights as they are."""

    def forget(self, step: int) -> None: ...

    def report(self, found: Mapping[str, Any]) -> None:
        """Keep what the watch knows where people look for it."""


# ------------------------------------------------------------------------------------------------ signals of a step


def signals_of(answers: StepAnswers) -> Signals:
    """What a step's answers show, without another pass of any model."""
    ids = [one.token_ids for one in answers.completions]
    texts = [one.text for one in answers.completions]
    found = {
        "proxy": mean_and_se(answers.scores)[0],
        "kl": answers.kl,
        "entropy": answers.entropy,
        "refusals": refusal_rate(answers.prompts, answers.completions).rate,
        "repeats": repeated_share(ids),
        "distinct": distinct_ngrams(ids, 2),
        "compression": compression_ratio(texts),
        "length": mean_and_se([len(one) for one in ids])[0],
        "disagreement": answers.disagreement,
    }
    return {name: float(value) for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Rule:
    """`holds`: of a step's signal, the first step's, and the setting `limit`. `words` say what has changed, with both by name. `shows`
    picks the answers that an event shows: those it is greatest of."""

    name: str
    signal: str
    limit: str
    holds: Callable[[float, float, float], bool]
    words: str
    shows: Callable[[StepAnswers, int], float] = lambda answers, at: 0.0


RULES = (
    Rule(
        "refusals", "refusals", "max_refusals_rise", lambda now, first, limit: now - first > limit,
        "the policy refuses {now:.0%} of the prompts, where it refused {first:.0%} at first; look at whether these should be refused, and "
        "compare some of its refusals, which the reward model may never have seen",
        lambda answers, at: float(words_of_refusal(answers.prompts[at], answers.completions[at])),
    ),
    Rule(
        "repeats", "repeats", "max_repeats_rise", lambda now, first, limit: now - first > limit,
        "answers repeat themselves: the longest repeat is {now:.0%} of an answer, where it was {first:.0%} at first",
        lambda answers, at: repeated_share([answers.completions[at].token_ids]) or 0.0,
    ),
    Rule(
        "sameness", "distinct", "min_distinct_share", lambda now, first, limit: now < limit * first,
        "answers grow alike: {now:.2f} of their pairs of tokens are distinct, where {first:.2f} were at first",
    ),
    Rule(
        "length", "length", "max_length_ratio", lambda now, first, limit: now > limit * first or now * limit < first,
        "answers have {now:.0f} tokens, where they had {first:.0f} at first",
        lambda answers, at: float(len(answers.completions[at].token_ids)),
    ),
    Rule(
        "entropy", "entropy", "min_entropy_share", lambda now, first, limit: now < limit * first,
        "the policy has {now:.2f} nats a token left of {first:.2f} at first",
    ),
    Rule(
        "disagreement", "disagreement", "max_disagreement_ratio", lambda now, first, limit: now > limit * first,
        "the reward models disagree by {now:.2f}, where they did by {first:.2f} at first: the policy goes where nobody knows",
    ),
    Rule(
        "kl", "kl", "max_kl", lambda now, first, limit: now > limit,
        "the policy is {now:.0f} nats an answer from its reference, farther than guard.max_kl",
    ),
)  # fmt: skip

CHANGES = {  # what is worth naming when an audit acts: how much two values differ, and how they are written
    "refusals": (lambda now, first: abs(now - first) > 0.1, "refusals {first:.2f} → {now:.2f}"),
    "repeats": (lambda now, first: abs(now - first) > 0.1, "longest repeat {first:.2f} → {now:.2f} of an answer"),
    "distinct": (lambda now, first: now < 0.7 * first, "distinct pairs of tokens {first:.2f} → {now:.2f}"),
    "length": (lambda now, first: not 0.67 < now / max(first, 1e-9) < 1.5, "length {first:.0f} → {now:.0f} tokens"),
    "entropy": (lambda now, first: now < 0.5 * first, "entropy {first:.2f} → {now:.2f} nats a token"),
}


def changes_in_words(now: Mapping[str, float], first: Mapping[str, float]) -> str:
    """In words; empty where nothing has changed much."""
    both = [(name, now[name], first[name]) for name in CHANGES if name in now and name in first]
    return ", ".join(
        CHANGES[name][1].format(now=value, first=before)
        for name, value, before in both
        if CHANGES[name][0](value, before)
    )


# ------------------------------------------------------------------------------------------------ the watch


def nothing_seen() -> dict[str, Any]:
    """The watch's state as a run begins."""
    return {
        "first": {}, "held": {}, "acted": [], "warned": {}, "events": [], "kl_factor": 1.0, "audits": [], "asked": 0,
        "ended": None, "waits": None, "roll_back": False, "answers": {}, "deaf": "",
    }  # fmt: skip


class OnlineWatch:
    """A `project/run.py: Watch`. Without an auditor there are no audits, and rules over signals alone."""

    def __init__(self, limits: GuardSection, auditor: Auditor | None = None) -> None:
        self.limits, self.auditor, self.health = limits, auditor, Health(limits)
        self.state = self.health.state

    @property
    def own(self) -> dict[str, Any]:
        """Restoring puts another state there, and that of an earlier version has none of it."""
        return self.state.setdefault("guard", nothing_seen())

    @property
    def ended(self) -> str | None:
        found: str | None = self.own["ended"]
        return found

    @property
    def waits(self) -> str | None:
        found: str | None = self.own["waits"]
        return found

    @property
    def kl_factor(self) -> float:
        return float(self.own["kl_factor"])

    def warnings(self) -> dict[str, str]:
        return self.health.warnings() | self.own["warned"]

    def look(self, metrics: Mapping[str, Any], signal: Signal) -> tuple[list[str], str | None]:
        warnings, stop = self.health.look(metrics, signal)
        if signal.answers is None or signal.frozen:
            return warnings, stop
        answers = signal.answers
        now = signals_of(answers)
        first = self.own["first"] = self.own["first"] or now
        warnings += [words for rule in RULES if (words := self.apply(rule, now, first, answers)) is not None]
        if self.auditor is not None and not self.own["deaf"]:
            try:
                warnings += self.audit(self.auditor, answers, now)
            except DataError as error:  # it cannot be asked; the rules over signals go on
                self.own["deaf"] = str(error)
                warnings.append(f"no more audits: {error}")
        return warnings, stop

    def resume(self) -> list[str]:
        return self.settle(self.auditor) if self.auditor is not None and self.waits is not None else []

    # ------------------------------------------------------------------------------------------------ rules over signals

    def apply(self, rule: Rule, now: Signals, first: Signals, answers: StepAnswers) -> str | None:
        """Act where a rule has held for some logged steps in a row; what is to be said, if anything."""
        held, action = self.own["held"], self.limits.actions[rule.name]
        if action == "off" or rule.signal not in now or rule.signal not in first:
            return None
        if not rule.holds(now[rule.signal], first[rule.signal], dict(self.limits)[rule.limit]):
            held.pop(rule.name, None)
            return None
        held[rule.name] = held.get(rule.name, 0) + 1
        if held[rule.name] % EARLY or (rule.name in self.own["acted"] and action != "raise beta"):
            return None
        numbers = {"now": now[rule.signal], "first": first[rule.signal]}
        best_shown = sorted(range(len(answers.completions)), key=lambda at: -rule.shows(answers, at))[:SAMPLES]
        rows = [question_and_answer(answers.prompts[at].text, answers.completions[at].text) for at in best_shown]
        return self.act(rule.name, action, rule.words.format_map(numbers), answers.step + 1, numbers, rows)

    def act(
        self, name: str, action: Action, words: str, step: int, numbers: Mapping[str, float], rows: list[dict[str, str]]
    ) -> str | None:
        """Note an event, and do what its action says; the words, where they are to be said."""
        if action == "raise beta":
            self.own["kl_factor"] *= RAISED
            words += f"; beta is raised to {self.own['kl_factor']:.2f} times the recipe's"
        self.own["events"].append(
            {"step": step, "signal": name, "action": action, "words": words, "numbers": dict(numbers), "answers": rows}
        )
        self.own["acted"].append(name)
        if action == "note":
            return None
        self.own["warned"][name] = words
        if action in ENDING and self.ended is None:
            self.own["ended"], self.own["roll_back"] = f"the guard ({name}): {words}", action == "roll back"
        return words

    # ------------------------------------------------------------------------------------------------ audits

    def audit(self, auditor: Auditor, answers: StepAnswers, now: Signals) -> list[str]:
        """Where one is due: look at the policy as it is after the step, ask, and judge if all is answered."""
        audits, done = self.own["audits"], answers.step + 1
        if not audits:
            self.own["answers"] |= {"start": {"step": 0, "rows": auditor.beginning()}}
        gone = max(0.0, answers.kl) ** 0.5 - (max(0.0, audits[-1]["kl"]) ** 0.5 if audits else 0.0)
        last = done == answers.total or self.ended is not None
        if gone < self.limits.audit_every and not last:
            return []
        panel = auditor.look(done)
        count = min(self.limits.audit_size, auditor.comparisons - self.own["asked"])
        asked = auditor.ask(done, count) if count > 0 else Comparisons([], [])
        self.own["asked"] += sum(item != "" for item in asked.items)
        auditor.keep(done)
        won = [None if item else 0.5 for item in asked.items]
        audits.append(
            {"step": done, "kl": panel.kl, "kl_se": panel.kl_se, "stated": panel.stated, "stated_se": panel.stated_se,
             "pairs": asked.stated, "items": asked.items,
             "won": won, "signals": now, "rows": panel.rows, "last": last}
        )  # fmt: skip
        return self.settle(auditor)

    def settle(self, auditor: Auditor) -> list[str]:
        """Take in what was answered, and judge once nothing of it is missing; what is to be said."""
        newest = self.own["audits"][-1]
        rows = list(zip(newest["pairs"], newest["items"], newest["won"], strict=True))
        reported = auditor.outcomes([item for _, item, won in rows if won is None])
        rows = [
            (pair, item, reported.get(item, won)) for pair, item, won in rows if won is not None or item in reported
        ]
        newest["pairs"], newest["items"], newest["won"] = ([row[part] for row in rows] for part in range(3))
        missing = newest["won"].count(None)
        self.own["waits"] = f"for {missing} comparisons of its audit: `bridle label` shows them" if missing else None
        if missing:
            return []
        found = self.judge(auditor)
        words = self.act_on(found, newest)
        likely = self.compared > 0 and found.past > CHANCE
        if newest["last"] and self.ended is None and likely and self.limits.on_audit == "roll back":
            self.own["roll_back"] = True
        self.drop(auditor, found)
        auditor.report(self.found(auditor, found))
        return words

    @property
    def compared(self) -> int:
        """In all audits."""
        return sum(len(one["pairs"]) for one in self.own["audits"])

    def judge(self, auditor: Auditor) -> Audited:
        """Every audited checkpoint, and first the reference where the run began as that."""
        audits = self.own["audits"]
        pairs, kl, won = (
            [pair for one in audits for pair in one["pairs"]],
            [one["kl"] for one in audits for _ in one["pairs"]],
            [won for one in audits for won in one["won"]],
        )
        begun = [0.0] * auditor.from_reference
        stated, error = ([*begun, *(one[name] for one in audits)] for name in ("stated", "stated_se"))
        far = [*begun, *(max(0.0, one["kl"]) for one in audits)]
        pairs_kl_won = (pairs, [max(0.0, one) for one in kl], won)
        return judge_checkpoints(stated, far, pairs_kl_won, noise=auditor.noise, stated_se=error)

    def act_on(self, found: Audited, newest: Mapping[str, Any]) -> list[str]:
        """What audits say by now, and what the recipe wants done about it."""
        audits, action = self.own["audits"], self.limits.on_audit
        for one, left in zip(audits, found.left[-len(audits) :], strict=True):
            one["left"], one["left_low"], one["left_high"] = left
        if (
            action == "off"
            or not self.compared  # then all is what was believed before
            or found.past < self.limits.audit_sure
            or (action != "raise beta" and "audit" in self.own["acted"])
        ):
            return []
        best = self.steps(found)[found.best]
        what = changes_in_words(newest["signals"], self.own["first"])
        words = (
            f"the checkpoint after step {best} is better than that after step {newest['step']} with a probability of {found.past:.2f}, by "
            f"{self.compared} fresh comparisons with the reference, of which it won "
            f"{sum(newest['won']):g} of the last {len(newest['won'])}" + (f"; what changed: {what}" if what else "")
        )
        numbers = {"past": found.past, "cost": found.cost, "kl": newest["kl"]}
        warning = self.act("audit", action, words, newest["step"], numbers, newest["rows"][:SAMPLES])
        return [] if warning is None else [warning]

    def steps(self, found: Audited) -> list[int]:
        """After which step each checkpoint was; 0: the reference, as which the run began."""
        return [0, *(one["step"] for one in self.own["audits"])][-len(found.left) :]

    def drop(self, auditor: Auditor, found: Audited) -> None:
        """Keep the weights of the best checkpoints, as far as is known, and of the newest."""
        audits = self.own["audits"]
        kept = [one for one in audits if not one.get("dropped")]
        for one in sorted(kept[:-1], key=lambda one: -one["left"])[self.limits.keep_audited - 1 :]:
            one["dropped"] = True
            auditor.forget(one["step"])

    # ------------------------------------------------------------------------------------------------ what is left of it

    @property
    def rolls_back_to(self) -> int | None:
        """The step whose checkpoint is to be kept in place of the last; None: the last. 0: where the run began."""
        if not self.own["roll_back"] or not self.own["audits"] or self.auditor is None:
            return None
        found, gone = self.judge(self.auditor), {one["step"] for one in self.own["audits"] if one.get("dropped")}
        there = [row for row in zip(self.steps(found), found.left, strict=True) if row[0] not in gone]
        best = max(there, key=lambda row: row[1].mean)[0]
        return None if best == self.own["audits"][-1]["step"] else best

    def found(self, auditor: Auditor, judged: Audited) -> dict[str, Any]:
        """As `watch.json` has it, which docs/guard.md describes."""
        audits, back, best_step = self.own["audits"], self.rolls_back_to, self.steps(judged)[judged.best]
        best, newest = next((one for one in audits if one["step"] == best_step), None), audits[-1]
        answers = {**self.own["answers"], "end": {"step": newest["step"], "rows": newest["rows"]}}
        if best is not None:
            answers["best"] = {"step": best["step"], "rows": best["rows"]}
        names = ("step", "kl", "kl_se", "stated", "left", "left_low", "left_high")
        rows = [
            {**{name: one[name] for name in names}, "compared": len(one["won"]), "wins": sum(one["won"])}
            for one in audits
        ]
        return {
            "audits": rows, "cost": judged.cost, "past": judged.past, "noise": auditor.noise,
            "best_step": best_step, "rolled_back_to": back, "ended": self.ended,
            "events": self.own["events"], "answers": answers,
        }  # fmt: skip


def question_and_answer(prompt: str, answer: str) -> dict[str, str]:
    return {"prompt": beginning_of(prompt, ANSWER), "answer": beginning_of(answer, ANSWER)}
