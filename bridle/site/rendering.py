"""Pages from templates: what goes into one is escaped, and what others wrote turns nothing and hides nothing."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nh3
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
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
def parser(with_hosts: bool = False) -> MarkdownIt:
    """`with_hosts`: links say in words where they go."""
    found = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable(["table", "strikethrough"])
    if with_hosts:
        found.core.ruler.push("hosts", name_hosts)
    return found.disable("image")


def name_hosts(state: StateCore) -> None:
    """Behind a link whose words are not its address: the host that it leads to."""
    for block in state.tokens:
        written: list[Token] = []
        address, words = "", ""
        for token in block.children or []:
            written.append(token)
            if token.type == "link_open":
                address, words = str(token.attrs["href"]), ""
            elif token.type == "link_close" and words not in (address, host := host_of(address)):
                written.append(Token("text", "", 0, content=f" ({host})"))
            words += token.content
        block.children = written if block.children is not None else None


def host_of(address: str) -> str:
    """The host of a link, as it is spelled there, or who a mail goes to."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address
    return parts.path if parts.scheme == "mailto" else parts.netloc.rpartition("@")[2] or address


def markdown(text: str) -> Markup:
    """Markdown as HTML by an allow-list: no HTML of its writer's, no picture, and links that tell nobody where they are from."""
    return allowed_html(parser().render(visible(text)))


def answer_html(text: str) -> str:
    """The same for what a model wrote: its links say where they go, lead to other sites alone, and open beside the page."""
    return str(allowed_html(parser(with_hosts=True).render(visible(text)), links_of_models=True))


def allowed_html(html: str, links_of_models: bool = False) -> Markup:
    return Markup(
        nh3.clean(
            html,
            tags=TAGS,
            attributes={"a": {"href"}, "*": set()},
            set_tag_attribute_values={"a": {"target": "_blank"}} if links_of_models else {},
            url_schemes={"http", "https", "mailto"},
            url_relative="deny" if links_of_models else "pass_through",
            link_rel="noopener noreferrer nofollow",
        )
    )


def render_page(name: str, values: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    return HTMLResponse(templates().get_template(name).render(values), status)
