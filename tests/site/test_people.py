"""Accounts as their owner and everybody themselves handle them, through the pages."""

import re

import pytest
from starlette.testclient import TestClient

from bridle.core.records import Judgement, LabelerKind
from bridle.feedback.people.accounts import credentials, find_account, issue
from bridle.feedback.people.profiles import TRAITS
from bridle.labelling.serving import owner_path
from bridle.site.languages import LANGUAGES, catalogue
from tests.labelling_app import PASSWORD, STUDY, Site

NEW = "another long password"


def shown(client: TestClient, path: str, form: dict[str, str], pattern: str) -> str:
    """The secret that a form makes: shown on the page that follows, and on no later one."""
    assert client.post(path, data=form).headers["location"] == f"/{path.split('/')[1]}"
    secrets = [re.findall(pattern, client.get(f"/{path.split('/')[1]}").text) for _ in range(2)]
    assert len(secrets[0]) == 1 and not secrets[1]
    return str(secrets[0][0])


def sign_in(site: Site, handle: str, password: str = PASSWORD) -> TestClient:
    client = site.client("nobody", new=True)
    assert client.post("/sign-in", data={"handle": handle, "password": password}).status_code == 303
    return client


@pytest.mark.parametrize("role", ["annotator", "adjudicator", "owner"])
def test_an_owner_invites(site: Site, role: str) -> None:
    link = shown(
        site.client("owner"), "/people/invitations", {"role": role, "days": "7"}, r"http://testserver(/join/[\w-]+)"
    )
    guest = site.client("nobody", new=True)
    page = guest.get(link, headers={"accept-language": "zh"})
    assert page.status_code == 200 and catalogue("zh")[f"site.role_{role}"] in page.text
    joined = guest.post(link, data={"handle": " Zoë\u0301 ".replace("ë\u0301", "e\u0308"), "password": NEW})
    assert joined.status_code == 303, joined.text
    account = find_account(site.store, "Zoë")
    assert account is not None and account.role == role and guest.get("/me").status_code == 200
    assert sign_in(site, "Zoe\u0308", NEW).get("/me").status_code == 200
    assert not credentials(site.store, "invitation")


@pytest.mark.parametrize(
    ("handle", "password", "why"),
    [
        ("owner", NEW, "site.name_taken"),
        ("a b", NEW, "site.name_wrong"),
        ("<b>", NEW, "site.name_wrong"),
        ("", NEW, "site.name_wrong"),
        ("x" * 65, NEW, "site.name_wrong"),
        ("anna", "short", "site.password_wrong"),
        ("anna", "x" * 1001, "site.password_wrong"),
    ],
)
def test_joining_says_what_is_wrong(site: Site, handle: str, password: str, why: str) -> None:
    secret = issue(site.store, "invitation", scopes={"role": "annotator"}, seconds=60)
    headers = {"accept-language": "zh-TW,zh;q=0.9"}
    answer = site.client("nobody").post(
        f"/join/{secret}", data={"handle": handle, "password": password}, headers=headers
    )
    assert answer.status_code == 422
    assert handle == "" or catalogue("zh")[why].partition("{")[0] in answer.text
    assert len(credentials(site.store, "invitation")) == 1  # it is still good


def test_an_invitation_is_taken_back(site: Site) -> None:
    owner = site.client("owner")
    link = shown(owner, "/people/invitations", {"role": "owner", "days": "1"}, r"(/join/[\w-]+)")
    (invitation,) = credentials(site.store, "invitation")
    assert "Open links" in owner.get("/people").text
    owner.post(f"/people/invitations/{invitation.id}/end")
    assert site.client("nobody").get(link).status_code == 404


def test_roles_change_at_once(site: Site) -> None:
    owner, other = site.client("owner"), site.client("adjudicator")
    assert other.get("/people").status_code == 403
    owner.post("/people/role", data={"handle": "adjudicator", "role": "owner"})
    assert other.get("/people").status_code == 200
    other.post("/people/role", data={"handle": "owner", "role": "annotator"})
    assert owner.get("/people").status_code == 403
    assert other.post("/people/close", data={"handle": "adjudicator"}).status_code == 422  # nobody would be left


def judge(site: Site) -> None:
    pair = site.items[0]
    site.store.add_judgements(
        [Judgement(pair, "annotator", LabelerKind.PERSON, ((0,), (1,)), (0, 1), submission_key="k")]
    )


@pytest.mark.parametrize("exclude", [False, True])
def test_an_account_is_closed_and_opened_again(site: Site, exclude: bool) -> None:
    judge(site)
    token = site.token("annotator")
    owner, person = site.client("owner"), site.client("annotator")
    form = {"handle": "annotator", "reason": "a coin"} | ({"exclude": "1"} if exclude else {})
    assert owner.post("/people/close", data=form).headers["location"] == "/people"
    assert len(site.store.judgements(study=STUDY)) == (0 if exclude else 1)
    assert site.store.counts()["judgements"] == {"person": 1}  # it is there all the same
    assert person.get("/me").status_code == 303
    nobody = site.client("nobody")
    assert nobody.get("/api/me", headers={"authorization": f"Bearer {token}"}).status_code == 401
    assert nobody.post("/sign-in", data={"handle": "annotator", "password": PASSWORD}).status_code == 403
    owner.post("/people/open", data={"handle": "annotator"})
    assert person.get("/me").status_code == 303  # what ended stays so
    assert sign_in(site, "annotator").get("/me").status_code == 200


