"""What strangers send: forged, replayed, cross-origin, oversized, malformed. The right status, a plain sentence, nothing changed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi import APIRouter
from starlette.testclient import TestClient

from bridle.core.errors import StoreError, UsageError
from bridle.feedback.people.accounts import change_account, issue, revoke
from bridle.feedback.store import tables
from bridle.feedback.store.rows import now
from bridle.labelling.app import labelling_app
from bridle.site import passwords
from bridle.site.app import create_site
from bridle.site.limits import Limits, RateLimit, network
from bridle.site.proxies import networks
from bridle.site.rendering import static
from bridle.site.signing_in import SESSION_SECONDS, local
from bridle.site.viewer import SESSION
from tests.labelling_app import PASSWORD, STUDY, Site, opened

FORM = {"content-type": "application/x-www-form-urlencoded"}
PAGE = {"accept": "text/html,*/*;q=0.8"}


def kept(site: Site) -> list[int]:
    """How many rows each table has that a stranger could want to change."""
    with site.store.reading() as connection:
        names = (tables.account, tables.credential, tables.judgement, tables.audit, tables.exclusion)
        return [connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() for table in names]


def long_body(size: int) -> Iterator[bytes]:
    """Without a length that tells."""
    for _ in range(size // 65536 + 1):
        yield b"x" * 65536


BOUNDARY = {"content-type": "multipart/form-data; boundary=b"}
BAD = [
    ("a large form", "POST", "/sign-in", FORM, b"handle=" + b"x" * (2 * 2**20), 413),
    ("a large form that does not say so", "POST", "/sign-in", FORM, None, 413),
    ("a length that is none", "POST", "/sign-in", {**FORM, "content-length": "-5"}, b"a=b", 400),
    ("ten thousand fields", "POST", "/sign-in", FORM, b"&".join(b"a%d=b" % n for n in range(10_000)), 400),
    ("multipart without an end", "POST", "/sign-in", BOUNDARY, b'--b\r\nContent-Disposition: form-data; name="a"', 422),
    ("multipart that is none", "POST", "/sign-in", BOUNDARY, b"\0\xff\xfe", 400),
    ("multipart without a boundary", "POST", "/sign-in", {"content-type": "multipart/form-data"}, b"a", 400),
    ("JSON where a form is", "POST", "/sign-in", {"content-type": "application/json"}, b'{"handle": "owner"}', 422),
    ("no content type", "POST", "/sign-in", {}, b"handle=owner", 422),
    ("no UTF-8", "POST", "/sign-in", FORM, b"handle=%ff%fe&password=%c3", 403),
    ("a NUL byte", "POST", "/sign-in", FORM, b"handle=ow%00ner&password=%00", 403),
    ("half a character", "POST", "/sign-in", FORM, b"handle=%ed%a0%80&password=x", 403),
    ("an empty form", "POST", "/sign-in", FORM, b"", 422),
    ("a long name", "POST", "/sign-in", FORM, b"handle=" + b"x" * 3000 + b"&password=x", 422),
    ("a number that is none", "POST", "/me/tokens/1e9/end", FORM, b"", 422),
    ("a number beyond the database's", "POST", f"/me/tokens/{'9' * 30}/end", FORM, b"", 422),
    ("rights that there are not", "POST", "/me/tokens", FORM, b"name=a&rights=all", 422),
    ("a region that there is not", "POST", "/me/profile", FORM, b"region=%3Cscript%3E", 422),
    ("two regions in one", "POST", "/me/profile", FORM, b"age=18-24%2C25-34", 422),
    ("a role that there is not", "POST", "/people/role", FORM, b"handle=annotator&role=king", 422),
    ("a program as a person", "POST", "/people/role", FORM, b"handle=service&role=owner", 422),
    ("the only owner's role", "POST", "/people/role", FORM, b"handle=owner&role=annotator", 422),
    ("the only owner's account", "POST", "/people/close", FORM, b"handle=owner", 422),
    ("somebody who is not there", "POST", "/people/close", FORM, b"handle=%00&exclude=1&reason=x", 422),
    ("exclusion without a reason", "POST", "/people/close", FORM, b"handle=annotator&exclude=1&reason=+", 422),
    ("an invitation of a program", "POST", "/people/invitations", FORM, b"role=service&days=7", 422),
    ("an invitation for ever", "POST", "/people/invitations", FORM, b"role=owner&days=99999", 422),
    ("a forged invitation", "POST", "/join/" + "s" * 43, FORM, b"handle=eve&password=long+enough", 404),
    ("TRACE", "TRACE", "/me", {}, b"", 405),
    ("a method of its own", "BREW", "/me", {}, b"", 405),
    ("a way out of the folder", "GET", "/static/site/..%2f..%2fapp.py", {}, b"", 404),
    ("a way out by bytes", "GET", "/static/site/%2e%2e/app.py", {}, b"", 404),
    ("a file by its whole path", "GET", "/static/site//etc/passwd", {}, b"", 404),
    ("a file with a NUL", "GET", "/static/site/%00base.css", {}, b"", 404),
    ("a path of another page", "GET", "/people/", {}, b"", 404),
    ("a host that is none", "GET", "/", {"host": "a b"}, b"", 400),
    ("a host with a page", "GET", "/", {"host": "evil.example/x?"}, b"", 400),
]  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """For what changes nothing, as every test looks."""
    with opened(tmp_path_factory.mktemp("site")) as site:
        site.app.state.limits = Limits(sign_ins=RateLimit(1000, 1), joins=RateLimit(1000, 1))
        yield site


@pytest.mark.parametrize("accept", [PAGE, {}], ids=["page", "program"])
@pytest.mark.parametrize(("method", "path", "headers", "body", "status"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_requests_change_nothing(
    shared: Site, method: str, path: str, headers: dict[str, str], body: bytes | None, status: int, accept: dict[str, str]
) -> None:  # fmt: skip
    client, before = shared.client("owner"), kept(shared)
    content = long_body(3 * 2**20) if body is None else body
    answer = client.request(method, path, headers={**headers, **accept}, content=content)
    assert answer.status_code == status
    assert kept(shared) == before
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"
    assert "Traceback" not in answer.text and "<script" not in answer.text and 'File "' not in answer.text
    assert "<h1>" in answer.text or (not accept and answer.json()["error"])


@pytest.mark.parametrize(
    ("headers", "let_in"),
    [
        ({}, True),  # a program
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site", "origin": "http://testserver"}, False),
        ({"origin": "http://testserver"}, True),
        ({"origin": "http://testserver:80"}, True),
        ({"origin": "https://testserver"}, False),
        ({"origin": "http://testserver:8020"}, False),
        ({"origin": "http://testserver.evil.example"}, False),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "null", "host": "[:]"}, False),
        ({"origin": "http://testserver", "x-forwarded-host": "evil.example"}, True),
        ({"origin": "http://evil.example", "x-forwarded-host": "evil.example"}, False),  # of no proxy that is trusted
    ],
)
@pytest.mark.parametrize("path", ["/sign-in", "/language"])
def test_no_other_site_sends_in_somebodys_name(shared: Site, path: str, headers: dict[str, str], let_in: bool) -> None:
    form = {"handle": "owner", "password": PASSWORD, "language": "zh"}
    answer = shared.client("nobody", new=True).post(path, data=form, headers=headers)
    assert (answer.status_code, "set-cookie" in answer.headers) == ((303, True) if let_in else (403, False))


@pytest.mark.parametrize("cut", [True, False], ids=["cut off", "left"])
def test_behind_a_proxy_under_a_path(tmp_path: Path, cut: bool) -> None:
    forwarded = {
        "x-forwarded-for": "198.51.100.7, 203.0.113.9, 10.1.2.3",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "labels.example",
        "origin": "https://labels.example",
    }
    with opened(tmp_path) as site:
        limits = Limits(sign_ins=RateLimit(2, 3600))
        app = labelling_app(site.store, root_path="/labels", proxies=["10.0.0.0/8"], limits=limits)
        root = "" if cut else "/labels"
        form = {"handle": "owner", "password": PASSWORD, "next": "/me"}

        def client(address: str) -> TestClient:
            return TestClient(app, "http://127.0.0.1:8020", client=(address, 1), follow_redirects=False)

        proxied = client("10.0.0.1")
        answer = proxied.post(f"{root}/sign-in", data=form, headers=forwarded)
        cookie = answer.headers["set-cookie"]
        assert (answer.status_code, answer.headers["location"]) == (303, "/labels/me")
        assert all(part in cookie for part in ("Secure", "HttpOnly", "SameSite=lax", "Path=/labels;"))
        session = {"cookie": cookie.partition(";")[0]}
        page = proxied.get(f"{root}/people", headers={**forwarded, **session})
        assert 'href="/labels/me"' in page.text and 'action="/labels/people/invitations"' in page.text
        shown = proxied.post(f"{root}/people/invitations", data={"role": "owner"}, headers={**forwarded, **session})
        once = {"cookie": f"{session['cookie']}; {shown.headers['set-cookie'].partition(';')[0]}"}
        assert "https://labels.example/labels/join/" in proxied.get(f"{root}/people", headers=forwarded | once).text
        style = proxied.get(f"{root}{static('site', 'base.css')}", headers=forwarded)
        assert style.status_code == 200 and "immutable" in style.headers["cache-control"]
        leads = proxied.get(f"{root}/", headers=forwarded)
        assert leads.headers["location"] == "/labels/sign-in?next=/"
        # The next to last address asks; what stands before it somebody may have written themselves.
        assert proxied.post(f"{root}/sign-in", data={**form, "handle": "x"}, headers=forwarded).status_code == 403
        other = {**forwarded, "x-forwarded-for": "192.0.2.1, 203.0.113.9"}
        assert proxied.post(f"{root}/sign-in", data={**form, "handle": "y"}, headers=other).status_code == 429
        # Of who is no proxy nothing is believed.
        assert client("192.0.2.66").post(f"{root}/sign-in", data=form, headers=forwarded).status_code == 403
        plain = client("192.0.2.66").post(f"{root}/sign-in", data=form, headers={"x-forwarded-proto": "https"})
        assert plain.status_code == 303 and "Secure" not in plain.headers["set-cookie"]


def test_a_proxy_is_an_address() -> None:
    with pytest.raises(UsageError, match=r"named by its address.*'proxy.example'"):
        networks(["10.0.0.1", "proxy.example"])
    assert network("2001:db8:1:2:3::4") == network("2001:db8:1:2:ffff::1") != network("2001:db8:1:3::4")


def test_a_session_begins_anew_at_each_sign_in(site: Site) -> None:
    client = site.client("annotator", new=True)
    planted = client.cookies[SESSION]
    answer = client.post("/sign-in", data={"handle": "annotator", "password": PASSWORD})
    assert client.cookies[SESSION] != planted and f"Max-Age={int(SESSION_SECONDS)}" in answer.headers["set-cookie"]
    assert client.get("/me").status_code == 200
    client.cookies.set(SESSION, planted, domain="testserver.local", path="/")
    assert client.get("/me").headers["location"] == "/sign-in?next=/me"


@pytest.mark.parametrize("how", ["expired", "revoked", "forged", "a token", "closed", "signed out"])
def test_a_cookie_that_is_no_good(site: Site, how: str) -> None:
    client = site.client("annotator", new=True)
    if how == "expired":
        client.cookies.set(
            SESSION, issue(site.store, "session", labeler="annotator", seconds=-1), domain="testserver.local"
        )
    elif how == "revoked":
        revoke(site.store, labeler="annotator")
    elif how == "forged":
        client.cookies.set(SESSION, "Bearer annotator", domain="testserver.local", path="/")
    elif how == "a token":
        client.cookies.set(SESSION, site.token("annotator"), domain="testserver.local", path="/")
    elif how == "closed":
        change_account(site.store, "annotator", by="owner", disabled_at=now())
    else:
        client.post("/sign-out")
    assert client.get("/me").status_code == 303


@pytest.mark.parametrize("how", ["expired", "revoked", "forged", "a session", "closed"])
def test_a_token_that_is_no_good(site: Site, how: str) -> None:
    token = site.token("adjudicator")
    headers = {"authorization": f"Bearer {token}"}
    client = site.client("nobody")
    assert client.get("/api/me", headers=headers).status_code == 200
    if how == "expired":
        token = issue(site.store, "token", labeler="adjudicator", seconds=-1)
    elif how == "revoked":
        revoke(site.store, secret=token)
    elif how == "forged":
        token = token[:-1] + ("A" if token[-1] != "A" else "B")
    elif how == "a session":
        token = issue(site.store, "session", labeler="adjudicator", seconds=60)
    else:
        change_account(site.store, "adjudicator", by="owner", disabled_at=now())
    answer = client.get("/api/me", headers={"authorization": f"bearer {token}"})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_a_token_that_may_read_changes_nothing(site: Site) -> None:
    before = kept(site)
    answer = site.client("reader").post("/language", data={"language": "zh"})
    assert answer.status_code == 403 and "may only read" in answer.json()["error"]
    assert kept(site)[0] == before[0]


def test_an_invitation_is_good_once(site: Site) -> None:
    secret = issue(site.store, "invitation", scopes={"role": "annotator"}, seconds=60)
    form = {"handle": "anna", "password": PASSWORD}
    wrong = site.client("nobody", new=True).post(f"/join/{secret}", data={**form, "handle": "owner"})
    assert wrong.status_code == 422 and "taken" in wrong.text
    assert site.client("nobody", new=True).post(f"/join/{secret}", data=form).status_code == 303
    replayed = site.client("nobody", new=True).post(f"/join/{secret}", data={**form, "handle": "eve"})
    assert replayed.status_code == 404 and "set-cookie" not in replayed.headers


def test_rates(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.app.state.limits = Limits(pages=RateLimit(3, 60), changes=RateLimit(30, 3600), joins=RateLimit(1, 3600))
    nobody = site.client("nobody")
    form = {"handle": "owner", "password": "a wrong one"}
    tried = [nobody.post("/sign-in", data=form, headers={"x-forwarded-for": f"192.0.2.{n}"}) for n in range(16)]
    assert [one.status_code for one in tried] == [403] * 15 + [429]
    assert 0 < int(tried[-1].headers["retry-after"]) <= 13 and "wait" in tried[-1].text
    assert nobody.post("/sign-in", data={"handle": "owner", "password": PASSWORD}).status_code == 429
    assert [nobody.post("/join/x", data=form).status_code for _ in range(2)] == [404, 429]
    assert [site.client("annotator").get("/me", headers=PAGE).status_code for _ in range(4)] == [200, 200, 200, 429]
    assert site.client("adjudicator").get("/me").status_code == 200  # each has their own
    changed = [site.client("owner").post("/language", data={"language": "en"}) for _ in range(31)]
    assert {one.status_code for one in changed[:30]} == {303} and changed[30].status_code == 429
    assert int(changed[30].headers["retry-after"]) > 0


def test_who_is_not_there_takes_as_long(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many passwords are hashed, whoever it is."""
    hashed, cheap = list[str](), passwords.hasher()

    class Counting:
        def verify(self, known: str, password: str) -> bool:
            hashed.append(password)
            return cheap.verify(known, password)

        hash, check_needs_rehash = cheap.hash, cheap.check_needs_rehash

    monkeypatch.setattr(passwords, "hasher", Counting)
    change_account(site.store, "annotator", by="owner", disabled_at=now())
    texts = set()
    for handle in ("owner", "annotator", "service", "nobody at all", ""):
        answer = site.client("nobody").post("/sign-in", data={"handle": handle, "password": f"wrong {handle}"})
        assert answer.status_code == 403 or handle == ""
        texts.add(answer.text.replace(f'value="{handle}"', ""))
        assert len(hashed) == (1 if handle else 0)
        hashed.clear()
    assert len(texts) == 2  # and the same is said of each; an empty name is no name


