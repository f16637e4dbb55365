"""Pages from templates: what goes into one is escaped, and what others wrote turns nothing and hides nothing."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import nh3
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from bridle.core.text import visible

ROOMS = Path(__file__).parent.parent
TEMPLATES = (ROOMS / "labelling" / "templates", ROOMS / "serve" / "templates", ROOMS / "site" / "templates")
TAGS = set("p br hr h1 h2 h3 h4 ul ol li blockquote pre code em strong del table thead tbody tr th td a".split())


@cache
def templates() -> Environment:
    """A template of a room's folder is found before one of the same name here."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) or not isinstance(value, str) else visible(value),
    )
    found.filters |= {"markdown": markdown, "moment": lambda time: f"{time[:16].replace('T', ' ')} UTC"}
    found.globals |= {"static": static}
    return found


@cache
def static(room: str, name: str) -> str:
    """The path of a static file, which changes with its contents: a browser may keep it for ever."""
    digest = hashlib.sha256((ROOMS / room / "static" / name).read_bytes()).hexdigest()[:12]
    return f"/static/{room}/{name}?v={digest}"


@cache
def parser() -> MarkdownIt:
    return (
        MarkdownIt("commonmark", {"html": False, "linkify": False}).enable(["table", "strikethrough"]).disable("image")
    )


def markdown(text: str) -> Markup:
    """Markdown as HTML by an allow-list: no HTML of its writer's, no picture, and links that tell nobody where they are from."""
    html = parser().render(visible(text))
    return Markup(
        nh3.clean(
            html,
            tags=TAGS,
            attributes={"a": {"href"}},
            url_schemes={"http", "https", "mailto"},
            link_rel="noopener noreferrer nofollow",
        )
    )


def render_page(name: str, values: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    return HTMLResponse(templates().get_template(name).render(values), status)