def test_a_password_that_was_lost(site: Site) -> None:
    owner, person = site.client("owner"), site.client("annotator")
    link = shown(owner, "/people/link", {"handle": "annotator"}, r"(/join/[\w-]+)")
    guest = site.client("nobody", new=True)
    assert 'value="annotator"' in guest.get(link).text
    assert guest.post(link, data={"handle": "adjudicator", "password": NEW}).status_code == 422
    assert guest.post(link, data={"handle": "annotator", "password": NEW}).status_code == 303
    assert person.get("/me").status_code == 303 and sign_in(site, "annotator", NEW).get("/me").status_code == 200
    assert owner.post("/people/link", data={"handle": "service"}).status_code == 422


def test_the_owners_link(site: Site) -> None:
    owner = site.client("owner")
    old, link = owner_path(site.store), owner_path(site.store)
    guest = site.client("nobody", new=True)
    assert guest.get(old).status_code == 404  # the newest alone is good
    assert (
        guest.post(link, data={"handle": "annotator", "password": NEW}).status_code == 422
    )  # no owner, and stays none
    assert guest.post(link, data={"handle": "owner", "password": NEW}).status_code == 303
    assert owner.get("/me").status_code == 303 and guest.get("/people").status_code == 200
    assert (
        site.client("nobody", new=True)
        .post(owner_path(site.store), data={"handle": "eve", "password": NEW})
        .status_code
        == 303
    )
    assert getattr(find_account(site.store, "eve"), "role", "") == "owner"


def test_a_new_password_ends_other_sessions(site: Site) -> None:
    here, elsewhere = site.client("annotator"), site.client("annotator", new=True)
    form = {"current": PASSWORD, "password": NEW}
    assert here.post("/me/password", data={**form, "current": "wrong"}).status_code == 403
    assert here.post("/me/password", data={**form, "password": "short"}).status_code == 422
    assert elsewhere.get("/me").status_code == 200
    assert here.post("/me/password", data=form).headers["location"] == "/me?done=password"
    assert here.get("/me?done=password").status_code == 200 and elsewhere.get("/me").status_code == 303
    assert sign_in(site, "annotator", NEW).post("/me/sign-out-everywhere").headers["location"] == "/sign-in"
    assert here.get("/me").status_code == 303


def test_tokens_are_ones_own(site: Site) -> None:
    person = site.client("annotator")
    assert "You have none" in person.get("/me").text
    token = shown(person, "/me/tokens", {"name": "<b>", "rights": "full", "days": "30"}, r'secret">([\w-]{43})<')
    program = site.client("nobody", new=True)
    program.headers["authorization"] = f"Bearer {token}"
    assert program.get("/api/me").status_code == 200
    (one,) = credentials(site.store, "token", "annotator")
    assert one.last_used_at and one.expires_at and "&lt;b&gt;" in person.get("/me").text
    site.client("adjudicator").post(f"/me/tokens/{one.id}/end")  # another's
    assert program.get("/api/me").status_code == 200
    assert person.post(f"/me/tokens/{one.id}/end").status_code == 303
    assert program.get("/api/me").status_code == 401


def test_a_program_is_added(site: Site) -> None:
    owner = site.client("owner")
    shown(owner, "/people/programs", {"handle": "follower"}, r'secret">([\w-]{43})<')
    shown(owner, "/people/programs", {"handle": "follower"}, r'secret">([\w-]{43})<')
    assert len(credentials(site.store, "token", "follower")) == 2
    assert owner.post("/people/programs", data={"handle": "annotator"}).status_code == 422
    assert site.client("nobody").post("/sign-in", data={"handle": "follower", "password": ""}).status_code in (403, 422)


def test_a_profile_is_voluntary_and_ones_own(site: Site) -> None:
    person = site.client("annotator")
    chosen = {"languages": ["en", "zh"], "fields": ["medicine"], "region": "oceania", "age": ""}
    assert person.post("/me/profile", data=chosen).headers["location"] == "/me?done=profile"
    account = find_account(site.store, "annotator")
    assert account and account.profile == {"languages": ["en", "zh"], "fields": ["medicine"], "region": ["oceania"]}
    assert person.get("/me").text.count(" checked") == 3 and person.get("/me").text.count(" selected") == 1
    assert not re.search("oceania|Oceania", site.client("owner").get("/people").text)
    assert person.post("/me/profile", data={"clear": "1", **chosen}).headers["location"] == "/me?done=cleared"
    account = find_account(site.store, "annotator")
    assert account and account.profile == {}


def test_the_flash_cookie_shows_no_secret_of_others(site: Site) -> None:
    """Another site below the same name may plant a cookie: what is no secret of ours is not shown."""
    owner = site.client("owner")
    owner.cookies.set("bridle_shown_once", "https://evil.example", domain="testserver.local", path="/")
    assert "evil" not in owner.get("/people").text


def test_the_languages_say_the_same() -> None:
    texts = {language: catalogue(language) for language in LANGUAGES}
    # Of one thing alone a language may have words of its own; Chinese needs none.
    assert len({frozenset(key for key in words if not key.endswith("_one")) for words in texts.values()}) == 1
    for key, text in texts["zh"].items():
        holes = [sorted(re.findall(r"{\w*}", words[key])) for words in texts.values()]
        assert len({*map(tuple, holes)}) == 1, key
        assert text.strip() == text and all(words[key] for words in texts.values())
    for trait, values in TRAITS.items():
        assert {f"people.{trait}_{value}" for value in values} | {f"people.trait_{trait}"} <= texts["en"].keys()
