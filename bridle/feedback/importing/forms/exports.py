"""What labelling tools and chat pages export: Label Studio, Argilla, Open WebUI, Open-Assistant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridle.core.records import Message, Prompt
from bridle.feedback.importing.forms.asked import dialogue_field
from bridle.feedback.importing.forms.fields import Row, is_empty, listed, number_in, plain_name, text_of
from bridle.feedback.importing.forms.imported import ImportedRow, ImportedVerdict, Opinion
from bridle.feedback.importing.forms.plain import answer_field, answered
from bridle.feedback.importing.forms.slots import answer_slots, answers_in_slots
from bridle.feedback.importing.forms.turns import ROLES, Turns, with_system
from bridle.feedback.importing.forms.verdicts import Outcome, criterion_of, verdict_on, vote_of, winner_of
from bridle.feedback.importing.reasons import Note, Reason, Skip

REMARKS = {
    "comment",
    "comments",
    "rationale",
    "reason",
    "reasons",
    "explanation",
    "note",
    "notes",
    "why",
    "justification",
    "critique",
}
CRITERIA_ASKED = {"harmless", "helpful", "honest", "helpfulness", "harmlessness", "honesty", "correctness"}
WHOLE = {"preference", "overall", "best", "better", "choice", "winner", "ranking", "rank", "pairwise", "pw", "preferred", "rating", "score",
         "quality", "label", "vote", "verdict"}  # fmt: skip


@dataclass(frozen=True)
class Statement:
    """What one annotator put in for one question."""

    question: str
    value: Any
    annotator: str = ""


def judged(form: str, row: Row, stated: Sequence[Statement], whole: Row) -> ImportedRow:
    """The fields of a task with what annotators said of them: verdicts on answers in slots, votes or scores on a single one.
    `whole` is the row that the task came in, whose notes and reading it shares."""
    remarks = [one.question for one in stated if is_remark(one)]
    stated = [one for one in stated if not is_remark(one)]
    if not stated:
        raise Skip(Reason.UNREAD_ANSWER, remarks[0]) if remarks else Skip(Reason.DISCARDED)
    several = len({one.question for one in stated}) > 1
    slots = answer_slots(row)
    if slots:
        prompt, answers = answers_in_slots(row, slots)
        found = [_verdict(one, list(slots), len(answers), several) for one in stated]
        verdicts = tuple(verdict for verdict in found if isinstance(verdict, ImportedVerdict))
        opinions = tuple(opinion for opinion in found if isinstance(opinion, Opinion))
    elif answer_field(row) or dialogue_field(row):
        prompt, answer = answered(row)
        answers, verdicts, opinions = [answer], (), tuple(_opinion(one, several) for one in stated)
    else:
        raise Skip(Reason.UNKNOWN_FIELDS)
    whole.notes |= row.notes
    whole.roles |= row.roles
    whole.inside += row.unread() + remarks
    return ImportedRow(form, Prompt(prompt), tuple(answers), verdicts, opinions)


def is_remark(stated: Statement) -> bool:
    """Whether it is a text beside the judgement: a comment, by its question's name or its length."""
    text = stated.value[0] if isinstance(stated.value, list) and len(stated.value) == 1 else stated.value
    named = not REMARKS.isdisjoint(re.split(r"[\W_]+", stated.question.lower()))
    return isinstance(text, str) and (named or len(text.split()) > 5)


def asked_criterion(question: str, several: bool) -> str | None:
    """What a question is about; None for the whole. Where there are several each is about something of its own, unless it says not."""
    name = plain_name(question)
    return name[:100] if name in CRITERIA_ASKED or (several and WHOLE.isdisjoint(name.split("_"))) else None


def _verdict(stated: Statement, tags: list[str], answers: int, several: bool) -> ImportedVerdict | Opinion:
    value, criterion = stated.value, asked_criterion(stated.question, several)
    if isinstance(value, list) and value and all(isinstance(part, dict) and "rank" in part for part in value):
        return ImportedVerdict(_ranking(value, tags, answers), annotator=stated.annotator, criterion=criterion)
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    # "rating_1", "generations-0-rating": of one of the answers
    place = re.search(r"(\d+|(?<![a-z])[a-h])(?:$|[_-])", stated.question.lower().rstrip("?"))
    if (score := number_in(value)) is not None and place and place[1] in tags and winner_of(value, tags) is None:
        return Opinion("score", score, tags.index(place[1]), stated.annotator)
    outcome: Outcome | None = winner_of(value, tags)
    if outcome is None:
        raise Skip(Reason.UNCLEAR_VERDICT, stated.question)
    return verdict_on(outcome, answers, {"annotator": stated.annotator, "criterion": criterion})


