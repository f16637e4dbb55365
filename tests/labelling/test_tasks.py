"""The annotator's pages from outside: what is asked, what is stored of the answer, and what is said of it."""

import html
import json
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from httpx2 import Response
from starlette.testclient import TestClient

from bridle.core.records import Completion, Judgement, LabelerKind, Prompt
from bridle.feedback.people.items import add_rating_items, add_writing_items
from bridle.feedback.people.qualification import let_in
from bridle.feedback.store import assignment, tables
from bridle.feedback.store.assignment import display_order
from bridle.feedback.store.labels import labels_by_criterion
from bridle.feedback.store.ratings import add_model_scores, ratings
from bridle.feedback.store.rows import now
from bridle.feedback.store.studies import find_study, guideline_text, publish_guideline, set_gold, set_study
from bridle.feedback.upkeep.takedown import take_down
from bridle.feedback.upkeep.verify import store_faults
from bridle.labelling.app import labelling_app
from bridle.labelling.opening import default_guideline, ensure_studies
from bridle.stages.data import written_answers
from tests.labelling_app import STUDY, Site

ASKED = 'name="key"'  # in the form of a task
AS_JSON = {"accept": "application/json"}
LEAST: dict[str, dict[str, str]] = {  # a whole answer of each kind of task
    "pairwise": {"verdict": "-2"},
    "ranking": {"place_0": "2", "place_1": "1", "place_2": "1"},
    "rating": {"rating.overall.0": "4", "rating.overall.1": "2"},
    "demonstration": {"written": "Two is what it is."},
}


def hidden(page: str) -> dict[str, str]:
    """The fields that the task's form brings with it."""
    (form,) = (form for form in page.split("<form")[1:] if ASKED in form)
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form.split("</form>")[0]))


def kind_of(page: str) -> str:
    names = [("place_0", "ranking"), ("rating.overall.0", "rating"), ("written", "demonstration")]
    return next((kind for name, kind in names if f'name="{name}"' in page), "pairwise")


def open_page(client: TestClient, path: str = f"/label/{STUDY}") -> str:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.text


def send(client: TestClient, fields: dict[str, Any], study: str = STUDY, **headers: str) -> Response:
    return client.post(f"/label/{study}", data=fields, headers=AS_JSON | headers)


def answer_all(client: TestClient, **more: str) -> list[str]:
    """Answer whatever is asked, and say in which order the items came."""
    page, items = open_page(client), list[str]()
    while ASKED in page:
        fields = hidden(page) | LEAST[kind_of(page)] | more
        items.append(fields["item"])
        answer = send(client, fields)
        assert answer.status_code == 200, answer.text
        page = answer.json()["html"]
    return items


def all_kinds(site: Site, **settings: Any) -> None:
    store = site.store
    items = store.items(study=STUDY)
    add_rating_items(store, [items[0].completions, items[1].completions[:1]], study=STUDY)
    add_writing_items(store, [items[0].prompt], study=STUDY)
    set_study(store, STUDY, settings)


# ------------------------------------------------------------------------------------------------ every kind of task


def test_every_kind_of_task_is_asked_and_stored(any_site: Site) -> None:
    all_kinds(any_site)
    store, client = any_site.store, any_site.client("annotator")
    page = open_page(client)
    while ASKED in page:
        flag = {} if kind_of(page) == "demonstration" else {"flag.0": "untrue"}
        flag |= {"rating.overall.1": ""} if 'name="flag.1"' not in page else {}
        answer = send(client, hidden(page) | LEAST[kind_of(page)] | flag | {"rationale": "so it is"})
        assert answer.status_code == 200, answer.text
        page = answer.json()["html"]
    said = {item.kind: one for item, one in store.judgements(study=STUDY)}
    assert set(said) == {"pairwise", "ranking", "rating"}  # what was written ranks nothing
    order = said["pairwise"].display_order
    assert order is not None
    assert said["pairwise"].ranking == ((order[0],), (order[1],))
    assert (said["pairwise"].strength, said["pairwise"].rationale, said["pairwise"].source) == (2, "so it is", "study")
    assert said["pairwise"].labeler_kind == LabelerKind.PERSON
    assert len(said["ranking"].ranking[0]) == 2
    assert len(said["rating"].ranking) == 2
    scores = [one.value for _, one in ratings(store, kind="score")]
    assert sorted(scores, key=lambda score: score or 0) == [2, 4, 4]
    assert len(ratings(store, kind="flag", criterion="untrue")) == 5
    assert [text for _, text in written_answers(store)] == [LEAST["demonstration"]["written"]]
    assert labels_by_criterion(store, STUDY)[None] == {"comparisons": 4, "score": 3}
    assert not [*store_faults(store)]
    store.take_snapshot(study=STUDY)


