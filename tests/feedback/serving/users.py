"""Users of a served model who agreed to what is kept, and what they are served."""

from __future__ import annotations

from bridle.core.records import Completion, FinishReason, Prompt
from bridle.feedback.serving.answers import Choice, ServedAnswer, keep_answer
from bridle.feedback.serving.comparisons import ServedPair, keep_pair
from bridle.feedback.serving.consent import add_user, consent_text, publish_consent, set_consent
from bridle.feedback.store.store import Store


def agreeing(store: Store, name: str) -> str:
    """A user whose token follows from a name, here alone."""
    publish_consent(store, {"en": "We keep what you say, to train models.", "zh": "我们保存您说的话，用来训练模型。"})
    user = add_user(store, f"{name}:{'0' * 32}")
    text = consent_text(store, "en")
    assert text is not None
    set_consent(store, user, "agreed", text=text.sha256)
    return user


def answer_to(prompt: Prompt, text: str, seed: int = 1, stamp: str = "ppo+9") -> Completion:
    ids = tuple(text.encode()[:3])
    return Completion(prompt.id, text, ids, (-0.5,) * len(ids), FinishReason.STOP, stamp, {"seed": seed})


def serve(store: Store, user: str, prompt: Prompt, text: str, choice: Choice | None = None) -> ServedAnswer:
    kept = keep_answer(store, user, prompt, answer_to(prompt, text), choice or Choice("current", 0.8))
    assert kept is not None
    return kept


def serve_pair(store: Store, user: str, prompt: Prompt, texts: tuple[str, str], propensity: float = 0.8) -> ServedPair:
    """The first text is displayed first."""
    both = [serve(store, user, prompt, text, Choice("current", propensity, place)) for place, text in enumerate(texts)]
    pair = keep_pair(store, user, both[0].id, both[1].id)
    assert pair is not None
    return pair