def _ranking(value: list[dict[str, Any]], tags: list[str], answers: int) -> tuple[tuple[int, ...], ...]:
    """Ranks of values that end in their answer's tag, 1 the best, equal ones a tie."""
    places: dict[float, list[int]] = {}
    for part in value:
        outcome, rank = winner_of(str(part.get("value")), tags), number_in(part.get("rank"))
        if outcome is None or outcome[0] is None or rank is None:
            raise Skip(Reason.UNCLEAR_VERDICT)
        places.setdefault(rank, []).append(outcome[0])
    ranking = tuple(tuple(sorted(group)) for _, group in sorted(places.items()))
    if sorted(slot for group in ranking for slot in group) != list(range(answers)):
        raise Skip(Reason.UNCLEAR_VERDICT)
    return ranking


def _opinion(stated: Statement, several: bool) -> Opinion:
    value = stated.value[0] if isinstance(stated.value, list) and len(stated.value) == 1 else stated.value
    score, criterion = number_in(value), criterion_of(stated.question.lower())
    named = criterion if criterion in CRITERIA_ASKED else asked_criterion(stated.question, several)
    if score is not None and not (score == -1 or isinstance(value, bool)):
        return Opinion("score", score, annotator=stated.annotator, criterion=named)
    return Opinion("vote", vote_of(value), annotator=stated.annotator, criterion=named)


# ------------------------------------------------------------------------------------------------- Label Studio


def label_studio(row: Row) -> ImportedRow:
    """A task with its annotations: "pairwise" (left, right), choices, ratings. Cancelled annotations do not count."""
    data, annotations = row.need("data"), row.need("annotations")
    if not isinstance(data, dict) or not isinstance(annotations, list):
        raise Skip(Reason.WRONG_TYPE)
    stated = []
    for annotation in annotations:
        if not isinstance(annotation, dict) or annotation.get("was_cancelled") or not annotation.get("result"):
            row.notes.add(Note.WITHOUT_DISCARDED)
            continue
        who = annotation.get("completed_by")
        who = who.get("email", who.get("id")) if isinstance(who, dict) else who
        stated += [Statement(*found, "" if who is None else str(who)[:200]) for found in _results(annotation["result"])]
    return judged("label-studio", Row(data), stated, row)


def _results(results: object) -> Iterator[tuple[str, Any]]:
    for result in listed(results):
        value = result.get("value") if isinstance(result, dict) else None
        found = [
            value[name]
            for name in ("selected", "choices", "rating", "number", "text")
            if isinstance(value, dict) and name in value
        ]
        if not found:
            raise Skip(Reason.UNCLEAR_VERDICT)
        yield str(result.get("from_name", "")), found[0]


# ------------------------------------------------------------------------------------------------------ Argilla


def is_argilla(row: Row) -> bool:
    return isinstance(row.look("fields"), dict) and "responses" in row or bool(_answered_questions(row))


def _answered_questions(row: Row) -> list[str]:
    """Questions whose column holds the responses of each user."""
    listed = [name for name in row if isinstance(row.look(name), list) and row.look(name)]
    users = [
        name
        for name in listed
        if all(isinstance(part, dict) and "value" in part and "user_id" in part for part in row.look(name))
    ]
    return users or [name.removesuffix(".responses") for name in listed if name.endswith(".responses")]


def argilla(row: Row) -> ImportedRow:
    """A record with its responses, as the server, the SDK or a data set has them; discarded ones and drafts do not count."""
    if isinstance(row.look("fields"), dict):
        inner = Row(row.take("fields"))
        responses = row.take("responses")
        found = list(_of_users(responses) if isinstance(responses, list) else _of_questions(responses))
        whole = row
    else:
        questions = _answered_questions(row)
        if not questions:
            raise Skip(Reason.MISSING_FIELD)
        columns = {name: _column(row, name) for name in questions}
        found = list(_of_questions(columns))
        inner, whole = Row({name: value for name, value in row.fields.items() if name not in row.read}), Row({})
    kept = [stated for status, stated in found if status in ("submitted", "")]
    if len(kept) < len(found):
        row.notes.add(Note.WITHOUT_DISCARDED)
    example = judged("argilla", inner, kept, whole)
    if whole is not row:
        row.read |= inner.read
        row.notes |= whole.notes
        row.roles |= whole.roles
    return example


