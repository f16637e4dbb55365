"""One turn of the wheel, `bridle loop`: what users say of what is served makes the next model, which is served only with proof.

    watch     what was promoted last: users' votes against it call an audit, which may take it back
    collect   how many judgements came since the reward model was made, and whether they show that it is stale
    refresh   train the reward model again, old judgements and new, where there are enough or it is stale
    train     a candidate from what is served, by its own answers and the reward model, or by what was said of answers
    gate      compare it with what is served until it is decided, and hold it to its bounds
    promote   to a share of the users, where it is shown to be better

Each step's outcome is a row of the store's account, with its numbers, so that a turn that was ended goes on behind the last of them, and
what was decided can be read and replayed. A step that was killed is done again: training resumes, comparisons that were made are not asked
again, and a promotion that was made is not made twice.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bridle.core.errors import NoUsableRows, UsageError, WaitingForLabels
from bridle.core.files import finite_or_none
from bridle.core.records import Completion
from bridle.evaluation.answers import Answered, kl_of, text_metrics
from bridle.evaluation.suite import Suite
from bridle.feedback.serving.promotion import PROMOTE, Served, promotion_steps, served_now
from bridle.feedback.serving.prompts import draw_prompts, drawn_before
from bridle.feedback.serving.turns import keep_step, steps_taken
from bridle.feedback.store.reading import SERVING
from bridle.guard.texts import distinct_ngrams, refusal_rate, repeated_share
from bridle.loop.comparing import Pairs, compare_until_decided, decided_by, fresh_pairs
from bridle.loop.gate import Bound, GateVerdict, judge_candidate, spent_on
from bridle.loop.promoting import promote_model, served_lines, version_named, withdraw_model
from bridle.loop.votes import live_votes
from bridle.models.policy import Policy
from bridle.recipe.offline import NO_REFERENCE
from bridle.recipe.services import LoopSection
from bridle.stages.evaluate import compare_on_suite, suite_in
from bridle.stages.methods import METHODS
from bridle.stages.reward import train_members
from bridle.stages.stale import judge_staleness
from bridle.stages.workspace import Work

BY = "loop"  # who does it, in the account
LAST = "promote"  # the step that ends a turn


@dataclass
class LoopTurn:
    """The turn that is under way: its number, and what came of the steps that were done."""

    work: Work
    number: int
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    before: dict[str, Any] | None = None  # what came of the last step of the turn before

    @property
    def candidate(self) -> str:
        return f"turn-{self.number:04d}"

    def step(self, name: str, do: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Do it, unless it was done; `decision` says in words what came of it."""
        if name not in self.done:
            found = finite_or_none(dict(do()))
            keep_step(self.work.store, self.number, name, found, by=BY)
            self.done[name] = found
        self.work.progress.say(f"turn {self.number}, {name}: {self.done[name]['decision']}")
        return self.done[name]


def run_turn(work: Work) -> dict[str, Any]:
    """Take the wheel one turn further, or up to where somebody must be waited for. UsageError where nothing is served yet."""
    with work.alone(BY):
        turn, now = turn_under_way(work), served_now(work.store)
        if now.content is None:
            raise UsageError("nothing is served yet, so nothing can be better; `bridle models promote sft` begins")

        suite = suite_of_loop(work)  # refused before an hour of training, not after it

        # 1. What was promoted last is watched; while too few have voted nothing is tried beside it.
        turn.step("watch", lambda: watch(work, turn))

        # 2. What users and labelers said since the reward model was made.
        collected = turn.step("collect", lambda: collect(work, turn))

        # 3. The reward model learns from all that there is.
        turn.step("refresh", lambda: refresh(work, collected))

        # 4. A candidate practises on it, or learns from the comparisons themselves.
        turn.step("train", lambda: train_candidate(work, turn))

        # 5. It is compared with what is served, and held to its bounds.
        compared = turn.step("gate", lambda: pass_gate(work, turn, suite))

        # 6. It is served only with proof.
        turn.step(LAST, lambda: promote_proven(work, turn, compared))
        return {"turn": turn.number, "steps": turn.done, "served": asdict(served_now(work.store))}


def turn_under_way(work: Work) -> LoopTurn:
    """The last one, where it is not finished; else the next."""
    rows = steps_taken(work.store)
    number = max((turn for turn, _, _ in rows), default=1)
    if any(turn == number and step == LAST for turn, step, _ in rows):
        number += 1
    before = next((found for turn, step, found in reversed(rows) if turn == number - 1 and step == LAST), None)
    return LoopTurn(work, number, {step: found for turn, step, found in rows if turn == number}, before)


