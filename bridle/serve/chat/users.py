"""Who sends a request: a program by its key, for a user that it names, or a browser by its cookie. Of both a token is made that names the
user; the store has its hash alone, and none before they agree.

    caller.token("anna")                            # of a program's user, or of the cookie; None where nothing says who it is
"""

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from fastapi.responses import Response

from bridle.serve.problems import RequestProblem

SESSION, REFUSED = "bridle_user", "bridle_refused"  # cookies; the second: the consent text that this browser declined
TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")  # of a cookie; a program's user has another form, so that no cookie can be one
YEAR = 365 * 24 * 3600
LONGEST_NAME = 512  # characters of a program's name for a user


@dataclass(frozen=True)
class Caller:
    """`key` names the key that was shown, `secret` is the key itself; `cookie` is that of a browser that showed no key."""

    key: str = ""
    secret: str = field(default="", repr=False)
    cookie: str = field(default="", repr=False)

    def token(self, named: str | None) -> str | None:
        """`named`: whom a program asks for. Only who has the key can make the token of one of its users."""
        if self.cookie:
            return self.cookie
        if not self.key or not named:
            return None
        made = hmac.new(self.secret.encode(), f"{self.key}\0{named}".encode(errors="surrogatepass"), hashlib.sha256)
        return f"{self.key}:{made.hexdigest()}"

    def require_token(self, named: str | None) -> str:
        """Raises RequestProblem where a program names nobody."""
        found = self.token(named)
        if found is None:
            raise RequestProblem(
                400,
                "user is missing: name your user in it, by whatever you know them by, for what is kept belongs to one",
                param="user",
                code="missing_required_parameter",
            )
        return found


def caller_of(request: Request) -> Caller:
    found: Caller = request.scope["caller"]
    return found


TheCaller = Annotated[Caller, Depends(caller_of)]


def cookie_of(request: Request) -> str:
    """The token of a browser; empty where it has none."""
    found = request.cookies.get(SESSION, "")
    return found if TOKEN.fullmatch(found) else ""


def put_cookie(request: Request, answer: Response, name: str, value: str) -> None:
    """An empty value removes it."""
    secure = request.url.scheme == "https"
    seconds = YEAR if value else 0
    answer.set_cookie(name, value, seconds, path="/", secure=secure, httponly=True, samesite="strict")