def _column(row: Row, name: str) -> list[dict[str, Any]]:
    if name in row:
        return list(row.take(name))
    values, users, states = (row.take(f"{name}.responses{end}") or [] for end in ("", ".users", ".status"))
    return [
        {"value": value, "user_id": users[n] if n < len(users) else "", "status": states[n] if n < len(states) else ""}
        for n, value in enumerate(values)
    ]


def _of_users(responses: list[Any]) -> Iterator[tuple[str, Statement]]:
    for response in responses:
        if not isinstance(response, dict):
            raise Skip(Reason.WRONG_TYPE)
        status, user = str(response.get("status", "")), str(response.get("user_id") or "")
        values = response.get("values") or {}
        if not values:
            yield "discarded", Statement("", None)
        for question, value in values.items() if isinstance(values, dict) else ():
            yield status, Statement(str(question), value.get("value") if isinstance(value, dict) else value, user)


def _of_questions(responses: object) -> Iterator[tuple[str, Statement]]:
    for question, answers in responses.items() if isinstance(responses, Mapping) else ():
        for answer in listed(answers):
            if isinstance(answer, dict):
                yield (
                    str(answer.get("status") or ""),
                    Statement(str(question), answer.get("value"), str(answer.get("user_id") or "")),
                )


# --------------------------------------------------------------------------------------------------- Open WebUI


def is_open_webui(row: Row) -> bool:
    return isinstance(row.look("data"), dict) and "rating" in row.look("data") and "snapshot" in row


def open_webui(row: Row) -> ImportedRow:
    """A thumb on a message of a chat that came with it. In the arena, where other models answered too, it is a comparison with them."""
    data, snapshot, meta = row.need("data"), row.take("snapshot"), row.take("meta")
    if not isinstance(data, dict):
        raise Skip(Reason.WRONG_TYPE)
    meta = meta if isinstance(meta, dict) else {}
    row.take("type")
    who = str(row.take("user_id") or "")[:200]
    history = _inside(snapshot, "chat", "chat", "history")
    stated = history.get("messages") if isinstance(history, dict) else None
    chosen = _message(stated, meta.get("message_id") or _inside(history, "currentId"))
    if not isinstance(chosen, dict) or chosen.get("role") != "assistant":
        raise Skip(Reason.WRONG_TYPE)
    assert isinstance(stated, dict)
    prompt, rating = _chat_before(chosen, stated, row), data.get("rating")
    chat = _inside(snapshot, "chat", "chat")
    system = _inside(chat, "system") or _inside(chat, "params", "system")
    prompt = with_system(system if isinstance(system, str) else "", prompt, row)
    row.inside += [
        name
        for name, value in data.items()
        if name not in ("rating", "model_id", "sibling_model_ids") and not is_empty(value)
    ]
    others = [
        message
        for message in stated.values()
        if isinstance(message, dict) and message is not chosen and message.get("parentId") == chosen.get("parentId")
        and message.get("role") == "assistant" and message.get("model") in listed(data.get("sibling_model_ids"))
    ]  # fmt: skip
    answers = tuple(text_of(message.get("content")) for message in (chosen, *others))
    if not others and number_in(rating) == 0:
        raise Skip(Reason.UNCLEAR_VOTE)
    if not others:
        return ImportedRow(
            "open-webui", Prompt(prompt), answers, opinions=(Opinion("vote", vote_of(rating), annotator=who),)
        )
    rest = tuple(range(1, len(answers)))
    ranking = ((0, *rest),) if number_in(rating) == 0 else ((0,), rest) if vote_of(rating) else (rest, (0,))
    return ImportedRow("open-webui", Prompt(prompt), answers, (ImportedVerdict(ranking, annotator=who),))