@pytest.mark.parametrize(
    ("wished", "there"),
    [
        ("/label/first?x=1&y=2", "/label/first?x=1&y=2"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/\t/evil.example", "/"),
        ("https://evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/a\r\nset-cookie: x=1", "/"),
        ("me", "/"),
        ("", "/"),
    ],
)
def test_signing_in_leads_to_no_other_site(shared: Site, wished: str, there: str) -> None:
    assert local(wished) == there
    form = {"handle": "owner", "password": PASSWORD, "next": wished}
    answer = shared.client("nobody", new=True).post("/sign-in", data=form)
    assert answer.headers["location"] == there and "x" not in answer.cookies


def test_static_files_are_kept_by_what_they_are(shared: Site) -> None:
    client, address = shared.client("nobody"), static("site", "base.css")
    path, etag = address.partition("?")[0], client.get(address).headers["etag"]
    cached = {url: client.get(url).headers["cache-control"] for url in (address, path, f"{path}?v=0123456789ab")}
    assert cached == {
        address: "public, max-age=31536000, immutable",
        path: "no-cache",
        f"{path}?v=0123456789ab": "no-cache",
    }
    again = client.get(path, headers={"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")


@pytest.fixture
def faulty(site: Site) -> TestClient:
    """An app with a fault, and one whose store refuses."""
    room = APIRouter()

    @room.get("/fault")
    def fault() -> None:
        raise RuntimeError("the secret of /srv")

    @room.get("/refuses")
    def refuses() -> None:
        raise StoreError("the store /srv/store.sqlite refused (disk is full)")

    return TestClient(create_site(site.store, [room]), follow_redirects=False)


@pytest.mark.parametrize(
    ("path", "status"), [("/fault", 500), ("/refuses", 503), ("/nothing", 404), ("/sign-out", 405)]
)
def test_errors_are_said_in_words(faulty: TestClient, path: str, status: int, caplog: pytest.LogCaptureFixture) -> None:
    page = faulty.get(path, headers={**PAGE, "accept-language": "zh-CN"})
    told = faulty.get(path)
    assert page.status_code == told.status_code == status
    assert 'lang="zh"' in page.text and "操作没有成功" in page.text
    assert list(told.json()) == ["error"] and told.json()["error"][-1] == "."
    for answer in (page, told):
        assert "/srv" not in answer.text and "frame-ancestors" in answer.headers["content-security-policy"]
    assert ("/srv" in caplog.text) == (status >= 500)


def test_a_head_is_a_get_without_its_body(shared: Site) -> None:
    whole, head = (shared.client("owner").request(method, "/me") for method in ("GET", "HEAD"))
    assert head.status_code == 200 and head.content == b"" and whole.content
    assert head.headers["content-type"] == whole.headers["content-type"]


def test_the_study_is_as_it_was(shared: Site) -> None:
    assert STUDY and kept(shared)[2] == 0
