"""Every route × every role: who may use it, and what the others are told. A route that is not in the table fails."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount

from tests.labelling_app import STUDY, WHO, Site

# Who may: any of WHO, in words apart by blanks. "reader" is an owner's token that may only read, "service" a program's with full rights;
# "owner", "adjudicator" and "annotator" are people who signed in with a password, "nobody" is whoever did not.
EVERYBODY = " ".join(WHO)
EVERYBODY_WRITES = "nobody owner adjudicator annotator service"
LABELERS, LABELERS_WRITE = "owner adjudicator annotator reader", "owner adjudicator annotator"
DECIDERS, DECIDERS_WRITE = "owner adjudicator reader", "owner adjudicator"
OWNERS, OWNERS_WRITE = "owner reader", "owner"
THEMSELVES = "owner adjudicator annotator"  # at the page, by no token
MEMBERS = "owner adjudicator annotator service reader"
FOLLOWERS, FOLLOWERS_WRITE = "owner service reader", "owner service"
ROUTES = {
    "GET /": LABELERS,
    "GET /static/site": EVERYBODY,
    "GET /static/labelling": EVERYBODY,
    "GET /static/serve": EVERYBODY,
    "GET /api/openapi.json": EVERYBODY,
    "GET /sign-in": EVERYBODY,
    "POST /sign-in": EVERYBODY_WRITES,
    "POST /sign-out": EVERYBODY_WRITES,
    "GET /join/{secret}": EVERYBODY,
    "POST /join/{secret}": EVERYBODY_WRITES,
    "POST /language": EVERYBODY_WRITES,
    "GET /me": THEMSELVES,
    "POST /me/password": THEMSELVES,
    "POST /me/sign-out-everywhere": THEMSELVES,
    "POST /me/tokens": THEMSELVES,
    "POST /me/tokens/{number}/end": THEMSELVES,
    "POST /me/profile": THEMSELVES,
    "GET /people": "owner",
    "POST /people/invitations": "owner",
    "POST /people/invitations/{number}/end": "owner",
    "POST /people/programs": "owner",
    "POST /people/role": "owner",
    "POST /people/close": "owner",
    "POST /people/open": "owner",
    "POST /people/link": "owner",
    "GET /label/{study}": LABELERS,
    "POST /label/{study}": LABELERS_WRITE,
    "POST /label/{study}/draft": LABELERS_WRITE,
    "POST /label/{study}/seen": LABELERS_WRITE,
    "POST /label/{study}/undo": LABELERS_WRITE,
    "GET /label/{study}/answers": LABELERS,
    "GET /label/{study}/answers/{item}": LABELERS,
    "GET /guidelines/{sha256}": LABELERS,
    "GET /studies": DECIDERS,
    "POST /studies": OWNERS_WRITE,
    "GET /studies/{study}": OWNERS,
    "POST /studies/{study}/people": OWNERS_WRITE,
    "GET /studies/{study}/export/{form}": OWNERS,
    "GET /studies/{study}/items": OWNERS,
    "POST /studies/{study}/items": OWNERS_WRITE,
    "GET /studies/{study}/items/{item}": OWNERS,
    "POST /studies/{study}/items/{item}": OWNERS_WRITE,
    "GET /studies/{study}/import": OWNERS,
    "POST /studies/{study}/import": OWNERS_WRITE,
    "GET /studies/{study}/disagreements": DECIDERS,
    "GET /studies/{study}/disagreements/{item}": DECIDERS,
    "POST /studies/{study}/disagreements/{item}": DECIDERS_WRITE,
    "GET /chains": OWNERS,
    "GET /chains/{number}": OWNERS,
    "POST /chains/{number}": OWNERS_WRITE,
    "GET /studies/{study}/settings": OWNERS,
    "POST /studies/{study}/settings": OWNERS_WRITE,
    "GET /studies/{study}/guideline": OWNERS,
    "POST /studies/{study}/guideline": OWNERS_WRITE,
    "GET /api/me": MEMBERS,
    "GET /api/studies": MEMBERS,
    "PUT /api/studies/{study}": OWNERS_WRITE,
    "PUT /api/studies/{study}/guideline": OWNERS_WRITE,
    "GET /api/guidelines/{guideline}": MEMBERS,
    "POST /api/studies/{study}/next": LABELERS_WRITE,
    "POST /api/studies/{study}/answers": LABELERS_WRITE,
    "GET /api/studies/{study}/answers": LABELERS,
    "PUT /api/studies/{study}/items/{item}/draft": LABELERS_WRITE,
    "POST /api/studies/{study}/items/{item}/return": LABELERS_WRITE,
    "POST /api/studies/{study}/items": FOLLOWERS_WRITE,
    "GET /api/studies/{study}/items": FOLLOWERS,
    "PATCH /api/studies/{study}/items/{item}": OWNERS_WRITE,
    "POST /api/exclusions": OWNERS_WRITE,
    "GET /api/studies/{study}/disagreements": DECIDERS,
    "POST /api/studies/{study}/disagreements/{item}": DECIDERS_WRITE,
    "GET /api/judgements": FOLLOWERS,
    "GET /api/studies/{study}/quality": FOLLOWERS,
    "GET /api/export": FOLLOWERS,
    "GET /api/people": OWNERS,
    "PATCH /api/people/{handle}": OWNERS_WRITE,
    "POST /api/services": OWNERS_WRITE,
    "GET /api/invitations": OWNERS,
    "POST /api/invitations": OWNERS_WRITE,
    "DELETE /api/invitations/{number}": OWNERS_WRITE,
}


def routes(app: Any) -> Iterator[str]:
    """Each as "GET /path"."""
    for route in iter_route_contexts(app.routes):
        for method in sorted(set(route.methods or ()) - {"HEAD"}):
            yield f"{method} {route.path}"
    yield from (f"GET {route.path}" for route in app.routes if isinstance(route, Mount))


def test_every_route_says_who_may(site: Site) -> None:
    there = set(routes(site.app))
    assert not there - ROUTES.keys(), f"give these a line in ROUTES: {there - ROUTES.keys()}"
    assert ROUTES.keys() - there <= {"GET /static/labelling"}, "these are in ROUTES, and not in the app"
    assert not {who for may in ROUTES.values() for who in may.split()} - set(WHO)


SIGNS_OUT = ("POST /sign-out", "POST /me/sign-out-everywhere")  # there signing in comes next
REFERRED = {"sec-fetch-site": "same-origin", "accept": "text/html"}


@pytest.mark.parametrize("who", WHO)
def test_a_role_may_what_the_table_says(site: Site, who: str) -> None:
    filled = {"study": STUDY, "item": site.items[0], "secret": "s" * 43, "number": "999", "sha256": "0" * 64}
    filled |= {"guideline": "0" * 64, "handle": "nobody", "form": "full"}
    wrong = []
    for route in sorted(set(routes(site.app)) & ROUTES.keys()):
        method, path = route.split(" ")
        answer = site.client(who, new=True).request(method, path.format_map(filled), headers=REFERRED)
        if (fault := fault_of(route, who, answer.status_code, answer.headers.get("location", ""))) is not None:
            wrong.append(fault)
    assert not wrong, "\n".join(wrong)


def fault_of(route: str, who: str, status: int, location: str) -> str | None:
    """Who may is not turned away, whatever else is wrong with an empty request; who may not is told how to get in, or that it is not
    for them: a person who has not signed in is led to it, a program gets 401, all others 403."""
    to_signing_in = status == 303 and location.partition("?")[0] == "/sign-in"
    if who in ROUTES[route].split():
        turned_away = status in (401, 403) or (to_signing_in and route not in SIGNS_OUT)
        return f"{route}: {who} may, and got {status} {location}" if turned_away or status >= 500 else None
    signed_out_page = who == "nobody" and " /api/" not in route
    right = to_signing_in if signed_out_page else status == (401 if who == "nobody" else 403)
    return None if right else f"{route}: {who} may not, and got {status} {location}"