def known_by_now(work: Work) -> dict[str, Any]:
    """What a next turn would build on: how many judgements there are, of whomever, and what is served."""
    return {"given": sum(work.store.counts()["judgements"].values()), "served": served_now(work.store).content}


# ------------------------------------------------------------------------------------------------------------- watching


def watch(work: Work, turn: LoopTurn) -> Mapping[str, Any]:
    """Users' votes on what was promoted last, against what was served before it or is served beside it. An alarm calls for an audit by
    those who decide, and the audit decides; without one, a candidate that enough have met is served to all. WaitingForLabels until then."""
    section, now = work.recipe.loop, served_now(work.store)
    new, old = (now.candidate, now.content) if now.candidate else (now.content, now.before[-1] if now.before else None)
    if new is None or old is None:
        return {"decision": "nothing was promoted that could be worse"}
    wins = live_votes(work.store, new, old)
    alpha = spent_on(len(promotion_steps(work.store)), section.level)
    votes = judge_candidate(wins, alpha=alpha, most=max(section.votes, len(wins), 1))
    found: dict[str, Any] = {"version": new, "against": old, "votes": asdict(votes)}
    if why := alarm_of(work, new, old, votes, len(wins)):
        audit, asked = audit_versions(work, new, old, f"audit-turn-{turn.number}", alpha)
        found |= {"audit": asdict(audit), **asked}
        if audit.decision != "better" and audit.rate < 0.5:
            withdraw_model(work, by=BY, of=new, details={"why": f"{why}; audit: {audit}"})
            return {**found, "decision": f"rolled back: {why}; the audit says {audit}"}
        return {**found, "decision": f"kept: {why}, and the audit finds it no worse: {audit}"}
    if now.candidate is None:
        return {**found, "decision": f"no alarm: {votes}"}
    if len(wins) < section.votes:
        raise WaitingForLabels(
            f"{len(wins)} of {section.votes} users' comparisons of the candidate with what is served are there (loop.votes); the same "
            "command goes on when they are, and `bridle models promote` or `rollback` decides without them"
        )
    promote_model(work, now.candidate, by=BY, details={"why": f"no alarm among users: {votes}"})
    return {**found, "decision": f"served to all: {votes}"}


def alarm_of(work: Work, new: str, old: str, votes: GateVerdict, count: int) -> str:
    """Why those who decide should look at what was promoted; "" where nothing calls for it. Users' votes may; and what no gate let through,
    once `loop.votes` of its users have compared, is held to the gate's bounds, for users may like what breaks them."""
    if votes.decision == "worse":
        return f"users' votes say {votes}"
    by = [step.by for step in promotion_steps(work.store) if step.action == PROMOTE and step.content == new]
    if BY in by or count < work.recipe.loop.votes:
        return ""
    policies = (policy_of(work, new), policy_of(work, old))
    pairs = fresh_pairs(work, policies, work.recipe.loop.audit, "bounds")
    broken = [str(bound) for bound in bounds_of(work, pairs, policies) if not bound.holds]
    return f"promoted by {by[-1]}, and out of the gate's bounds ({'; '.join(broken)})" if broken else ""


# ------------------------------------------------------------------------------------------------------ reward model


def collect(work: Work, turn: LoopTurn) -> Mapping[str, Any]:
    """Prompts of users join those to train on; how many judgements came since the reward model was made, and what the staleness test says
    of them."""
    section, drawn = work.recipe.loop, draw_users_prompts(work, turn)
    config = dict(dict(work.recipe)[METHODS[section.method].section])
    if config.get("online_rounds", 1) == 0 or "scored_by" not in config:
        words = f"{section.method} learns from what was said of answers, without a reward model"
        return {**drawn, "judgements": 0, "stale": False, "decision": words}
    if config["scored_by"] == "verifier":
        return {**drawn, "judgements": 0, "stale": False, "decision": f"{section.method} learns from checks alone"}
    if not (work.project.model("reward") / "config.json").is_file():
        return {**drawn, "judgements": 0, "stale": True, "decision": "there is no reward model yet"}
    try:
        found = judge_staleness(work)
    except NoUsableRows:
        return {
            **drawn,
            "judgements": 0,
            "stale": False,
            "decision": "no judgement has come since the reward model was made",
        }
    words = "it is stale" if found["stale"] else "no sign that it is stale"
    count = found["since"]
    kept = {"judgements": count} | {name: found[name] for name in ("stale", "stated", "measured", "evidence")}
    return {
        **drawn,
        **kept,
        "decision": f"{count:,} judgements since the reward model was made ({section.judgements:,} are enough); {words}",
    }


