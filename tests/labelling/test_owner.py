"""The owner's and the adjudicator's pages, through HTTP, and what they read against what plain Python counts."""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa

from bridle.core.records import Completion, Judgement, LabelerKind, Prompt, Rating
from bridle.feedback.people.accounts import moment
from bridle.feedback.people.overview import filters, find_items, item_record, model_scores, study_counts
from bridle.feedback.store import tables
from bridle.feedback.store.assignment import display_order, submit
from bridle.feedback.store.ratings import add_model_scores, add_ratings
from bridle.feedback.store.store import Store, insert_new
from bridle.feedback.store.studies import find_study, set_gold, set_study
from bridle.labelling.owner import measures
from bridle.labelling.owner.measures import by_day, cost_of
from bridle.project.project import Project
from bridle.recipe.recipe import Recipe
from tests.feedback.conftest import any_store  # noqa: F401
from tests.labelling_app import STUDY, Site, opened

BASE = f"/studies/{STUDY}"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with opened(tmp_path) as site:
        yield site


def say(
    store: Store, item: str, who: str, ranking: Sequence[Sequence[int]], outcome: str = "", seconds: float = 30
) -> Judgement:
    """What a person says of an item that they are given now, in canonical slots."""
    with store.writing() as connection:
        number = connection.execute(sa.select(tables.item.c.id).where(tables.item.c.sha256 == item)).scalar_one()
        given = {
            "item_id": number,
            "labeler": who,
            "display_order": [*range(sum(map(len, ranking)))][::-1],
            "state": "open",
        }
        insert_new(connection, tables.labeler, [{"handle": who, "kind": "person"}])
        insert_new(connection, tables.assignment, [given | {"lease_until": moment(60)}])
    said = tuple(map(tuple, ranking)) if outcome != "skip" else ()
    one = Judgement(item, who, LabelerKind.PERSON, said, None, outcome=outcome, seconds=seconds)  # type: ignore[arg-type]
    return submit(store, STUDY, [one])[0]


def pairs(store: Store, texts: Sequence[tuple[str, str, str]], **settings: object) -> list[str]:
    prompts = [Prompt.from_text(prompt) for prompt, *_ in texts]
    groups = [
        [Completion(p.id, text, weight_stamp="sft+7") for text in of[1:]] for p, of in zip(prompts, texts, strict=True)
    ]
    store.add_prompts(prompts, split="train", source="test")
    store.add_completions([answer for group in groups for answer in group], source="sample")
    items = store.add_items(groups, study=STUDY)
    set_study(store, STUDY, {"gold_rate": 0, "overlap": 2, **settings})
    return items


def ids(store: Store, only: str = "", words: str = "") -> set[str]:
    return {row.id for row in find_items(store, STUDY, only=only, words=words)}


def test_progress_and_filters_equal_what_was_done(any_store: Store) -> None:  # noqa: F811
    one, two, three, four, five, six = pairs(any_store, [(f"Question {n}?", "Yes.", "No.") for n in range(6)])
    for item, first, second in ((one, [[0], [1]], [[1], [0]]), (two, [[0], [1]], [[0], [1]])):
        say(any_store, item, "anna", first)
        say(any_store, item, "ben", second, seconds=50)
    judged = say(any_store, three, "anna", [[0, 1]], "both_bad")
    set_gold(any_store, five, [[0], [1]], by="owner")
    any_store.exclude("item", six, reason="private", by="owner")
    answer = any_store.items(study=STUDY)[2].completions[1]
    add_ratings(
        any_store,
        [Rating(answer, "anna", LabelerKind.PERSON, "flag", None, criterion="harmful", judgement_id=judged.id)],
    )
    progress = study_counts(any_store, STUDY, 2)
    assert (progress.done, progress.open, progress.gold, progress.excluded) == (2, 2, 1, 1)
    assert (progress.to_go, progress.judgements) == (1 + 2, 5)
    expected = {
        "unlabelled": {four}, "open": {three, four}, "done": {one, two}, "disagreed": {one}, "gold": {five}, "flagged": {three},
        "excluded": {six},
    }  # fmt: skip
    assert {name: ids(any_store, name) for name in filters()} == expected
    assert ids(any_store) == {one, two, three, four, five, six}
    votes = {row.id: row.votes for row in find_items(any_store, STUDY)}
    assert (
        votes[one] == {"0": 1, "1": 1}
        and votes[two] == {"0": 2}
        and votes[three] == {"both_bad": 1}
        and votes[four] == {}
    )
    any_store.exclude("labeler", "ben", reason="a coin", by="owner")
    assert ids(any_store, "disagreed") == set() and study_counts(any_store, STUDY, 2).to_go == 1 + 2