def test_criteria_are_kept_beside_the_verdict(site: Site) -> None:
    set_study(site.store, STUDY, {"criteria": ["helpful", "our own"]})
    client = site.client("annotator")
    page = open_page(client)
    fields = hidden(page) | LEAST[kind_of(page)]
    refused = send(client, fields)
    assert (refused.status_code, "“Helpful”" in refused.json()["error"]) == (422, True)
    places = kind_of(page) == "ranking"
    given = {f"criterion.helpful{'.place_' + str(n) if places else ''}": "1" for n in range(3)}
    assert send(client, fields | given | {"criterion.our own": "cannot_judge"}).status_code == 200
    assert len(site.store.judgements(study=STUDY)) == len(site.store.judgements_by("helpful")) == 1
    assert not site.store.judgements_by("our own")


# ---------------------------------------------------------------------------------------------------- blind and fair


def test_nobody_sees_who_wrote_what_or_what_others_said(site: Site) -> None:
    store = site.store
    prompt = Prompt.from_text("Who are you?", meta={"family": "secret-family", "lang": "en"})
    group = [
        Completion(prompt.id, f"I am {n}", weight_stamp=f"secret-stamp-{n}", sampling={"seed": "secret-seed"})
        for n in range(2)
    ]
    store.add_prompts([prompt], split="heldout", source="secret-source")
    store.add_completions(group, source="secret-kind")
    (item,) = store.add_items([group], study="blind")
    set_study(store, "blind", {"overlap": 2, "gold_rate": 0, "seed": "secret-of-the-study"})
    set_gold(store, item, ((1,), (0,)), by="owner")
    set_study(store, "blind", {"qualification": 1})
    other, client = site.join("secret-bob"), site.client("annotator")
    fields = hidden(open_page(other, "/label/blind"))
    send(other, fields | {"verdict": "1", "rationale": "secret-reason"}, "blind")
    answers = [client.get("/label/blind")]
    fields = hidden(answers[0].text)
    assert fields["item"] == item
    answers += [send(client, fields | {"verdict": "9"}, "blind"), send(client, fields | {"verdict": "2"}, "blind")]
    answers += [client.post("/label/blind/undo", headers=AS_JSON), client.get(f"/label/blind/answers/{item}")]
    answers += [client.get("/label/blind/answers"), client.get("/label/blind")]
    assert [one.status_code for one in answers] == [200, 422, 200, 200, 200, 200, 200]
    told = "".join(one.text for one in answers)
    assert not re.search(r"secret-|gold|slot|heldout|at random", told, re.IGNORECASE)


def test_the_order_is_ones_own_and_stays(site: Site) -> None:
    for who in ("annotator", "adjudicator"):
        page = open_page(site.client(who))
        item = next(one for one in site.store.items(study=STUDY) if one.id == hidden(page)["item"])
        order = display_order(STUDY, item.id, who, len(item.completions))
        texts = [item.completions[slot].text for slot in order]
        assert sorted(texts, key=lambda text: page.index(f">{html.escape(text)}<")) == texts
        site.app = labelling_app(site.store)  # as after a restart
        again = open_page(site.client(who, new=True))
        assert [*re.findall("Two|Four|Zero|Eleven|22", again)] == [*re.findall("Two|Four|Zero|Eleven|22", page)]


def test_nothing_is_chosen_for_anybody_and_an_untouched_ranking_cannot_be_sent(site: Site) -> None:
    all_kinds(site, criteria=["own"])
    client, seen = site.client("annotator"), set[str]()
    page = open_page(client)
    while ASKED in page:
        seen.add(kind_of(page))
        assert not re.search(r'" (checked|selected)[ >]', page)
        assert send(client, hidden(page)).status_code == 422
        page = send(client, hidden(page) | {"verdict": "skip"}).json()["html"]
    assert seen == set(LEAST)
    assert not site.store.judgements(study=STUDY)


