"""Whether what a user says may be kept: what they are asked, their answer, and the deletion of all that is theirs.

    GET /chat/state?lang=en          what the page shows before anything is said
    GET /v1/consent?lang=en          the text, and what this user answered
    POST /v1/consent {"answer": "agreed", "text": "<sha256 of the text>"}
    POST /v1/forget

Nobody is in the store before they agree: a browser that declines has a cookie that says so, which names nobody.
"""

import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from bridle.core.errors import DataError, StoreError
from bridle.feedback.serving.consent import (
    add_user,
    consent_text,
    consents,
    find_user,
    publish_consent,
    set_consent,
)
from bridle.feedback.serving.reactions import FLAGGED_FOR, WHY
from bridle.feedback.store.store import Store
from bridle.serve.chat.keeping import Forget, Keeper
from bridle.serve.chat.users import LONGEST_NAME, REFUSED, SESSION, Caller, TheCaller, put_cookie
from bridle.serve.openai import TheDesk
from bridle.serve.problems import RequestProblem, log
from bridle.serve.replies import Json
from bridle.site.rendering import markdown

router = APIRouter()
Language = Annotated[str, Query(pattern=r"^[A-Za-z-]{0,20}$")]
Named = Annotated[str | None, Query(max_length=LONGEST_NAME)]


class ConsentBody(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    answer: Literal["agreed", "refused"]
    text: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    user: Annotated[str, Field(max_length=LONGEST_NAME)] | None = None


class ForgetBody(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    user: Annotated[str, Field(max_length=LONGEST_NAME)] | None = None


@router.get("/chat/state", tags=["chat"], summary="What the chat's page needs to know before anything is said")
async def chat_state(request: Request, desk: TheDesk, caller: TheCaller, lang: Language = "en") -> Json:
    token, roster = desk.user_token(caller, None), desk.scheduler.roster
    return {
        "model": "" if roster is None else roster.current.name,
        "consent": await consent_of(request, desk.keeper, token, lang),
        "reasons": list(WHY),
        "flags": list(FLAGGED_FOR),
    }


@router.get("/v1/consent", tags=["feedback"], summary="What users are asked, and what this one answered")
async def read_consent(
    request: Request, desk: TheDesk, caller: TheCaller, lang: Language = "en", user: Named = None
) -> Json:
    return await consent_of(request, desk.keeper, desk.user_token(caller, user), lang)


async def consent_of(request: Request, keeper: Keeper, token: str, lang: str) -> Json:
    """`asked`: whether they have answered the newest text. A store that cannot be used has nothing to ask."""
    found = None if keeper.store is None else await keeper.with_patience(keeper.ask(consent_state, token, lang))
    if found is None:
        return {"asked": False, "answer": None, "text": None}
    version = found.pop("version")
    if not found["asked"] and request.cookies.get(REFUSED) == f"version-{version}":
        found |= {"asked": True, "answer": "refused"}
    return dict(found)


def consent_state(store: Store, token: str, lang: str) -> Json:
    """`version`: that of the newest text; None where there is none."""
    text, user = consent_text(store, lang), find_user(store, token)
    if text is None:
        return {"asked": False, "answer": None, "text": None, "version": None}
    answers = [] if user is None else consents(store, user)
    counts = bool(answers) and answers[-1].version == text.version
    described = {"sha256": text.sha256, "lang": text.lang, "markdown_html": str(markdown(text.markdown))}
    answer = answers[-1].answer if counts else None
    return {"asked": counts, "answer": answer, "text": described, "version": text.version}


@router.post("/v1/consent", tags=["feedback"], summary="A user agrees to what is kept, or does not")
async def give_consent(request: Request, desk: TheDesk, caller: TheCaller, body: ConsentBody) -> Response:
    token = desk.user_token(caller, body.user)
    try:
        version = await desk.keeper.ask(note_consent, token, body.answer, body.text)
    except DataError as error:
        raise RequestProblem(409, str(error), param="text", code="not_the_newest_text") from error
    answer = JSONResponse({"asked": True, "answer": body.answer})
    if caller.cookie:
        put_cookie(request, answer, REFUSED, f"version-{version}" if body.answer == "refused" else "")
    return answer


def note_consent(store: Store, token: str, answer: Literal["agreed", "refused"], text: str | None) -> int | None:
    """The version of the text that counts now. Who refuses and is in no store is not put there. All or nothing."""
    with store.transaction() as one:
        user = add_user(one, token) if answer == "agreed" else find_user(one, token)
        if user is not None:
            set_consent(one, user, answer, text=text)
        newest = consent_text(one)
        return None if newest is None else newest.version


@router.post("/v1/forget", tags=["feedback"], summary="Delete all that is kept of a user")
async def forget_me(request: Request, desk: TheDesk, caller: TheCaller, body: ForgetBody | None = None) -> Response:
    token = desk.user_token(caller, None if body is None else body.user)
    if desk.keeper.store is not None:
        await desk.keeper.ask(forget_token, token, desk.forget)
    return without_cookies(request, caller, JSONResponse({"forgotten": True}))


def forget_token(store: Store, token: str, forget_user: Forget) -> None:
    """Who is not known left nothing."""
    user = find_user(store, token)
    if user is None:
        return
    try:
        done = forget_user(store, user)
    except StoreError as error:
        if find_user(store, token) is not None:
            raise
        log.warning("a user is forgotten, but %s", error)  # rows are blank; the file is written anew another time
        return
    if done.models or done.runs:
        log.warning("a user is forgotten; models that learnt from what they said: %s", ", ".join(map(str, done.models)))


def without_cookies(request: Request, caller: Caller, answer: Response) -> Response:
    for name in (SESSION, REFUSED) if caller.cookie else ():
        put_cookie(request, answer, name, "")
    return answer


# --------------------------------------------------------------------------------------------------- what is asked


@cache
def own_texts() -> dict[str, str]:
    """What users are asked where the owner has published nothing, by language."""
    found: dict[str, Any] = tomllib.loads((Path(__file__).parent / "consent.toml").read_text(encoding="utf-8"))
    return {lang: str(text) for lang, text in found.items()}


def publish_own_texts(store: Store) -> None:
    if consent_text(store) is None:
        publish_consent(store, own_texts())