def test_pages_of_items_follow_one_another(any_store: Store) -> None:  # noqa: F811
    items = pairs(any_store, [(f"Question {n}?", "Yes.", "No.") for n in range(7)])
    first = find_items(any_store, STUDY, limit=4)
    rest = find_items(any_store, STUDY, before=first[-1].number, limit=4)
    assert [row.id for row in (*first, *rest)] == items[::-1]


FOUND = [("50%", {0}), ("a_b", {1}), ("LANDLORD", {2}), ('say "no"', {3}), ("école", {4}), ("ÉCOLE", {4}), ("\\", {5}), ("two\nlines", {6}),
     ("QUESTION", {0, 1, 2, 3, 4, 5, 6}), ("'; DROP TABLE item; --", set()), ("%", {0}), ("_", {1})]  # fmt: skip


def test_search_takes_words_as_they_are(any_store: Store) -> None:  # noqa: F811
    texts = ("50% off", "a_b", "My landlord", 'I say "no"', "L'École", "a \\ b", "in two\nlines")
    items = pairs(
        any_store,
        [(f"Question {n}?" + (text if n % 2 else ""), "" if n % 2 else text, "No.") for n, text in enumerate(texts)],
    )
    for words, found in FOUND:
        assert ids(any_store, words=words) == {items[n] for n in found}, words


def test_scores_are_told_by_slot(any_store: Store) -> None:  # noqa: F811
    (item,) = pairs(any_store, [("Why?", "Because.", "No.")])
    answers = any_store.items(study=STUDY)[0].completions
    assert model_scores(any_store, STUDY, item) == [{}, {}]
    add_model_scores(any_store, answers, "a" * 64, "reward", [1.5, -0.5])
    assert [[*scores.values()] for scores in model_scores(any_store, STUDY, item)] == [[1.5], [-0.5]]
    assert model_scores(any_store, STUDY, "0" * 64) == [] and model_scores(any_store, "other", item) == []


# ---------------------------------------------------------------------------------------------------- a study's page


def test_a_study_is_measured_once_until_something_changes(site: Site) -> None:
    owner, calls = site.client("owner"), list[str]()

    def counted(store: Store, study: str) -> measures.Measures:
        calls.append(study)
        return measures.measure(store, study)

    site.app.state.measures = measures.Kept(counted)
    assert "nobody has judged anything yet" in owner.get(BASE).text
    say(site.store, site.items[0], "anna", [[1], [0]])
    say(site.store, site.items[0], "ben", [[1], [0]])
    page = owner.get(BASE).text
    assert owner.get(BASE).text == page and len(calls) == 2
    assert "<strong>anna</strong>" in page and "<strong>ben</strong>" in page
    sent = {"handle": "ben", "reason": "<i>asleep</i>"}
    assert owner.post(f"{BASE}/people", data=sent).headers["location"] == f"{BASE}?note=excluded"
    page = owner.get(BASE).text
    assert len(calls) == 3 and "<strong>ben</strong>" not in page
    assert "ben is left out since" in page and "&lt;i&gt;asleep&lt;/i&gt;" in page
    assert owner.post(f"{BASE}/people", data={"handle": "anna", "reason": " "}).status_code == 422


def test_what_took_long_is_shown_a_while_longer(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "QUICK", -1.0)
    monkeypatch.setattr(measures, "KEPT_TIMES", 1e9)
    kept = measures.Kept(measures.measure)
    say(site.store, site.items[0], "anna", [[1], [0]])
    first = kept.of(site.store, STUDY)
    say(site.store, site.items[1], "anna", [[1], [0]])
    assert kept.of(site.store, STUDY) is first
    site.store.exclude("item", site.items[1], reason="wrong", by="owner")
    assert kept.of(site.store, STUDY) is not first