def test_what_was_filled_in_is_there_again_after_a_refusal(site: Site) -> None:
    set_study(site.store, STUDY, {"criteria": ["own"]})
    client = site.client("annotator")
    fields = hidden(open_page(client)) | {"rationale": 'a "reason"', "checked_at": "https://a.example"}
    answer = client.post(f"/label/{STUDY}", data=fields)
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    for page in (answer.text, open_page(client)):
        assert "a &#34;reason&#34;" in page
        assert "https://a.example" in page
    assert hidden(answer.text)["key"] != fields["key"]


# ------------------------------------------------------------------------------------------------- sent, and sent again


def test_without_a_script_a_form_leads_to_the_next_task(site: Site) -> None:
    client = site.client("annotator")
    page = open_page(client)
    answer = client.post(f"/label/{STUDY}", data=hidden(page) | LEAST[kind_of(page)])
    assert (answer.status_code, answer.headers["location"]) == (303, f"/label/{STUDY}?note=saved")
    following = open_page(client, answer.headers["location"])
    assert "Saved" in following
    assert hidden(following)["item"] != hidden(page)["item"]


def test_an_answer_sent_twice_is_one(any_site: Site) -> None:
    client = any_site.client("annotator")
    page = open_page(client)
    fields = hidden(page) | LEAST[kind_of(page)] | {"flag.0": "other", "edit.1": "Improved", "rationale": "why"}
    first, before = send(client, fields), None
    for active in ("1", "2"):
        again = send(client, fields | {"active_seconds": active})
        assert again.status_code == 200
        bodies = [{name: value for name, value in one.json().items() if name != "html"} for one in (first, again)]
        assert bodies[0] == bodies[1]
        assert before in (None, any_site.store.counts())
        before = any_site.store.counts()
    for change in ({"verdict": "-1", "place_0": "1"}, {"rationale": "other"}, {"flag.0": "harmful"}, {"edit.1": "X"}):
        refused = send(client, fields | change)
        assert refused.status_code == 422
        assert "came before with another answer" in refused.json()["error"]
    other = any_site.join("bob")
    assert send(other, fields).status_code == 404  # it was never given to bob
    assert any_site.store.counts() == before
    page = open_page(other)
    assert (
        send(other, hidden(page) | LEAST[kind_of(page)] | {"key": fields["key"]}).status_code == 200
    )  # whose key is his
    assert any_site.store.judgements(study=STUDY)[0][1].strength in (2, None)


@pytest.mark.parametrize(
    ("study", "item"), [(STUDY, "f" * 64), ("nowhere", None), ("second", None), (STUDY, "of somebody else")]
)
def test_what_was_never_given_stores_nothing(site: Site, study: str, item: str | None) -> None:
    set_study(site.store, "second", {})
    client = site.client("annotator")
    fields = hidden(open_page(client)) | {"verdict": "1"}
    if item == "of somebody else":
        item = next(one for one in site.items if one != fields["item"])
    before = site.store.counts()
    answer = send(client, fields | ({} if item is None else {"item": item}), study)
    assert answer.status_code == 404
    assert len(answer.json()["error"]) > 20
    for what in ("draft", "seen"):
        body = {"item": item or fields["item"], "rationale": "x"}
        assert client.post(f"/label/{study}/{what}", json=body).status_code == 404
    assert site.store.counts() == before


