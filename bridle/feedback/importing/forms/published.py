"""Forms of published data sets that spell what they say in a way of their own."""

from __future__ import annotations

from typing import Any

from bridle.core.records import Message, Prompt
from bridle.feedback.importing.forms.asked import question
from bridle.feedback.importing.forms.fields import Row, is_empty, list_in_text, listed, number_in, text_of
from bridle.feedback.importing.forms.imported import ImportedRow, Opinion
from bridle.feedback.importing.forms.slots import require_to_judge, verdicts_on
from bridle.feedback.importing.forms.turns import Turns
from bridle.feedback.importing.forms.verdicts import said_of_comparison, verdict_on, vote_of
from bridle.feedback.importing.reasons import Reason, Skip


def summarize_feedback(row: Row) -> ImportedRow:
    """OpenAI's summarize-from-feedback: two summaries and a choice, or one summary with its scores by axis."""
    prompt, stated = summarized(row.need("info"), row), said_of_comparison(row)
    extra = row.take("extra")
    extra = extra if isinstance(extra, dict) else {}
    row.inside += [name for name, value in extra.items() if name != "confidence" and not is_empty(value)]
    if "summaries" in row:
        summaries, choice = row.take("summaries"), number_in(row.take("choice"))
        if not isinstance(summaries, list) or choice is None or choice not in range(len(summaries)):
            raise Skip(Reason.UNCLEAR_VERDICT)
        answers = tuple(_summary(one, row) for one in summaries)
        found = verdict_on(
            (int(choice), ""), len(answers), {**stated, "confidence": number_in(extra.get("confidence"))}
        )
        return ImportedRow("summarize-feedback", Prompt(prompt), answers, (found,))
    summary = row.need("summary")
    axes = summary.get("axes") if isinstance(summary, dict) else None
    scores = [(name, number_in(value)) for name, value in axes.items()] if isinstance(axes, dict) else []
    opinions = tuple(
        Opinion("score", value, 0, stated["annotator"], None if name == "overall" else str(name)[:100])
        for name, value in scores
        if value is not None
    )
    if not opinions:
        raise Skip(Reason.DISCARDED)
    return ImportedRow("summarize-feedback", Prompt(prompt), (_summary(summary, row),), opinions=opinions)


def _summary(summary: object, row: Row) -> str:
    if not isinstance(summary, dict):
        raise Skip(Reason.WRONG_TYPE)
    row.inside += [name for name, value in summary.items() if name not in ("text", "axes") and not is_empty(value)]
    return text_of(summary.get("text")).strip()


def summarized(info: object, row: Row) -> Turns:
    """The text to be summarised as a prompt, in the words of the paper's code: "SUBREDDIT: … TITLE: … POST: … TL;DR:"."""
    if not isinstance(info, dict):
        raise Skip(Reason.WRONG_TYPE)
    row.inside += [name for name, value in info.items() if name in ("id", "site") and not is_empty(value)]
    parts = [("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title"), ("POST: ", "post"), ("ARTICLE: ", "article")]
    lines = [f"{words}{text_of(info[name]).strip()}" for words, name in parts if not is_empty(info.get(name))]
    if is_empty(info.get("post")) and is_empty(info.get("article")):
        raise Skip(Reason.EMPTY_PROMPT)
    return (Message("user", "\n\n".join([*lines, "TL;DR:"])),)


def shp(row: Row) -> ImportedRow:
    """Stanford's human preferences: a post, two comments, and labels = 1 where A is the better one."""
    label = number_in(row.need("labels"))
    if label not in (0, 1):
        raise Skip(Reason.UNCLEAR_VERDICT)
    answers = text_of(row.need("human_ref_a")), text_of(row.need("human_ref_b"))
    prompt = Prompt((Message("user", text_of(row.need("history"))),))
    return ImportedRow("shp", prompt, answers, (verdict_on((int(label == 0), ""), 2, said_of_comparison(row)),))


def arena(row: Row) -> ImportedRow:
    """LMArena's votes: prompt and both answers are lists in JSON, one entry for each turn; a winner has a field of its own."""
    prompt, *answers = (_json_list(row.need(name)) for name in ("prompt", "response_a", "response_b"))
    if len(prompt) != 1 or any(len(answer) != 1 for answer in answers):
        raise Skip(Reason.DIVERGES)
    flags = [vote_of(row.take(name)) for name in ("winner_model_a", "winner_model_b", "winner_tie") if name in row]
    texts = [text_of(answer[0]) for answer in answers]
    found = verdicts_on(row, ["a", "b"], texts, said_of_comparison(row))
    if flags and sum(flags) != 1:
        raise Skip(Reason.UNCLEAR_VERDICT)
    if not found:
        require_to_judge(row, len(answers))
    return ImportedRow("arena", Prompt((Message("user", text_of(prompt[0])),)), tuple(texts), tuple(found))


def is_arena(row: Row) -> bool:
    names = ("prompt", "response_a", "response_b")
    values = [row.look(name) for name in names if row.fields.keys() >= set(names)]
    lists = [value if isinstance(value, list) else list_in_text(value) for value in values]
    return bool(lists) and all(found and not any(isinstance(part, dict | list) for part in found) for found in lists)


def _json_list(value: object) -> list[Any]:
    found = value if isinstance(value, list) else list_in_text(value)
    if found is None:
        raise Skip(Reason.BROKEN_JSON if isinstance(value, str) else Reason.WRONG_TYPE)
    return found


def prm800k(row: Row) -> ImportedRow:
    """OpenAI's labelled steps: of each step the completion that was chosen, with its rating (-1, 0, 1)."""
    label, asked = row.need("label"), row.need("question")
    steps: list[tuple[str, float]] = []
    for step in listed(label.get("steps")) if isinstance(label, dict) else ():
        done = listed(step.get("completions")) if isinstance(step, dict) else []
        chosen = number_in(step.get("chosen_completion")) if isinstance(step, dict) else None
        found = (
            done[int(chosen)] if chosen is not None and 0 <= chosen < len(done) else done[0] if len(done) == 1 else None
        )
        written = step.get("human_completion") if isinstance(step, dict) else None
        if chosen is None and isinstance(written, dict):  # no completion was right, and the labeler wrote the step
            found = {"text": written.get("text"), "rating": 1}
        if not isinstance(found, dict) or (rating := number_in(found.get("rating"))) is None:
            break
        steps.append((text_of(found.get("text")), rating))
    if not steps or not isinstance(asked, dict):
        raise Skip(Reason.DISCARDED)
    row.read.update(("labeler", "generation"))
    opinion = Opinion("steps", None, annotator=str(row.look("labeler") or ""), steps=tuple(steps))
    answer = "\n".join(text for text, _ in steps)
    return ImportedRow("prm800k", Prompt(question(row, ("question",))), (answer,), opinions=(opinion,))
