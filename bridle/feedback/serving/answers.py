"""What a served model answered to whom, and how it was chosen: kept of users who agreed to it, as it is served.

    how = Choice("current", propensity=0.8, conversation="c-17")
    kept = keep_answer(store, user, prompt, completion, how, public_id=new_id("chatcmpl"))      # None: the user has not agreed
    find_answer(store, user, kept.id)

The server, never the client, knows what an id means: which prompt, weights, arm and side. An id of another user is as unknown as one that
never was. Prompts go into the split "served", which nothing is trained on until `draw_prompts` takes them.
"""

import math
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import sqlalchemy as sa

from bridle.core.errors import DataError
from bridle.core.records import Completion, Prompt
from bridle.feedback.importing.files.row import is_utf8
from bridle.feedback.serving.consent import has_agreed, hold_user
from bridle.feedback.store import tables
from bridle.feedback.store.reading import SERVING, excluded
from bridle.feedback.store.rows import completion_of
from bridle.feedback.store.store import Store, completion_keys, insert_new

SERVED = "served"  # the split of their prompts
Arm = Literal["current", "previous", "candidate"]


@dataclass(frozen=True)
class Choice:
    """How the server chose an answer. `arm`: which model gave it; `propensity`: the probability with which this arm, or of a comparison
    this pair of arms, was chosen; `place`: 0 where it is displayed first of two, 1 second, None alone. `acquisition`: "random" where the
    turn belongs to the small share whose arms were drawn uniformly, for win rates without bias."""

    arm: Arm
    propensity: float
    place: int | None = None
    acquisition: Literal["random", "informative"] = "informative"
    conversation: str | None = None


@dataclass(frozen=True)
class ServedAnswer:
    """An answer as it was served. The completion has its weights' stamp; `sampling` and `sum_logprob` (nats) are this one's own."""

    id: str
    user: str
    completion: Completion
    choice: Choice
    sampling: Mapping[str, Any]
    sum_logprob: float | None
    at: str


def new_id(kind: str) -> str:
    """An id that nobody guesses, such as chatcmpl-5b…"""
    return f"{kind}-{secrets.token_hex(16)}"


def keep_answer(
    store: Store, user: str, prompt: Prompt, completion: Completion, choice: Choice, *, public_id: str | None = None
) -> ServedAnswer | None:
    """Keep what a user asked and was answered; None, and nothing is kept, where they have not agreed to it, or one of the two texts was
    taken down. DataError: the answer is to another prompt, the choice is none, or the id is taken."""
    if completion.prompt_id != prompt.id:
        raise DataError(
            f"the answer is to prompt {completion.prompt_id[:12]}, but the prompt given is {prompt.id[:12]}"
        )
    if not 0 < choice.propensity <= 1 or choice.place not in (None, 0, 1):
        raise DataError(
            f"{choice} cannot be how an answer was chosen: its propensity is in (0, 1], its place 0, 1 or None"
        )
    require_storable([*(message.content for message in prompt.messages), completion.text])
    with store.transaction() as one, one.writing() as connection:
        if not hold_user(connection, user) or not has_agreed(connection, user):
            return None
        if is_gone_text(connection, [prompt.id, completion.id]):
            return None
        there = sa.select(tables.prompt.c.id).where(tables.prompt.c.sha256 == prompt.id)
        if connection.execute(there).first() is None:
            one.add_prompts([Prompt(prompt.messages)], split=SERVED, source=SERVING)
        one.add_completions([completion], source=SERVING)
        key = completion_keys(connection, [completion])[completion.id, completion.weight_stamp]
        total = math.fsum(completion.sampled_logprobs) if completion.sampled_logprobs else None
        row = {
            "public_id": public_id or new_id("chatcmpl"),
            "labeler": user,
            "completion_id": key,
            "sum_logprob": total,
        }
        row |= asdict(choice) | {"sampling": dict(completion.sampling)}
        if not insert_new(connection, tables.served, [row]):
            raise DataError(f"the id {str(public_id)[:100]!r} is another answer's already; draw one with new_id")
        return answer_of(connection, user, str(row["public_id"]))


def find_answer(store: Store, user: str, public_id: str) -> ServedAnswer:
    """DataError where this user was served none of this id, or it was taken down."""
    with store.reading() as connection:
        return answer_of(connection, user, public_id)


def answer_of(connection: sa.Connection, user: str, public_id: str) -> ServedAnswer:
    served, answer = tables.served.c, tables.completion.c
    columns: list[sa.ColumnElement[Any]] = [answer.weight_stamp, answer.sampling, served.created_at]
    columns += [served[name].label(f"served_{name}") for name in ("public_id", "labeler", "sampling", "sum_logprob")]
    columns += [served[name] for name in ("arm", "propensity", "place", "acquisition", "conversation")]
    columns += [answer[name] for name in ("prompt_sha256", "text", "token_ids", "sampled_logprobs", "finish_reason")]
    query = sa.select(*columns).select_from(tables.served)
    query = query.join(tables.completion).where(served.public_id == public_id, served.labeler == user)
    query = query.where(answer.content_sha256.not_in(excluded("text")), answer.prompt_sha256.not_in(excluded("text")))
    row: Any = connection.execute(query).one_or_none()
    if row is None:
        raise not_known(public_id)
    choice = Choice(row.arm, row.propensity, row.place, row.acquisition, row.conversation)
    own = (row.served_sampling, row.served_sum_logprob, row.created_at)
    return ServedAnswer(row.served_public_id, row.served_labeler, completion_of(row), choice, *own)


def not_known(public_id: str) -> DataError:
    """The same whether it is nobody's, or another user's."""
    return DataError(f"there is no {public_id[:100]!r} here; send an id that was given to you, while it is kept")


def is_gone_text(connection: sa.Connection, hashes: Iterable[str]) -> bool:
    """Whether one of these texts was taken down, so that it is not kept again."""
    gone = excluded("text").where(tables.exclusion.c.target_id.in_(list(hashes)))
    return connection.execute(gone).first() is not None


def require_storable(texts: Iterable[str]) -> None:
    """DataError where no store can hold one of them."""
    if any("\0" in text or not is_utf8(text) for text in texts):
        raise DataError("a text holds a NUL or half a surrogate pair, which no store holds; leave these out")
