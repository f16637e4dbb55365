"""Simulated users of a served model, on the playground: they ask, see two answers side by side, and pick by their taste.

They are the world's labelers when nobody pays them: they look less closely, and like flattery and length more. What they say is kept by the
functions that keep real users' votes, so a turn of the wheel meets the same rows.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bridle.compute.randomness import derived_seed
from bridle.core.errors import UsageError
from bridle.core.records import Completion, Prompt
from bridle.feedback.serving.answers import Arm, Choice, keep_answer
from bridle.feedback.serving.comparisons import Ballot, Pick, keep_pair, vote
from bridle.feedback.serving.consent import add_user, consent_text, publish_consent, set_consent
from bridle.feedback.serving.promotion import served_now
from bridle.feedback.store.store import Store
from bridle.generation.engine import answer_prompts
from bridle.generation.sampling import Sampling
from bridle.loop.turn import policy_of
from bridle.playground.labelers import Labeler, rank
from bridle.stages.data import PlaygroundData
from bridle.stages.workspace import Work

USERS = 40
CARE, FLATTERED, LONGER = 0.5, 3.0, 3.0  # of a labeler's skill, and of their taste for flattery and for length
COMPARED_WITH_ANOTHER = 0.5  # of the turns, where another version is there to compare with; else two answers of one
CONSENT_TEXT = {
    "en": "What you ask and choose is kept, and the model learns from it. You can take it back at any time."
}


@dataclass(frozen=True)
class Visit:
    """One user's turn: what they ask, and which arm answers first and second."""

    user: Labeler
    handle: str
    prompt: Prompt
    arms: tuple[Arm, Arm]
    propensity: float


def visit(work: Work, count: int, label: str) -> dict[str, Any]:
    """So many turns of simulated users, two answers each, and what they picked. The same label brings the same users and questions."""
    data, store = work.data, work.store
    if not isinstance(data, PlaygroundData):
        raise UsageError("simulated users know the playground alone; real ones come to `bridle serve`")
    versions = arms_now(store)
    rng = random.Random(f"{work.recipe.seed}/crowd/{label}")
    users = [(user, handle_of(store, user.name, work.recipe.seed)) for user in crowd_of(data)]
    visits = [visit_of(rng, data, rng.choice(users), versions) for _ in range(count)]
    answers = {
        (side, at): one
        for side in range(2)
        for arm in versions
        for at, one in answers_by(work, versions[arm], visits, arm, side, label).items()
    }
    kept = 0
    for at, turn in enumerate(visits):
        kept += keep_visit(
            store, data, turn, (answers[0, at], answers[1, at]), random.Random(f"{label}/{at}"), f"{label}-{at}"
        )
    return {"visits": count, "votes": kept, "versions": {arm: content[:16] for arm, content in versions.items()}}


def arms_now(store: Store) -> dict[Arm, str]:
    """What is served, and the version beside it or before it, where there is one."""
    now = served_now(store)
    if now.content is None:
        raise UsageError("nothing is served yet, so nobody can be answered; `bridle models promote sft` begins")
    found: dict[Arm, str] = {"current": now.content}
    if now.candidate is not None:
        found["candidate"] = now.candidate
    elif now.before:
        found["previous"] = now.before[-1]
    return found


def crowd_of(data: PlaygroundData) -> list[Labeler]:
    people = data.world.spec.labelers
    return [
        person.model_copy(
            update={
                "name": f"{person.name} {number}",
                "skill": CARE * person.skill,
                "flattery_bias": FLATTERED * person.flattery_bias,
                "length_bias": LONGER * person.length_bias,
            }
        )
        for number, person in zip(range(USERS), people * USERS, strict=False)
    ]


def handle_of(store: Store, name: str, seed: int) -> str:
    """A user who agreed to what is kept."""
    if consent_text(store) is None:
        publish_consent(store, CONSENT_TEXT)
    handle = add_user(store, hashlib.sha256(f"{seed}/{name}".encode()).hexdigest())
    text = consent_text(store, "en")
    assert text is not None
    set_consent(store, handle, "agreed", text=text.sha256)
    return handle


def visit_of(rng: random.Random, data: PlaygroundData, who: tuple[Labeler, str], versions: dict[Arm, str]) -> Visit:
    families = data.world.spec.families
    family = rng.choices(list(families), [families[name].weight for name in families])[0]
    prompt = data.world.prompt(rng, family)
    other = next((arm for arm in versions if arm != "current"), None)
    if other is None:
        return Visit(*who, prompt, ("current", "current"), 1.0)
    if rng.random() >= COMPARED_WITH_ANOTHER:
        return Visit(*who, prompt, ("current", "current"), 1 - COMPARED_WITH_ANOTHER)
    arms: tuple[Arm, Arm] = ("current", other) if rng.random() < 0.5 else (other, "current")
    return Visit(*who, prompt, arms, COMPARED_WITH_ANOTHER)


def answers_by(
    work: Work, content: str, visits: Sequence[Visit], arm: Arm, side: int, label: str
) -> dict[int, Completion]:
    """Of each visit that this arm answers on this side."""
    asked = [at for at, turn in enumerate(visits) if turn.arms[side] == arm]
    if not asked:
        return {}
    policy, section = policy_of(work, content), work.recipe.sampling
    work.engine.load(policy)
    sampling = Sampling(section.max_new_tokens, section.temperature, section.top_p, section.top_k)
    seed = derived_seed(work.recipe.seed, f"crowd-{label}", side)
    found = answer_prompts(work.engine, policy, [visits[at].prompt for at in asked], sampling, seed=seed, samples=asked)
    return dict(zip(asked, found, strict=True))


def keep_visit(
    store: Store,
    data: PlaygroundData,
    turn: Visit,
    answers: tuple[Completion, Completion],
    rng: random.Random,
    key: str,
) -> bool:
    """Keep both answers, and the pick; False where they were the same, which nobody is asked about, or hold a NUL, which
    no store keeps."""
    if answers[0].stripped == answers[1].stripped or any("\0" in one.text for one in answers):
        return False
    sides = [
        keep_answer(store, turn.handle, turn.prompt, one, Choice(turn.arms[side], turn.propensity, side))
        for side, one in enumerate(answers)
    ]
    pair = keep_pair(store, turn.handle, sides[0].id, sides[1].id) if sides[0] and sides[1] else None
    if pair is None:
        return False
    scores = data.score([turn.prompt] * 2, list(answers), "users")
    ranking = rank(turn.user, rng, turn.prompt, [one.stripped for one in answers], scores, [0, 1], 0)
    picks: tuple[Pick, Pick] = ("first", "second")
    pick: Pick = "tie" if len(ranking) == 1 else picks[ranking[0][0]]
    return vote(store, turn.handle, pair.id, Ballot(pick, key=key)) is not None