def test_cost_is_by_the_piece_or_by_the_hour(site: Site) -> None:
    for item, seconds in ((site.items[0], 30), (site.items[1], 90)):
        say(site.store, item, "anna", [[0], [1]], seconds=seconds)
    say(site.store, site.items[2], "anna", [[0], [1], [2]], "skip", seconds=60)
    found = measures.measure(site.store, STUDY)
    assert (found.pieces, found.seconds, found.mean_seconds) == (
        2,
        180,
        60,
    )  # what was skipped took its time, and is no piece
    study = find_study(site.store, STUDY)
    assert study is not None
    plain = study.settings
    recipe = Recipe().with_settings({"label.piece_price": 0.5}).label
    assert cost_of(plain, None, found, 4) is None
    by_piece = cost_of(plain, recipe, found, 4)
    assert by_piece is not None and (by_piece.by, by_piece.spent, by_piece.to_go) == ("piece", 1.0, 2.0)
    by_hour = cost_of(plain.model_copy(update={"hour_price": 36.0}), recipe, found, 4)
    assert by_hour is not None and by_hour.by == "hour"
    assert (by_hour.one, by_hour.spent, by_hour.to_go) == (pytest.approx(0.6), pytest.approx(1.8), pytest.approx(2.4))
    ((day, count),) = by_day(measures.given_judgements(site.store, STUDY))
    assert count == 2 and len(day) == 10


def test_a_plan_for_labels_is_drawn(site: Site, tmp_path: Path) -> None:
    project = site.app.state.project = Project.create(tmp_path / "project", Recipe())
    say(site.store, site.items[0], "anna", [[0], [1]])
    owner = site.client("owner")
    assert "bridle label plan" in owner.get(BASE).text
    point = {"count": 200, "accuracy": 0.7, "low": 0.65, "high": 0.75, "price": None}
    plan = {"judgements": 100, "accuracy": 0.65, "study": STUDY, "with_100_more": point, "forecast": [point]}
    plan["measured"] = [{"judgements": 50, "accuracy": 0.6}, {"judgements": 100, "accuracy": 0.65}]
    (project.folder / "label-plan.json").write_text(json.dumps(plan), encoding="utf-8")
    assert "with 100 more judgements it should be 0.700 (0.650 to 0.750)" in owner.get(BASE).text
    (project.folder / "label-plan.json").write_text("{}", encoding="utf-8")
    assert owner.get(BASE).status_code == 422


def test_a_study_is_made_once_and_under_a_plain_name(site: Site) -> None:
    owner = site.client("owner")
    made = {"name": "Second 研究", "overlap": "3", "criteria": ["helpful", "odd"]}
    assert owner.post("/studies", data=made).headers["location"] == f"/studies/{quote('Second 研究')}?note=opened"
    found = find_study(site.store, "Second 研究")
    assert found is not None and (found.settings.overlap, found.settings.criteria) == (3, ("helpful",))
    for sent in (
        made,
        {"name": "../x"},
        {"name": ""},
        {"name": "third", "overlap": "0"},
        {"name": "third", "overlap": "x"},
    ):
        refused = owner.post("/studies", data=sent)
        assert refused.status_code == 422 and 'role="alert"' in refused.text
    assert owner.get("/studies/" + quote("Second 研究")).status_code == 200
    assert "bridle sample" in owner.get("/studies/" + quote("Second 研究")).text


def test_labels_are_taken_away_as_json_lines(site: Site) -> None:
    owner = site.client("owner")
    assert owner.get(f"{BASE}/export/preference").status_code == 422
    say(site.store, site.items[0], "anna", [[1], [0]])
    say(site.store, site.items[1], "anna", [[1], [0]])
    for form, rows in {"preference": 2, "rankings": 2, "unpaired": 4, "full": None}.items():
        answer = owner.get(f"{BASE}/export/{form}")
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert answer.headers["content-disposition"].startswith("attachment")
        assert len(lines) == rows if rows else lines[0]["type"] == "store"
        assert "password" not in answer.text
    assert owner.get(f"{BASE}/export/argilla").status_code == 404


