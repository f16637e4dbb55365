"""The HTTP API: who may do what, that it does what the pages do, and that nothing that is sent makes it fail."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode
from starlette.testclient import TestClient

from bridle.feedback.store.studies import set_gold
from bridle.site.limits import Limits, RateLimit
from tests.labelling_app import HOST, STUDY, WHO, Site, opened

AT = f"/api/studies/{STUDY}"
NOBODY_HAS = "0" * 64
FREE = RateLimit(10**9, 1)
FUZZING = settings(
    derandomize=True, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with opened(tmp_path) as site:
        yield site


def sent(client: TestClient, method: str, path: str, body: Any = None, status: int = 200) -> Any:
    answer = client.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


def answered(client: TestClient, item: str, key: str, status: int = 200, **said: Any) -> Any:
    return sent(client, "POST", f"{AT}/answers", {"item": item, "key": key, **said}, status)


def all_answered(client: TestClient, flip: bool = False) -> list[dict[str, Any]]:
    """Every task of a person, answered by what stands in the answers; `flip`: the other way round."""
    tasks, task = [], sent(client, "POST", f"{AT}/next")["task"]
    while task is not None:
        tasks.append(task)
        places = [sorted(task["answers"], reverse=flip).index(text) + 1 for text in task["answers"]]
        said = {"verdict": -3 if places[0] == 1 else 3} if task["kind"] == "pairwise" else {"places": places}
        task = answered(client, task["item"], f"{flip}{len(tasks)}", **said)["task"]
    return tasks


# --------------------------------------------------------------------------------------------------- what it does


def test_a_task_is_answered_and_the_next_comes_with_the_reply(site: Site) -> None:
    client = site.client("annotator")
    task = sent(client, "POST", f"{AT}/next")["task"]
    assert sent(client, "POST", f"{AT}/next")["task"] == task  # kept for them
    assert not {"weight_stamp", "source", "author", "completions", "display_order"} & task.keys()
    stored = answered(client, task["item"], "first", verdict="both_bad")
    assert stored["task"]["item"] != task["item"]
    assert answered(client, task["item"], "first", verdict="both_bad") == stored  # sent again
    (_, judgement), *more = site.store.judgements(study=STUDY)
    assert not more and stored["judgements"] == [judgement.id] and judgement.outcome == "both_bad"
    # changed, under another key; under the same one it is refused
    answered(client, task["item"], "first", 422, verdict="both_good")
    answered(client, task["item"], "second", verdict="both_good")
    (own,) = sent(client, "GET", f"{AT}/answers")
    assert own["outcome"] == "both_good" and own["answers"] == task["answers"]


def test_own_answers_are_told_in_the_order_in_which_they_were_seen(site: Site) -> None:
    client = site.client("annotator")
    tasks = {task["item"]: task for task in all_answered(client)}
    assert len(tasks) == 3
    for own in sent(client, "GET", f"{AT}/answers"):
        shown = tasks[own["item"]]["answers"]
        assert own["answers"] == shown
        assert [shown[place] for group in own["ranking"] for place in group] == sorted(shown)
    assert sent(site.client("adjudicator"), "GET", f"{AT}/answers") == []


def test_drafts_and_returned_tasks(site: Site) -> None:
    client = site.client("annotator")
    item = sent(client, "POST", f"{AT}/next")["task"]["item"]
    sent(client, "PUT", f"{AT}/items/{item}/draft", {"draft": {"rationale": "因为"}}, 204)
    assert sent(client, "POST", f"{AT}/next")["task"]["draft"] == {"rationale": "因为"}
    sent(site.client("adjudicator"), "PUT", f"{AT}/items/{item}/draft", {"draft": {}}, 404)  # was not asked it
    sent(client, "POST", f"{AT}/items/{item}/return", status=204)
    assert sent(client, "POST", f"{AT}/next")["task"]["item"] != item


def test_an_owner_opens_a_study_fills_it_and_reads_what_people_said(site: Site) -> None:
    owner, study = site.client("owner"), "/api/studies/second"
    made = sent(owner, "PUT", study, {"settings": {"overlap": 2, "gold_rate": 0, "criteria": ["honest"]}})
    assert made["settings"]["overlap"] == 2 and made["criteria"] == ["honest"] and "seed" not in made["settings"]
    assert sent(owner, "PUT", study, {"state": "paused"})["settings"]["overlap"] == 2
    rows = [
        {"prompt": "Why?", "answers": ["Because.", "因为。"], "need": 1, "topic": "causes"},
        {
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}],
            "answers": ["a", "b", "c"],
            "priority": 2,
        },
    ]
    ids = sent(site.client("service"), "POST", f"{study}/items", {"items": rows}, 201)["items"]
    assert sent(owner, "POST", f"{study}/items", {"items": rows}, 201)["items"] == ids
    listed = {row["item"]: row for row in sent(owner, "GET", f"{study}/items?limit=5")}
    assert [listed[key]["prompt"] for key in ids] == ["Why?", "Who?"]
    assert (listed[ids[0]]["need"], listed[ids[0]]["topic"], listed[ids[1]]["kind"]) == (1, "causes", "ranking")
    assert sent(owner, "GET", f"{study}/items?after={listed[ids[0]]['number']}")[0]["item"] == ids[1]
    assert sent(owner, "PUT", f"{study}/guideline", {"texts": {"en": "Be *fair*."}}) == {"version": 1}
    told = {one["name"]: one for one in sent(site.client("annotator"), "GET", "/api/studies")}
    assert told["second"]["settings"] is None
    assert (
        sent(site.client("annotator"), "GET", f"/api/guidelines/{told['second']['guideline']}")["markdown"]
        == "Be *fair*."
    )


def test_gold_priority_and_exclusions(site: Site) -> None:
    owner, (first, second, third) = site.client("owner"), site.items
    sent(owner, "PATCH", f"{AT}/items/{first}", {"gold": [[1], [0]]}, 204)
    sent(owner, "PATCH", f"{AT}/items/{second}", {"priority": 7.5, "need": 1}, 204)
    sent(owner, "PATCH", f"{AT}/items/{second}", {"gold": [[1], [1]]}, 422)
    sent(owner, "PATCH", f"/api/studies/second/items/{second}", {"priority": 1}, 404)
    listed = {row["item"]: row for row in sent(owner, "GET", f"{AT}/items")}
    assert listed[first]["gold"] == [[1], [0]] and listed[first]["acquisition"] == "gold"
    assert listed[second]["priority"] == 7.5 and listed[second]["need"] == 1
    assert sent(site.client("annotator"), "POST", f"{AT}/next")["task"]["item"] == second
    sent(owner, "POST", "/api/exclusions", {"target": "item", "target_id": second, "reason": "spam"}, 204)
    assert sent(site.client("annotator"), "POST", f"{AT}/next")["task"]["item"] == third
    sent(owner, "POST", "/api/exclusions", {"target": "item", "target_id": NOBODY_HAS, "reason": "spam"}, 422)


def test_disagreement_is_decided_and_counted(site: Site) -> None:
    all_answered(site.client("annotator"))
    all_answered(site.client("owner"), flip=True)
    decider = site.client("adjudicator")
    found = sent(decider, "GET", f"{AT}/disagreements")
    assert len(found) == 3 and {len(one["judgements"]) for one in found} == {2}
    item = next(one for one in found if len(one["answers"]) == 2)
    decided = sent(
        decider, "POST", f"{AT}/disagreements/{item['item']}", {"ranking": [[1], [0]], "rationale": "sums"}, 201
    )
    assert len(sent(decider, "GET", f"{AT}/disagreements")) == 2
    sent(decider, "POST", f"{AT}/disagreements/{item['item']}", {"ranking": [[1]]}, 422)
    sent(decider, "POST", f"{AT}/disagreements/{NOBODY_HAS}", {"ranking": [[0], [1]]}, 404)
    assert decided["judgement"] in {one.id for _, one in site.store.judgements(study=STUDY)}
    service = site.client("service")
    assert sent(service, "GET", f"{AT}/quality")["judgements"] == 6
    followed = sent(service, "GET", "/api/judgements?limit=4")
    rest = sent(service, "GET", f"/api/judgements?after={followed['last']}&study={STUDY}")
    numbers = [one["number"] for one in followed["judgements"] + rest["judgements"]]
    assert (
        len(numbers) == 7 and numbers == sorted(numbers) and rest["judgements"][-1]["judgement"] == decided["judgement"]
    )
    lines = service.get(f"/api/export?study={STUDY}&format=rankings").text.splitlines()
    assert len(lines) == 5  # of one item the decision alone counts
    assert service.get("/api/export?study=another").status_code == 422


def test_people_are_invited_changed_and_never_told_with_their_passwords(site: Site) -> None:
    owner = site.client("owner")
    link = sent(owner, "POST", "/api/invitations", {"role": "annotator", "days": 1}, 201)["path"]
    assert re.fullmatch(r"/join/[\w-]{43}", link) and site.client("nobody").get(link).status_code == 200
    (one,) = sent(owner, "GET", "/api/invitations")
    sent(owner, "DELETE", f"/api/invitations/{one['id']}", status=204)
    sent(owner, "DELETE", f"/api/invitations/{one['id']}", status=404)
    assert site.client("nobody").get(link).status_code == 404
    made = sent(owner, "POST", "/api/services", {"handle": "nightly"}, 201)
    program = {"authorization": f"Bearer {made['token']}"}
    assert site.client("nobody").get("/api/me", headers=program).json()["role"] == "service"
    sent(owner, "PATCH", "/api/people/nightly", {"closed": True}, 204)
    assert site.client("nobody").get("/api/me", headers=program).status_code == 401
    sent(owner, "PATCH", "/api/people/annotator", {"role": "adjudicator"}, 204)
    sent(owner, "PATCH", "/api/people/owner", {"closed": True}, 422)  # the only one
    sent(owner, "PATCH", "/api/people/nobody", {"role": "owner"}, 404)
    people = owner.get("/api/people")
    assert site.password_hash not in people.text and "argon2" not in people.text
    assert {one["handle"]: one["role"] for one in people.json()}["annotator"] == "adjudicator"


# ------------------------------------------------------------------------------------------------- who may do what

OWNERS, FOLLOWERS, DECIDERS = {"owner"}, {"owner", "service"}, {"owner", "adjudicator"}
LABELERS, MEMBERS = {"owner", "adjudicator", "annotator"}, {"owner", "adjudicator", "annotator", "service"}
MAY = {
    "list_studies": MEMBERS, "put_study": OWNERS, "put_guideline": OWNERS, "get_guideline": MEMBERS,
    "post_next": LABELERS, "post_answer": LABELERS, "list_own_answers": LABELERS, "put_draft": LABELERS, "post_return": LABELERS,
    "post_items": FOLLOWERS, "list_items": FOLLOWERS, "patch_item": OWNERS, "post_exclusion": OWNERS,
    "list_disagreements": DECIDERS, "post_decision": DECIDERS,
    "list_judgements": FOLLOWERS, "get_quality": FOLLOWERS, "get_export": FOLLOWERS,
    "get_me": MEMBERS, "list_people": OWNERS, "patch_person": OWNERS, "post_service": OWNERS,
    "list_invitations": OWNERS, "post_invitation": OWNERS, "delete_invitation": OWNERS,
}  # fmt: skip


def operations(site: Site) -> dict[str, tuple[str, str]]:
    document = site.client("nobody").get("/api/openapi.json").json()
    return {
        one["operationId"].partition("_api_")[0]: (method.upper(), path)
        for path, methods in document["paths"].items()
        for method, one in methods.items()
    }


def test_every_operation_is_for_its_roles_alone(site: Site) -> None:
    found = operations(site)
    assert found.keys() == MAY.keys()
    for name, (method, path) in found.items():
        at = path.format(study="none", item="none", guideline="none", handle="none", number=1)
        for who in WHO:
            status = site.client(who).request(method, at, json={}).status_code
            role = "owner" if who == "reader" else who
            if who == "nobody":
                assert status == 401, (name, who)
            elif role not in MAY[name] or (who == "reader" and method != "GET"):
                assert status == 403, (name, who)
            else:
                assert status not in (401, 403) and status < 500, (name, who, status)


def test_an_error_is_a_sentence_in_json(site: Site) -> None:
    for path in ("/api/nothing", "/api/studies/none/items", "/api/judgements?limit=no"):
        answer = site.client("owner").get(path, headers={"accept": "text/html"})
        assert answer.status_code in (404, 422) and answer.json().keys() == {"error"}


def test_the_document_names_the_token_and_explains_every_operation(site: Site) -> None:
    document = site.client("nobody").get("/api/openapi.json").json()
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for methods in document["paths"].values():
        for one in methods.values():
            assert len(one["summary"]) > 10 and one["tags"] and one["security"] and "401" in one["responses"]
            assert one["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorSentence")


# ------------------------------------------------------------------------------------------------- what is sent to it


def fuzz(site: Site, who: str, examples: int) -> None:
    """Requests by the document and against it, each operation as often, of a study and an item that are there and of others: none is
    answered with a fault of the server's."""
    set_gold(site.store, site.items[0], ((1,), (0,)), by="owner")
    site.app.state.limits = Limits(FREE, FREE, FREE, FREE)
    headers = {} if who == "nobody" else {"Authorization": f"Bearer {site.token(who)}"}
    client = site.client("nobody")
    schema = schemathesis.openapi.from_dict(client.get("/api/openapi.json").json())
    there = {"study": STUDY, "item": site.items[1], "handle": "annotator"}
    for found in schema.get_all_operations():
        operation = found.ok()
        named = {name: value for name, value in there.items() if f"{{{name}}}" in operation.path}
        for mode, fixed in ((GenerationMode.POSITIVE, named or None), (GenerationMode.NEGATIVE, None)):

            @settings(FUZZING, max_examples=examples)
            @given(case=operation.as_strategy(generation_mode=mode, path_parameters=fixed))
            def send(case: Any) -> None:
                made = case.as_transport_kwargs(base_url=HOST, headers=headers)
                known = {name: made[name] for name in ("method", "url", "headers", "params", "json") if name in made}
                answer = client.request(**known, content=made.get("data"))
                assert answer.status_code < 500, f"{case.method} {case.formatted_path}: {answer.text}"

            send()


@pytest.mark.parametrize("who", ["owner", "annotator", "nobody"])
def test_nothing_that_is_sent_makes_it_fail(site: Site, who: str) -> None:
    fuzz(site, who, 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("who", ["owner", "adjudicator", "annotator", "service"])
def test_nothing_of_much_that_is_sent_makes_it_fail(site: Site, who: str) -> None:
    fuzz(site, who, 150)
