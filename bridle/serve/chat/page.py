"""GET /chat: the page on which people talk with the served model.

It is a frame with its words; the scripts in bridle/serve/static do the rest. Dialogues stay in the browser; what the server keeps, and of
whom, is decided where they are answered. Who comes gets a cookie with a random secret: a name for what they may agree to later.
"""

import re
import secrets

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response

from bridle.site.app import mount_static
from bridle.site.languages import LANGUAGES, catalogue, preferred, translate
from bridle.site.rendering import render_page
from bridle.site.viewer import LANGUAGE, root_of

USER, SECRET = "bridle_user", re.compile(r"[A-Za-z0-9_-]{43}")  # the cookie; 256 bits in base64
YEAR = 365 * 24 * 3600  # seconds, after which who has not come is forgotten by their browser

router = APIRouter(include_in_schema=False)


def add_chat_page(app: FastAPI) -> None:
    """The page and its static files, on an app with `Guarded` around it."""
    app.include_router(router)
    mount_static(app)


@router.get("/chat")
def chat_page(request: Request, lang: str = "") -> Response:
    """`lang`: the language from now on."""
    known, root = request.cookies.get(LANGUAGE), root_of(request.scope)
    language = preferred(request.headers.get("accept-language", ""), (lang, known))
    page = render_page(
        "chat.html",
        {
            "language": language,
            "languages": LANGUAGES,
            "root": root,
            "t": lambda key: translate(language, key),
            "path": lambda path: f"{root}{path}",
            "words": {key[5:]: text for key, text in catalogue(language).items() if key.startswith("chat.")},
        },
    )
    if lang in LANGUAGES and lang != known:
        keep_cookie(request, page, LANGUAGE, lang)
    secret = request.cookies.get(USER, "")
    keep_cookie(request, page, USER, secret if SECRET.fullmatch(secret) else secrets.token_urlsafe(32))
    return page


def keep_cookie(request: Request, page: Response, name: str, value: str) -> None:
    """No other site's page sends it along, and no script reads it."""
    secure = request.url.scheme == "https"
    page.set_cookie(name, value, YEAR, path="/", secure=secure, httponly=True, samesite="strict")