def draw_users_prompts(work: Work, turn: LoopTurn) -> dict[str, Any]:
    """Take prompts of users who agreed to it into the prompt set, where the recipe learns from users; once in a turn."""
    if SERVING not in work.recipe.data.sources:
        return {}
    by = f"{BY}, turn {turn.number}"
    if (before := drawn_before(work.store, by)) is not None:
        return before
    most, share = work.recipe.loop.prompts, work.recipe.data.heldout_share
    found = draw_prompts(work.store, most, work.recipe.seed, by=by, held_out_share=share)
    return {"drawn": len(found.prompts), "left_out": dict(found.left_out)}


def refresh(work: Work, collected: Mapping[str, Any]) -> Mapping[str, Any]:
    """Train the reward model on old judgements and new."""
    if not collected["stale"] and collected["judgements"] < work.recipe.loop.judgements:
        return {"decision": "the reward model stays"}
    result = train_members(work, reuse=True)
    accuracy = result.get("pair_accuracy")
    right = "" if accuracy is None else f", right on {accuracy:.1%} of held-out pairs"
    found = {name: result.get(name) for name in ("model", "judgements", "pair_accuracy")}
    return {**found, "decision": f"the reward model learnt from {result['judgements']:,} judgements{right}"}


# ---------------------------------------------------------------------------------------------------------- candidate


def train_candidate(work: Work, turn: LoopTurn) -> Mapping[str, Any]:
    """Learn from what is served on, held to it where the loss has a reference."""
    section, served = work.recipe.loop, served_name(work, served_now(work.store))
    method = METHODS[section.method]
    config = dict(dict(work.recipe)[method.section])
    title = f"Turn {turn.number}: a candidate from {served}, by {section.method.upper()}"
    held_to = {} if "reference" not in config or config.get("loss") in NO_REFERENCE else {"reference": served}
    settings = {"start": served, **held_to}
    result = method.train(work, name=turn.candidate, title=title, settings=settings, reuse=True)
    back = f", which the guard took back to step {result['rolled_back_to']}" if "rolled_back_to" in result else ""
    words = f"{turn.candidate} by {section.method} from {served}{back}"
    found: dict[str, Any] = {name: result[name] for name in ("model", "kl", "rolled_back_to") if name in result}
    return {**found, "name": turn.candidate, "from": served, "decision": words}


def served_name(work: Work, now: Served) -> str:
    """The folder in models/ of what is served, which its copy takes where its name was given to another since."""
    assert now.content is not None
    if name := work.registry.present().get(now.content):
        return name
    raise UsageError(
        f"models/{version_named(work, now.content).name} is another model now than the one that is served; put "
        f"references/{now.content[:16]}… back under that name, or promote what is there"
    )


# --------------------------------------------------------------------------------------------------------------- gate


def suite_of_loop(work: Work) -> Suite | None:
    """The regression suite that the recipe names; None where it names none."""
    section = work.recipe.loop
    if not section.suite and not section.suite_problems:
        return None
    return suite_in(work, work.project.folder / section.suite if section.suite else None, section.suite_problems)


def pass_gate(work: Work, turn: LoopTurn, suite: Suite | None) -> Mapping[str, Any]:
    """Is the candidate better than what is served, and is nothing else the worse for it?"""
    section, now = work.recipe.loop, served_now(work.store)
    content = work.registry.content(work.project.model(turn.candidate))
    if content == now.content:
        return {"passed": False, "decision": "the candidate is what is served: the guard went back to where it began"}
    number = 1 + sum(
        "verdict" in found for at, step, found in steps_taken(work.store) if step == "gate" and at < turn.number
    )
    assert now.content is not None
    alpha, study = spent_on(number, section.level), f"gate-turn-{turn.number}"
    policies = (policy_of(work, content), policy_of(work, now.content))
    pairs = fresh_pairs(work, policies, section.comparisons, study)
    bounds, on_suite = bounds_of(work, pairs, policies), dict[str, Any]()
    if suite is not None:
        on_suite = compare_on_suite(work, policies, suite, section.suite_answers, f"suite-{study}")
        bounds += suite_bounds(on_suite, section.suite_margin)
    verdict, asked = compare_until_decided(
        pairs, decided_by(work, study), alpha=alpha, most=section.comparisons, bounds=bounds
    )
    found: dict[str, Any] = {"version": content, "against": now.content}
    found |= {"passed": verdict.decision == "better", "candidates": number, "verdict": asdict(verdict), **asked}
    found |= {"bounds": {bound.name: bound.value for bound in bounds}} | ({"suite": on_suite} if on_suite else {})
    return {**found, "decision": f"{verdict}{worse_words(on_suite)}"}