# --------------------------------------------------------------------------------------------------------- its items


def test_an_item_is_changed_made_gold_and_excluded(site: Site) -> None:
    owner, (pair, other, ranking) = site.client("owner"), site.items
    page = f"{BASE}/items/{pair}"
    assert (
        owner.post(page, data={"action": "change", "priority": "2,5", "need": "4", "topic": "law"}).status_code == 303
    )
    record = item_record(site.store, STUDY, pair)
    assert record is not None and (record.row.priority, record.need, record.row.topic) == (2.5, 4, "law")
    assert owner.post(page, data={"action": "gold", "place_0": "2", "place_1": "1"}).status_code == 303
    record = item_record(site.store, STUDY, pair)
    assert record is not None and record.ranking == [[1], [0]]
    refused = [
        {"action": "gold", "place_0": "3", "place_1": "1"},
        {"action": "exclude"},
        {"priority": "x"},
        {"priority": "inf"},
    ]
    for sent in [*refused, {"need": "0"}, {"need": "101"}, {"priority": "nan"}]:
        assert owner.post(page, data=sent).status_code == 422, sent
    assert owner.post(page, data={"action": "exclude", "reason": "names somebody"}).status_code == 303
    assert "names somebody" in owner.get(page).text and ids(site.store, "excluded") == {pair}
    chosen = owner.post(f"{BASE}/items", data={"item": [other, ranking, "0" * 64], "priority": "7"})
    assert chosen.headers["location"].endswith("note=changed&n=2")
    assert {row.priority for row in find_items(site.store, STUDY) if row.id in (other, ranking)} == {7.0}
    assert (
        "&lt;b&gt;!&lt;/b&gt;" in owner.get(f"{BASE}/items/{other}").text
        and "<b>!" not in owner.get(f"{BASE}/items").text
    )


ROWS = [
    {"prompt": "Why is the sea salt?", "responses": ["Rivers bring it.", "It is not."]},
    {"prompt": "Tea or coffee?", "response_a": "Tea.", "response_b": "Coffee.", "response_c": "Both."},
    {"prompt": "One?", "chosen": "1", "rejected": "2", "annotator": "ann"},
    {"prompt": "Same?", "responses": ["1", "1"]},
    {"prompt": "Which?", "response_a": "x", "response_b": "y", "winner": "the blue one"},
]


def test_a_file_comes_in_with_a_report_or_not_at_all(site: Site) -> None:
    owner, lines = site.client("owner"), "\n".join(map(json.dumps, ROWS))
    before = ids(site.store)

    def sent(body: bytes, name: str = "../../evil.jsonl") -> tuple[int, str]:
        answer = owner.post(f"{BASE}/import", files={"file": (name, body)})
        return answer.status_code, answer.text

    status, text = sent(lines.encode())
    assert status == 200 and "identical answers" in text and "a verdict of unknown meaning" in text
    assert (
        "<dt>Kept</dt><dd>3</dd>" in text
        and "<dt>New here</dt><dd>3</dd>" in text
        and "<dt>Skipped</dt><dd>2</dd>" in text
    )
    new = {row.prompt: row for row in find_items(site.store, STUDY) if row.id not in before}
    assert set(new) == {"Why is the sea salt?", "Tea or coffee?", "One?"}
    assert len(new["Tea or coffee?"].answers) == 3 and sum(new["One?"].votes.values()) == 1
    judged = item_record(site.store, STUDY, new["One?"].id)
    assert (
        judged is not None and judged.acquisition in ("random", "informative") and judged.judgements[0].labeler == "ann"
    )
    assert study_counts(site.store, STUDY, 3).to_go == 9 + 3 + 3 + 2  # who judged it elsewhere counts
    status, text = sent(lines.encode())
    assert status == 200 and "<dt>New here</dt><dd>0</dd>" in text
    everything = ids(site.store)
    broken = gzip.compress(
        "\n".join(json.dumps({"prompt": str(n), "responses": ["a", "b"]}) for n in range(5000)).encode()
    )
    for body in (b"", b'{"prompt": 1}\n', broken[:-2000]):
        status, text = sent(body, "x.jsonl.gz")
        assert status == 422 and "bridle-import-" not in text and "x.jsonl.gz" in text
    assert ids(site.store) == everything
    assert owner.post(f"{BASE}/import", data={}).status_code == 422