def _inside(value: object, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _message(stated: object, name: object) -> Any:
    return stated.get(name) if isinstance(stated, dict) and isinstance(name, str) else None


def _chat_before(message: dict[str, Any], stated: dict[str, Any], row: Row) -> Turns:
    turns: list[Message] = []
    parent = _message(stated, message.get("parentId"))
    while isinstance(parent, dict) and len(turns) <= len(stated):
        role = str(parent.get("role"))
        row.roles.add(role)
        if role not in ROLES:
            raise Skip(Reason.UNKNOWN_ROLE, role)
        if not is_empty(parent.get("files")):
            raise Skip(Reason.IMAGES, "files")
        turns.insert(0, Message(ROLES[role], text_of(parent.get("content"))))
        parent = _message(stated, parent.get("parentId"))
    return tuple(turns)


# ------------------------------------------------------------------------------------------------- Open-Assistant


def is_tree(row: Row) -> bool:
    return "message_tree_id" in row and isinstance(row.look("prompt"), dict)


def is_flat_message(values: Mapping[str, Any]) -> bool:
    wanted = {"message_id", "text", "role"}  # the first of a tree has no parent
    return wanted <= set(map(plain_name, values)) and wanted <= set(Row(values))


def tree(row: Row) -> list[ImportedRow]:
    """A tree of messages: several ranked answers to one prompt are a ranking, an answer that nobody ranked is a demonstration."""
    row.read.update(("message_tree_id", "tree_state"))
    if str(row.look("tree_state")).startswith(("aborted", "halted")):
        raise Skip(Reason.DISCARDED, "tree_state")
    root = row.need("prompt")
    found = list(rows_of_tree(root, row)) if isinstance(root, dict) else []
    if not found:
        raise Skip(Reason.LONE_MESSAGE)
    return found


def rows_of_tree(root: dict[str, Any], row: Row) -> Iterator[ImportedRow]:
    waiting: list[tuple[dict[str, Any], Turns]] = [(root, ())]
    while waiting:
        message, before = waiting.pop()
        role = ROLES.get(str(message.get("role")))
        row.roles.add(str(message.get("role")))
        if role is None or message.get("deleted"):
            continue
        turns = (*before, Message(role, text_of(message.get("text"))))
        replies = [reply for reply in listed(message.get("replies")) if isinstance(reply, dict)]
        waiting += [(reply, turns) for reply in replies]
        good = [reply for reply in replies if is_good_answer(reply)]
        if role == "user" and good:
            lang = message.get("lang")
            yield from _answers_of(Prompt(turns, {"lang": lang} if isinstance(lang, str) else {}), good)


def is_good_answer(reply: dict[str, Any]) -> bool:
    """Neither deleted nor refused by those who reviewed it."""
    refused = reply.get("deleted") or reply.get("review_result") is False
    return not refused and ROLES.get(str(reply.get("role"))) == "assistant"


def _answers_of(prompt: Prompt, replies: list[dict[str, Any]]) -> Iterator[ImportedRow]:
    ranks = [number_in(reply.get("rank")) for reply in replies]
    ranked = [
        (rank, text_of(reply.get("text"))) for rank, reply in zip(ranks, replies, strict=True) if rank is not None
    ]
    if len(ranked) > 1:
        ranked.sort(key=lambda one: one[0])
        groups: dict[float, list[int]] = {}
        for place, (rank, _) in enumerate(ranked):
            groups.setdefault(rank, []).append(place)
        verdicts = (ImportedVerdict(tuple(map(tuple, groups.values()))),)
        yield ImportedRow("oasst", prompt, tuple(text for _, text in ranked), verdicts, ranked=True)
    alone = [reply for rank, reply in zip(ranks, replies, strict=True) if rank is None or len(ranked) < 2]
    for reply in alone:
        yield ImportedRow("oasst", prompt, (text_of(reply.get("text")),), imitate=True)


def trees_of(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Open-Assistant's flat messages as trees; one whose parent is missing begins a tree of its own, unless it is an answer."""
    nodes = {str(message["message_id"]): {**message, "replies": []} for message in messages}
    roots = []
    for node in nodes.values():
        parent = nodes.get(str(node.get("parent_id")))
        if parent is not None and parent is not node:
            parent["replies"].append(node)
        elif ROLES.get(str(node.get("role"))) == "user" and is_empty(node.get("parent_id")):
            roots.append(node)
    return roots