def audit_versions(work: Work, new: str, old: str, study: str, alpha: float) -> tuple[GateVerdict, dict[str, Any]]:
    """Those who decide on two versions, by fresh answers of both."""
    most = work.recipe.loop.audit
    pairs = fresh_pairs(work, (policy_of(work, new), policy_of(work, old)), most, study)
    return compare_until_decided(pairs, decided_by(work, study), alpha=alpha, most=most)


def suite_bounds(found: Mapping[str, Any], margin: float) -> list[Bound]:
    """No worse than by the margin, as far as the interval shows; and nothing that always passed may always fail."""
    return [Bound("suite_low", found["low"], at_least=-margin), Bound("suite_lost", found["lost"], at_most=0)]


def worse_words(on_suite: Mapping[str, Any]) -> str:
    """Which checks of the suite got worse, the worst first; where none did, nothing."""
    worse = on_suite.get("worse", ())
    named = [f"{one['name']} ({one['served']} -> {one['candidate']} of {on_suite['answers']})" for one in worse[:3]]
    more = [f"and {len(worse) - 3} more"] if len(worse) > 3 else []
    return f"; worse on the suite: {', '.join(named + more)}" if worse else ""


def policy_of(work: Work, content: str) -> Policy:
    """A version's weights, from models/ or from where promotion keeps them."""
    name = work.registry.present().get(content)
    return work.read_policy(work.project.model(name) if name else work.project.reference(content), content)


def bounds_of(work: Work, pairs: Pairs, policies: tuple[Policy, Policy]) -> list[Bound]:
    """What must not have become worse, by what can be seen of the answers themselves; no rubric, and nobody's taste."""
    section: LoopSection = work.recipe.loop
    new, old = (seen_in(pairs, answers) for answers in (pairs.first, pairs.second))
    kl = kl_of(Answered(pairs.prompts, pairs.first), *policies, work.device)[0]
    longer, varied = (new[name] / old[name] if old[name] else math.nan for name in ("length", "distinct"))
    return [
        Bound("kl", kl, at_most=section.max_kl),
        Bound("length_ratio", longer, at_most=section.max_length_ratio),
        Bound("distinct_share", varied, at_least=section.min_distinct_share),
        *(
            Bound(f"{name}_rise", new[name] - old[name], at_most=section.max_rise)
            for name in ("cut_off", "refusals", "repeats")
        ),
    ]


def seen_in(pairs: Pairs, answers: Sequence[Completion]) -> dict[str, float]:
    found = text_metrics(Answered(pairs.prompts, list(answers)))
    ids = [one.token_ids for one in answers]
    return {
        "length": found["length"],
        "cut_off": found["cut_off"],
        "distinct": distinct_ngrams(ids, 2) or 0.0,
        "repeats": repeated_share(ids) or 0.0,
        "refusals": refusal_rate(pairs.prompts, answers).rate,
    }


def promote_proven(work: Work, turn: LoopTurn, compared: Mapping[str, Any]) -> Mapping[str, Any]:
    """Serve what passed to a share of the users first; of what did not, what was known by then."""
    if not compared["passed"]:
        return {"decision": f"not promoted: {compared['decision']}", "known": known_by_now(work)}
    share = work.recipe.loop.share
    content = work.registry.content(work.project.model(turn.candidate))  # the same weights may be known by another name
    promote_model(work, content, share=share, by=BY, details={"why": compared["decision"]})
    return {"decision": f"{turn.candidate} is served to {share:.0%} of the users", "share": share}


def turn_lines(work: Work, found: Mapping[str, Any]) -> list[str]:
    """For the terminal: each step and what came of it, then what is served."""
    lines = [f"turn {found['turn']}"]
    lines += [f"  {name:<8} {step['decision']}" for name, step in found["steps"].items()]
    return lines + served_lines(work, served_now(work.store))