# ------------------------------------------------------------------------------------- settings and the guideline

SETTINGS = {"state": "paused", "overlap": "4", "lease_seconds": "10", "gold_rate": "7,5", "random_share": "30", "qualification": "2",
            "piece_price": "0.05", "hour_price": "", "criteria": "helpful，safe, helpful", "topics": "law: anna, ben\n"}  # fmt: skip


def test_settings_are_saved_in_the_forms_units(site: Site) -> None:
    assert site.client("owner").post(f"{BASE}/settings", data=SETTINGS).status_code == 303
    found = find_study(site.store, STUDY)
    assert found is not None and found.state == "paused"
    kept, expected = (
        found.settings,
        {"overlap": 4, "lease_seconds": 600, "gold_rate": 0.075, "random_share": 0.3, "qualification": 2},
    )
    assert {name: getattr(kept, name) for name in expected} == expected
    assert (kept.piece_price, kept.hour_price, kept.criteria) == (0.05, None, ("helpful", "safe"))
    assert kept.topics == {"law": ("anna", "ben")} and not kept.show_suggestions
    page = site.client("owner").get(f"{BASE}/settings").text
    assert 'name="gold_rate" type="text" inputmode="decimal" value="7.5"' in page and "law: anna, ben" in page


WRONG = [("overlap", "0", "at least 1"), ("overlap", "1.5", "whole number"), ("overlap", "many", "A number"),
         ("gold_rate", "100", "less than 100"), ("random_share", "101", "at most 100"), ("lease_seconds", "0", "more than 0"),
         ("piece_price", "-1", "at least 0"), ("state", "gone", "one of these"), ("topics", "law anna", "not a topic"),
         ("gold_rate", "nan", "number"), ("overlap", "1e400", "number")]  # fmt: skip


def test_a_wrong_setting_is_said_where_it_is(site: Site) -> None:
    before, owner = find_study(site.store, STUDY), site.client("owner")
    for field, value, words in WRONG:
        refused = owner.post(f"{BASE}/settings", data={**SETTINGS, field: value})
        assert refused.status_code == 422 and words in refused.text.partition(f'id="fault-{field}"')[2][:200], (
            field,
            value,
        )
        assert find_study(site.store, STUDY) == before
    chinese = owner.post(f"{BASE}/settings", data={**SETTINGS, "overlap": "0"}, headers={"accept-language": "zh"}).text
    assert "没有保存" in chinese and "至少为 1" in chinese


def test_a_guideline_is_previewed_then_published_once(site: Site) -> None:
    owner, page = site.client("owner"), f"{BASE}/guideline"
    sent = {"en": "Be **kind**. <script>alert(1)</script>", "zh": ""}
    shown = owner.post(page, data={**sent, "action": "preview"}).text
    assert "<strong>kind</strong>" in shown and "<script>" not in shown and "Version 2" not in shown
    for _ in range(2):
        assert owner.post(page, data={**sent, "action": "publish"}).headers["location"].endswith("note=published&n=2")
    shown = owner.get(page).text
    assert "Version 2" in shown and "Version 1" in shown and "Version 3" not in shown
    assert owner.post(page, data={"en": " ", "action": "publish"}).status_code == 422


# ------------------------------------------------------------------------------------------------ disagreements


