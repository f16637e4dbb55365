"""What users say of answers: thumbs, comments, better answers, flags, and which of two they prefer.

    POST /v1/feedback {"completion_id": "chatcmpl-…", "kind": "vote", "value": 1, "idempotency_key": "a1"}
    POST /v1/feedback {"comparison_id": "cmp-…", "kind": "preference", "value": "first", "idempotency_key": "a2"}

A preference names the two models, which ends voting on that comparison; sent again with its key it is the same vote.
"""

from dataclasses import replace
from functools import partial
from typing import Annotated, Literal, cast

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

from bridle.core.errors import DataError
from bridle.core.records import Completion
from bridle.feedback.serving.answers import find_answer, not_known
from bridle.feedback.serving.comparisons import PICKS, Ballot, Pick, ServedPair, find_pair, require_ballot, reveal, vote
from bridle.feedback.serving.reactions import Reaction, react, require_reaction
from bridle.feedback.store.store import Store
from bridle.feedback.store.versions import model_versions
from bridle.serve.chat.keeping import agreeing_user
from bridle.serve.chat.users import LONGEST_NAME, TheCaller
from bridle.serve.openai import TheDesk
from bridle.serve.problems import RequestProblem
from bridle.serve.replies import Json
from bridle.serve.scheduler import Scheduler

router = APIRouter(prefix="/v1")
Id = Annotated[str, Field(min_length=1, max_length=100)]


class FeedbackBody(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    kind: Literal["vote", "comment", "demonstration", "flag", "preference"]
    idempotency_key: Annotated[str, Field(min_length=1, max_length=64)]
    completion_id: Id | None = None
    comparison_id: Id | None = None
    value: StrictInt | Pick | None = None
    reason: Annotated[str, Field(max_length=40)] | None = None
    text: Annotated[str, Field(max_length=10_000)] | None = None
    early: bool | None = None
    user: Annotated[str, Field(max_length=LONGEST_NAME)] | None = None

    @model_validator(mode="after")
    def is_about_one(self) -> "FeedbackBody":
        about, other = self.completion_id, self.comparison_id
        if self.kind == "preference":
            about, other = other, about
        if about is None or other is not None:
            needed = "comparison_id" if self.kind == "preference" else "completion_id"
            raise ValueError(f"name what a {self.kind} is about in {needed}, and nothing else")
        return self

    @property
    def about(self) -> str:
        return self.comparison_id or self.completion_id or ""

    def ballot(self, early: bool) -> Ballot:
        if self.value not in PICKS:
            raise DataError(f"the value of a preference must be one of {', '.join(PICKS)}, but got {self.value!r}")
        if self.reason is not None:
            raise DataError("a preference has no reason; say why in text")
        ballot = Ballot(self.value, self.idempotency_key, early, self.text or "")
        require_ballot(ballot)
        return ballot

    def reaction(self) -> Reaction:
        if isinstance(self.value, str) or self.kind == "preference":
            raise DataError(f"the value of a vote is 1 or 0, but got {self.value!r}")
        value = cast(Literal[0, 1] | None, self.value)  # looked at in the next line
        reaction = Reaction(self.kind, self.idempotency_key, value, self.reason, self.text or "")
        require_reaction(reaction)
        return reaction


@router.post("/feedback", tags=["feedback"], summary="What a user says of an answer, or which of two they prefer")
async def feedback(desk: TheDesk, caller: TheCaller, body: FeedbackBody) -> Json:
    token = desk.user_token(caller, body.user)
    try:
        given: Ballot | Reaction = body.ballot(bool(body.early)) if body.kind == "preference" else body.reaction()
    except DataError as error:
        raise RequestProblem(400, str(error), param="value") from error
    if not body.about.isprintable() or not body.about.isascii():
        raise RequestProblem(404, str(not_known(body.about)), code="unknown_id")
    unended = await desk.keeper.wait_for_end(token, body.about)
    if isinstance(given, Ballot):
        given = replace(given, early=given.early or unended)
    call = partial(keep_feedback, token=token, about=body.about, given=given, cap=desk.settings.votes_per_day)
    kept, pair = await desk.keeper.ask(call)
    if kept:
        desk.metrics.kept.labels(body.kind).inc()
    found: Json = {"kept": True, "new": kept}
    if pair is not None:
        sides = {"first": pair.first.completion, "second": pair.second.completion}
        names = await desk.keeper.ask(version_names, desk.scheduler, list(sides.values()))
        found["models"] = dict(zip(sides, names, strict=True))
    return found


def keep_feedback(
    store: Store, *, token: str, about: str, given: Ballot | Reaction, cap: int
) -> tuple[bool, ServedPair | None]:
    """Whether it is new; and the comparison, whose models may be named now. Raises RequestProblem: 409 without consent, or where it cannot
    be said any more; 404 where this user was given nothing of this id."""
    user = agreeing_user(store, token)
    if user is None:
        raise not_kept()
    try:
        before = find_pair(store, user, about) if isinstance(given, Ballot) else None
        if before is None:
            find_answer(store, user, about)
    except DataError as error:
        raise RequestProblem(404, str(error), code="unknown_id") from error
    try:
        if isinstance(given, Ballot):
            if vote(store, user, about, given, cap=cap) is None:
                raise not_kept()
            pair = reveal(store, user, about)
            return not (before is not None and before.revealed), pair
        new = react(store, user, about, given, cap=cap)
    except DataError as error:
        raise RequestProblem(409, str(error), code="closed") from error
    if new is None:
        raise not_kept()
    return new, None


def not_kept() -> RequestProblem:
    return RequestProblem(
        409,
        "nothing of this user is kept, for they have not agreed to it, or a text was taken down; ask for their consent first",
        code="no_consent",
    )


def version_names(store: Store, scheduler: Scheduler, answers: list[Completion]) -> list[str]:
    """Of the models that gave these answers, by the weights that were noted with each: names that users and owners know."""
    known: dict[str, str] = {version.hash[:16]: version.name for version in model_versions(store)}
    roster = scheduler.roster
    for served, _ in () if roster is None else roster.arms.values():
        known[served.policy.origin[:16]] = served.version
    hashes = [answer.weight_stamp.partition("+")[0] for answer in answers]
    return [known.get(one, one) for one in hashes]