@pytest.mark.parametrize("what", ["closed", "excluded item", "excluded person", "taken down", "lease ended"])
def test_what_was_said_is_kept_whatever_happened_meanwhile(
    site: Site, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, store = site.client("annotator"), site.store
    page = open_page(client)
    fields = hidden(page) | LEAST[kind_of(page)] | {"edit.0": "Improved"}
    item = next(one for one in store.items(study=STUDY) if one.id == fields["item"])
    if what == "closed":
        set_study(store, STUDY, {}, state="closed")
    elif what == "lease ended":
        at = datetime.fromisoformat(now()) + timedelta(hours=2)
        monkeypatch.setattr(assignment, "now", lambda: at.isoformat(timespec="milliseconds"))
    elif what == "taken down":
        take_down(store, item.prompt.id, reason="asked for", by="owner")
    elif what == "excluded item":
        store.exclude("item", item.id, reason="bad", by="owner")
    else:
        store.exclude("labeler", "annotator", reason="bad", by="owner")
    answer = send(client, fields)
    assert answer.status_code == 200, answer.text
    assert store.counts()["judgements"] == {"person": 1 if what == "taken down" else 2}
    note = answer.json()["note"]
    assert note.startswith("Your verdict is saved" if what == "taken down" else "Saved.")
    assert ("time had run out" in note) == (what == "lease ended")
    ended = {"closed": "closed", "excluded person": "asked of you any more"}.get(what)
    assert (ended in answer.json()["html"]) if ended else (ASKED in answer.json()["html"])


# --------------------------------------------------------------------------------------------------- taken back


def test_undo_goes_back_answer_by_answer_also_after_a_restart(site: Site) -> None:
    client, store = site.client("annotator"), site.store
    items = answer_all(client, rationale="first thought")
    site.app = labelling_app(store)
    client = site.client("annotator", new=True)
    back = client.post(f"/label/{STUDY}/undo")
    assert back.headers["location"] == f"/label/{STUDY}/answers/{items[-1]}"
    page = open_page(client, back.headers["location"])
    assert "first thought" in page
    assert "Your" not in page or "You said" in page
    earlier = client.post(f"/label/{STUDY}/undo", data={"item": items[-1]}, headers=AS_JSON).json()
    assert earlier["item"] == items[-2]
    assert client.post(f"/label/{STUDY}/undo", data={"item": items[0]}).status_code == 404
    change = {"pairwise": {"verdict": "both_good"}, "ranking": {"place_0": "1"}}[kind_of(earlier["html"])]
    fields = hidden(earlier["html"]) | LEAST[kind_of(earlier["html"])] | change | {"rationale": "second thought"}
    assert send(client, fields).status_code == 200
    in_force = {item.id: one.rationale for item, one in store.judgements(study=STUDY)}
    assert in_force == dict.fromkeys(items, "first thought") | {items[-2]: "second thought"}
    assert store.counts()["judgements"] == {"person": 4}
    assert client.post(f"/label/{STUDY}/undo", headers=AS_JSON).json()["item"] == items[-2]  # it is the last one now
    assert not [*store_faults(store)]


def test_a_skip_can_be_taken_back(site: Site) -> None:
    client = site.client("annotator")
    page = open_page(client)
    send(client, hidden(page) | {"verdict": "skip"})
    back = client.post(f"/label/{STUDY}/undo", headers=AS_JSON).json()
    assert back["item"] == hidden(page)["item"]
    answer = send(client, hidden(back["html"]) | LEAST[kind_of(page)])
    assert answer.json()["note"] == "Saved."
    assert [item.id for item, _ in site.store.judgements(study=STUDY)] == [back["item"]]


def test_what_was_written_is_replaced_and_its_ratings_too(any_site: Site) -> None:
    store, client = any_site.store, any_site.client("annotator")
    page = open_page(client)
    base, item = LEAST[kind_of(page)], hidden(page)["item"]
    for edits in (["Better"], ["Best", "Also good"], [], ["Better"]):
        fields = hidden(open_page(client, f"/label/{STUDY}/answers/{item}")) | base
        fields |= {f"edit.{n}": text for n, text in enumerate(edits)} | ({"flag.0": "untrue"} if edits else {})
        assert send(client, fields).status_code == 200
        assert sorted(text for _, text in written_answers(store)) == sorted(edits)
        assert len(ratings(store, kind="flag")) == bool(edits)
        pairs = [one for _, one in store.judgements(study=STUDY) if one.display_order is None]
        assert [(one.labeler, one.ranking) for one in pairs] == [("annotator", ((1,), (0,)))] * len(edits)
    original = next(one for one in store.items(study=STUDY) if one.id == item)
    edited = [one for one, judgement in store.judgements(study=STUDY) if judgement.display_order is None]
    order = display_order(STUDY, item, "annotator", len(original.completions))
    assert [one.completions[0] for one in edited] == [original.completions[order[0]]]
    found = {one for one in answer_all(any_site.join("bob")) if one not in any_site.items}
    assert not found  # nobody else is asked what became of an edit
    set_study(store, STUDY, {"overlap": 5})  # which counts again who has judged what
    assert not {one for one in answer_all(any_site.join("carol")) if one not in any_site.items}
    assert not [*store_faults(store)]


def test_own_answers_are_listed_and_nobody_elses(site: Site) -> None:
    client, other = site.client("annotator"), site.join("bob")
    items, theirs = answer_all(client, rationale="mine"), answer_all(other, rationale="of bob")
    page = open_page(client, f"/label/{STUDY}/answers")
    assert re.findall(r"/answers/([0-9a-f]{64})", page) == items[::-1]
    assert "of bob" not in page + open_page(client, f"/label/{STUDY}/answers/{theirs[0]}")
    assert client.get(f"/label/{STUDY}/answers/{'f' * 64}").status_code == 404
    assert client.get(f"/label/{STUDY}/answers?page=0").status_code == 422
    assert "answered nothing" in open_page(site.join("carol"), f"/label/{STUDY}/answers")


# ------------------------------------------------------------------------------------------------ while one is at it


def test_a_draft_comes_back_with_its_task(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    client = site.client("annotator")
    fields = hidden(open_page(client))
    body = fields | {"rationale": "half a thought", "flag.0": ["untrue", "other"], "edit.0": "\ud800 <b>"}
    assert client.post(f"/label/{STUDY}/draft", content=json.dumps(body)).status_code == 204
    assert client.post(f"/label/{STUDY}/seen", json={"item": fields["item"]}).status_code == 204
    site.app = labelling_app(site.store)
    for passed in (0, 2):  # while the lease lasts, and when it has ended and is given anew
        at = datetime.fromisoformat(now()) + timedelta(hours=passed)
        monkeypatch.setattr(assignment, "now", lambda at=at: at.isoformat(timespec="milliseconds"))
        page = open_page(site.client("annotator", new=True))
        assert hidden(page)["item"] == fields["item"]
        assert "half a thought" in page
        assert "\ufffd &lt;b&gt;" in page
        assert len(re.findall(r'<input type="checkbox"[^>]* checked', page)) == 2
    page = send(client, fields | LEAST[kind_of(page)]).json()["html"]
    assert (
        client.post(f"/label/{STUDY}/draft", json=body | {"edit.0": ""}).status_code == 204
    )  # it was under way while the form was sent
    assert "half a thought" not in open_page(client, f"/label/{STUDY}/answers/{fields['item']}")


def test_time_is_measured_and_no_more_is_active_than_passed(site: Site) -> None:
    client = site.client("annotator")
    for active, least in (("1e6", 0.0), ("-3", None), ("nan", None), ("soon", None)):
        page = open_page(client)
        if ASKED not in page:
            break
        client.post(f"/label/{STUDY}/seen", json={"item": hidden(page)["item"]})
        fields = hidden(page) | LEAST[kind_of(page)] | {"active_seconds": active}
        assert send(client, fields).status_code == 200
        stored = site.store.judgements(study=STUDY)[-1][1]
        assert stored.wall_seconds is not None
        if least is None:
            assert stored.seconds is None
        else:
            assert stored.seconds is not None
            assert 0 <= stored.seconds < 1e5


@pytest.mark.parametrize(
    ("path", "sent", "status"),
    [
        ("", {"content": b"x" * (5 * 2**20)}, 413),
        ("", {"data": {f"f{n}": "" for n in range(501)}}, 400),
        ("", {"data": {}}, 404),
        ("", {"json": {"item": "1"}}, 404),
        ("", {"content": b"\xff\xfe", "headers": {"content-type": "application/x-www-form-urlencoded"}}, 404),
        ("", {"files": {"item": ("a.txt", b"x")}}, 400),
        ("/draft", {"content": b"x" * (5 * 2**20)}, 413),
        ("/draft", {"content": b"{"}, 422),
        ("/draft", {"content": b"[1]"}, 422),
        ("/draft", {"content": b"\xff"}, 422),
        ("/draft", {"content": b"[" * 100_000}, 422),
        ("/draft", {"json": {"item": {"a": 1}}}, 404),
        ("/seen", {"content": b""}, 422),
        ("/undo", {"data": {"item": "\0"}}, 404),
    ],
)
def test_bad_input_is_told_and_changes_nothing(site: Site, path: str, sent: dict[str, Any], status: int) -> None:
    client = site.client("annotator")
    open_page(client)
    before = site.store.counts()
    answer = client.post(f"/label/{STUDY}{path}", **{"headers": AS_JSON, **sent})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]
    assert site.store.counts() == before


def test_what_models_write_stays_text(site: Site) -> None:
    store, nasty = site.store, '</textarea></form><script>alert(1)</script><img src="http://a.example/"> \u202egnp.exe'
    prompt = Prompt.from_text(nasty + " long " * 5_000)
    group = [Completion(prompt.id, nasty), Completion(prompt.id, "x" * 1_000_000)]
    store.add_prompts([prompt], split="train", source="t")
    store.add_completions(group, source="t")
    store.add_items([group], study="wild")
    set_study(store, "wild", {"criteria": ['"><script>']})
    client = site.client("annotator")
    page = open_page(client, "/label/wild")
    assert not re.search("<script(?! type=.module| src)|<img|\u202e", page)
    assert "x" * 1_000_000 in page
    client.post("/label/wild/draft", json=hidden(page) | {"edit.0": nasty, 'criterion."><script>': nasty})
    assert not re.search("<script(?! type=.module| src)|<img|\u202e", open_page(client, "/label/wild"))


# ---------------------------------------------------------------------------------------------- studies and guidelines


def test_the_guideline_that_was_shown_is_stamped(site: Site) -> None:
    client, store = site.client("annotator"), site.store
    chinese = {"accept-language": "zh-CN"}
    stamped = []
    for language, publish in (("zh", {}), ("en", {"en": "New."}), ("zh", {"zh": "新的。", "en": "Newer."})):
        page = client.get(f"/label/{STUDY}", headers={"accept-language": language}).text
        if publish:  # meanwhile
            publish_guideline(store, STUDY, publish)
        answer = send(client, hidden(page) | LEAST[kind_of(page)], **{"accept-language": language})
        assert answer.status_code == 200
        one = store.judgements(study=STUDY)[-1][1]
        assert one.lang == language
        stamped.append(guideline_text(store, one.guideline or ""))
    assert stamped == ["请选择*正确*的回答。", "Prefer what is *true*.", "New."]
    found = find_study(store, STUDY, "zh")
    assert found is not None
    assert "新的。" in client.get(f"/guidelines/{found.guideline}", headers=chinese).text
    assert client.get(f"/guidelines/{'f' * 64}").status_code == 404


def test_a_study_without_a_guideline_gets_ours(site: Site) -> None:
    set_study(site.store, "second", {})
    site.store.add_items([site.store.items(study=STUDY)[0].completions], study="second")
    client = site.client("annotator")
    for language, heading in (("en", "How to judge answers"), ("zh", "如何评判答案")):
        page = client.get("/label/second", headers={"accept-language": language}).text
        assert heading in open_page(client, f"/guidelines/{hidden(page)['guideline']}")
    assert {lang: 400 < len(text) for lang, text in default_guideline().items()} == {"en": True, "zh": True}


def test_items_without_a_study_are_opened_and_what_was_judged_counts(site: Site) -> None:
    store = site.store
    groups = [one.completions for one in store.items(study=STUDY)]
    first, *_ = store.add_items(groups, study="comparisons")
    store.add_judgements([Judgement(first, "import", LabelerKind.IMPORTED, ((0,), (1,)), None)])
    assert ensure_studies(store) == ["comparisons"]
    assert ensure_studies(store) == []
    page = open_page(site.client("annotator"), "/label/comparisons")
    assert "0 of 2" in page
    start = site.client("annotator").get("/")
    assert start.status_code == 200
    assert re.findall(r'href="/label/(\w+)"', start.text) == [STUDY, "comparisons"]
    set_study(store, STUDY, {}, state="closed")
    assert site.client("annotator").get("/").headers["location"] == "/label/comparisons"
    assert site.client("owner").get("/").headers["location"] == "/studies"


@pytest.mark.parametrize(("verdicts", "passes"), [("rr", True), ("rc", False)])
def test_a_round_with_known_answers_stands_before_real_work(site: Site, verdicts: str, passes: bool) -> None:
    pass_a_round(site, verdicts, passes)


def test_whoever_does_not_pass_can_be_let_in(any_site: Site) -> None:
    pass_a_round(any_site, "wr", False)


def pass_a_round(site: Site, verdicts: str, passes: bool) -> None:
    """`verdicts`: right, wrong or undecided, one for each gold item."""
    store, client, gold = site.store, site.client("annotator"), site.items[:2]
    for item in gold:
        set_gold(store, item, ((1,), (0,)), by="owner")
    set_study(store, STUDY, {"qualification": 2, "pass_mark": 0.75})
    page = open_page(client)
    for number, how in enumerate(verdicts):
        assert hidden(page)["item"] in gold
        assert f"{number} of 2" in page
        right = display_order(STUDY, hidden(page)["item"], "annotator", 2) == (0, 1)
        verdict = {"r": "3" if right else "-3", "w": "-1" if right else "1", "c": "cannot_judge"}[how]
        page = send(client, hidden(page) | {"verdict": verdict}).json()["html"]
    assert (ASKED in page) == passes
    if not passes:
        assert "let you in" in page
        let_in(store, STUDY, "annotator", by="owner")
        page = open_page(client)
    assert hidden(page)["item"] == site.items[2]
    assert "of 2" not in page


def test_no_gold_keeps_nobody_out(site: Site) -> None:
    set_study(site.store, STUDY, {"qualification": 2, "pass_mark": 1})
    assert len(answer_all(site.client("annotator"))) == 3


def test_who_gets_slower_and_less_right_is_asked_to_pause(site: Site) -> None:
    from bridle.labelling import tasks

    client, looks = site.client("annotator"), list[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "LOOK_EVERY", 2)
        patch.setattr(tasks, "is_tired", lambda sitting: looks.append(len(sitting)) or True)
        notes: Sequence[str] = [
            send(client, hidden(page) | LEAST[kind_of(page)]).json()["note"]
            for page in (open_page(client) for _ in range(2))
        ]
    assert looks == [2]
    assert notes[0] == "Saved."
    assert "a pause may do you good" in notes[1]


def test_what_a_reward_model_makes_of_the_answers_is_a_hint_where_the_owner_wants_it(site: Site) -> None:
    """In the order in which the person sees them; nothing is chosen by it, and other studies do not show it."""
    client = site.client("annotator")
    page = open_page(client)
    item = next(one for one in site.store.items(study=STUDY) if one.id == hidden(page)["item"])
    add_model_scores(site.store, item.completions, "a" * 64, "reward", [0.8, -0.8, 0.0][: len(item.completions)])
    assert "reward model" not in open_page(client), "off by default"
    set_study(site.store, STUDY, {"show_suggestions": True})
    page = open_page(client)
    order = display_order(STUDY, item.id, "annotator", len(item.completions))
    shares = [(69, 31, 50)[slot] for slot in order]
    hint = ", ".join(f"{letter} {share}%" for letter, share in zip("ABC", shares, strict=False))
    assert f"how surely each beats a typical answer: {hint}" in html.unescape(page) and " checked" not in page
    token = {"authorization": f"Bearer {site.token('annotator')}"}
    asked = TestClient(site.app, "http://testserver").post(f"/api/studies/{STUDY}/next", headers=token).json()["task"]
    assert asked["item"] == item.id and [round(100 * one) for one in asked["suggestions"]] == shares


@pytest.mark.parametrize("why", ["gold", "random"])
def test_what_people_and_answers_are_measured_by_is_judged_without_a_hint(site: Site, why: str) -> None:
    client = site.client("annotator")
    set_study(site.store, STUDY, {"show_suggestions": True})
    page = open_page(client)
    item = next(one for one in site.store.items(study=STUDY) if one.id == hidden(page)["item"])
    add_model_scores(site.store, item.completions, "a" * 64, "reward", [0.8, -0.8, 0.0][: len(item.completions)])
    assert "reward model" in open_page(client)
    with site.store.writing() as connection:
        connection.execute(
            sa.update(tables.item).where(tables.item.c.sha256 == item.id).values(acquisition=why, state="open")
        )
    page = open_page(client)
    assert hidden(page)["item"] == item.id and "reward model" not in page