def test_a_decision_is_what_training_learns_from(site: Site) -> None:
    item, adjudicator = site.items[1], site.client("adjudicator")
    say(site.store, item, "anna", [[0], [1]])
    say(site.store, item, "ben", [[1], [0]])
    page = f"{BASE}/disagreements/{item}"
    assert page in adjudicator.get(f"{BASE}/disagreements").text
    text = adjudicator.get(page).text
    assert "anna" not in text and "ben" not in text and "Person 2" in text and "You judged" not in text
    assert "<strong>anna</strong>" in site.client("owner").get(page).text
    order = display_order(STUDY, item, "adjudicator", 2)
    sent = {"item": item, "key": "once", "verdict": "-3", "rationale": "It is right."}
    for verdict in ("", "cannot_judge", "skip", "9"):
        refused = adjudicator.post(page, data={**sent, "verdict": verdict})
        assert refused.status_code == 422 and "It is right." in refused.text
    for _ in range(2):
        assert adjudicator.post(page, data=sent).headers["location"] == f"{BASE}/disagreements?note=decided"
    (pair,) = [
        one for one in site.store.snapshot_pairs(site.store.take_snapshot(study=STUDY).id) if one.item_id == item
    ]
    answers = {row.id: row for row in site.store.items(study=STUDY)}[item].completions
    assert (pair.chosen.id, pair.target, pair.strength) == (answers[order[0]].id, 1.0, 3)
    assert len(pair.judgement_ids) == 1
    assert "there is nothing to decide" in adjudicator.get(f"{BASE}/disagreements").text
    record = item_record(site.store, STUDY, item)
    assert (
        record is not None
        and [one.decides for one in record.judgements] == [False, False, True]
        and record.row.state == "done"
    )


def test_a_ranking_is_decided_by_places_and_the_next_one_comes(site: Site) -> None:
    pair, ranking, owner = site.items[0], site.items[2], site.client("owner")
    for item, slots in ((ranking, 3), (pair, 2)):
        say(site.store, item, "owner" if item == ranking else "anna", [[slot] for slot in range(slots)])
        say(site.store, item, "ben", [[slot] for slot in reversed(range(slots))])
    page = f"{BASE}/disagreements/{ranking}"
    assert "You judged this item yourself" in owner.get(page).text
    sent = {"item": ranking, "key": "places", "place_0": "2", "place_1": "1", "place_2": "2"}
    assert owner.post(page, data=sent).headers["location"] == f"{BASE}/disagreements/{pair}?note=decided"
    order = display_order(STUDY, ranking, "owner", 3)
    record = item_record(site.store, STUDY, ranking)
    assert record is not None
    assert [one.ranking for one in record.judgements if one.decides] == [[[order[1]], sorted((order[0], order[2]))]]
    assert site.client("owner").get(f"{BASE}/disagreements/{site.items[1]}").status_code == 404


# ------------------------------------------------------------------------------------------------------ who and what

PAGES = ("", "/items", "/items/{item}", "/import", "/settings", "/guideline", "/export/preference")
POSTS = ("/people", "/items", "/items/{item}", "/import", "/settings", "/guideline")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_pages_are_for_their_roles_and_ids_are_looked_up(site: Site, language: str) -> None:
    for item in site.items[:2]:
        say(site.store, item, "anna", [[0], [1]])
        say(site.store, item, "ben", [[1], [0]])
    item, headers = site.items[0], {"accept-language": language}
    deciding = ("/disagreements", "/disagreements/{item}")
    for rest in (*PAGES, *deciding):
        path = BASE + rest.format(item=item)
        seen = {
            who: site.client(who).get(path, headers=headers).status_code
            for who in ("annotator", "adjudicator", "owner", "nobody")
        }
        adjudicator = 200 if rest in deciding else 403
        assert seen == {"annotator": 403, "adjudicator": adjudicator, "owner": 200, "nobody": 303}, rest
        if "{item}" in rest:
            assert site.client("owner").get(BASE + rest.format(item="0" * 64)).status_code == 404
        assert site.client("owner").get("/studies/none" + rest.format(item=item)).status_code == 404
    for rest in (*POSTS, *deciding[1:]):
        seen = {
            who: site.client(who).post(BASE + rest.format(item=item), data={"x": "1"}).status_code
            for who in ("annotator", "service")
        }
        assert seen == {"annotator": 403, "service": 403}, rest
        other = site.client("owner").post(BASE + rest.format(item=item), headers={"origin": "https://evil.example"})
        assert other.status_code == 403
    assert site.client("adjudicator").get("/studies").status_code == 200
