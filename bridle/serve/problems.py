"""What a request is refused with, in the form that programs for OpenAI's API read: {"error": {"message", "type", "param", "code"}}."""

import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteError

from bridle.core.errors import BridleError, StoreError, brief_repr
from bridle.core.text import one_line
from bridle.site.languages import in_words, preferred

log = logging.getLogger(__name__)
INVALID, OVERLOADED, OURS = "invalid_request_error", "rate_limit_error", "server_error"
FAULT_OF_OURS = "the server failed at this request; its log says why"
SENTENCES = {  # of statuses that come without words
    401: "this server asks for a key: send it as `Authorization: Bearer KEY`",
    403: "a page of another site sent this, and its address is not among serve.origins",
    404: "there is nothing at this address; /v1/models, /v1/chat/completions and /v1/completions are",
    405: "this address does not take that method",
    408: "the request's body did not come in time",
    413: "the request's body is too large for this server (serve.body_bytes)",
    415: "the request's body must be JSON, with `Content-Type: application/json`",
    500: FAULT_OF_OURS,
}


class RequestProblem(Exception):
    """A request that is refused, or an answer that breaks off. `param` names the part of the request that is at fault."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry = status, message, param, code, retry

    def body(self, language: str = "en") -> dict[str, Any]:
        kind = OVERLOADED if self.status == 429 else INVALID if self.status < 500 else OURS
        return {
            "error": {
                "message": in_words(language, one_line(self.message)),
                "type": kind,
                "param": self.param,
                "code": self.code,
            },
        }

    @property
    def headers(self) -> dict[str, str]:
        found = {} if self.retry is None else {"retry-after": str(self.retry)}
        if self.status == 408:
            found["connection"] = "close"  # the rest of that body would be taken for another request
        return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


async def refuse(request: Request, error: Exception) -> Response:
    """The answer to a request that failed; a fault of ours goes to the log, and none of its words to the other side."""
    problem = as_problem(error)
    if problem.status >= 500 and not isinstance(error, RequestProblem):
        log.error("a request failed", exc_info=error)
    given: Mapping[str, str] = (error.headers or {}) if isinstance(error, StarletteError) else {}
    language = preferred("", [request.query_params.get("lang")])  # the chat's scripts say in which they show this
    return JSONResponse(problem.body(language), problem.status, {**given, **problem.headers})


def as_problem(error: Exception) -> RequestProblem:
    if isinstance(error, RequestProblem):
        return error
    if isinstance(error, RequestValidationError):
        return problem_of_body(error)
    if isinstance(error, StarletteError):
        own = "" if error.detail == HTTPStatus(error.status_code).phrase else str(error.detail)
        return RequestProblem(error.status_code, own or SENTENCES.get(error.status_code, str(error.detail)))
    if isinstance(error, StoreError):
        return RequestProblem(
            503, "the store with the keys cannot be read now; try again", code="store_unavailable", retry=1
        )
    if isinstance(error, BridleError):
        return RequestProblem(400, str(error))
    return RequestProblem(500, FAULT_OF_OURS)


def problem_of_body(error: RequestValidationError) -> RequestProblem:
    """The first fault of a body, by the name of its field."""
    wrong = error.errors()[0]
    if wrong["type"] == "json_invalid":
        return RequestProblem(400, f"the request's body is not valid JSON: {wrong['ctx']['error']}")
    name = field_name(wrong["loc"])
    if not name:
        return RequestProblem(400, "the request's body must be a JSON object, with `Content-Type: application/json`")
    if wrong["type"] == "missing":
        return RequestProblem(
            400, f"{name} is missing, and it has no default", param=name, code="missing_required_parameter"
        )
    ways = [one["msg"] for one in error.errors() if field_name(one["loc"]) == name]
    needed = " or ".join(dict.fromkeys(re.sub("^(Input|List|String|Dictionary) should ", "", way) for way in ways))
    return RequestProblem(400, f"{name} = {brief_repr(wrong['input'])} is invalid: must {needed}", param=name)


def field_name(place: tuple[int | str, ...]) -> str:
    """`("body", "messages", 0, "role")` as "messages[0].role"; without the kinds that a field may be of."""
    name = ""
    for part in place[1:]:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool"):
            name += f".{part}" if name else part
    return name
