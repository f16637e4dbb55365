"""What of the data a model can learn from: what is kept, what is cut, what cannot be used, and why. Counted before training.

What is too long loses the beginning of its prompt, which the answers of a comparison share: whole old turns where the chat
template lets it, else its first tokens. An answer is never cut and no token is overwritten. What cannot be saved so is
dropped; nothing is dropped without being counted, with one example for each reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bridle.core.errors import ModelError, NoUsableRows
from bridle.core.records import Completion, Pair, Prompt
from bridle.models.template import Template, special_ids

EMPTY = "an empty answer"
SAME = "answers of the same tokens"
LONG = "an answer longer than the context"
NO_ROOM = "no room in the context for an answer"
CONTROL = "a start or stop token written in the text"
REFUSED = "messages that the chat template refuses"
REWRITTEN = "a prompt that the chat template changes once it is answered"
OLD_TURNS, LEFT = "old turns left out", "the prompt cut from the left"
HINTS = {
    EMPTY: "look at the answers' field in the file",
    SAME: "look for answers that differ in white space or behind a stop token alone",
    LONG: "raise model.max_positions before `train pretrain`, or take a model of a longer context",
    NO_ROOM: "lower sampling.max_new_tokens, or take a model of a longer context",
    CONTROL: "import plain text, for the chat template writes such tokens itself",
    REFUSED: "take another template, or leave out system messages and turns out of order",
    REWRITTEN: "take a template that only appends",
}


@dataclass
class DataReport:
    """How many of `rows` can be used. `cut` and `dropped` count them by reason."""

    what: str  # "demonstrations", "comparisons", "prompts"
    rows: int
    cut: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        return self.rows - self.dropped.total()

    def drop(self, reason: str, prompt: Prompt, count: int = 1) -> None:
        self.dropped[reason] += count
        self.examples.setdefault(reason, beginning(prompt.text))

    def shorten(self, reason: str, prompt: Prompt, count: int = 1) -> None:
        self.cut[reason] += count
        self.examples.setdefault(reason, beginning(prompt.text))

    def without_fault(self, prompt: Prompt, fault: str | None) -> bool:
        if fault is not None:
            self.drop(fault, prompt)
        return fault is None

    def lines(self) -> list[str]:
        """What a person reads before the first step."""
        if not self.cut and not self.dropped:
            return [f"{self.what}: all {self.rows:,} kept whole"]
        counted = [("cut", self.cut), ("dropped", self.dropped)]
        return [f"{self.what}: {self.kept:,} of {self.rows:,} kept, {self.cut.total():,} of them cut"] + [
            f"  {count:,} {done}: {reason}, such as “{self.examples[reason]}”"
            for done, reasons in counted
            for reason, count in reasons.most_common()
        ]

    def check(self, limit: float) -> None:
        """Raise NoUsableRows where more than the share `limit` was dropped."""
        if self.dropped.total() <= limit * self.rows:
            return
        counted = ", ".join(f"{count:,} for {reason}" for reason, count in self.dropped.most_common())
        worst = self.dropped.most_common(1)[0][0]
        raise NoUsableRows(
            f"{self.dropped.total():,} of {self.rows:,} {self.what} cannot be used ({counted}; the first begins “{self.examples[worst]}”), "
            f"which is more than data.drop_limit = {limit} allows; {HINTS[worst]}, or raise that limit"
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "kept": self.kept,
            "cut": dict(self.cut),
            "dropped": dict(self.dropped),
            "examples": self.examples,
        }


def beginning(text: str, width: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


# ------------------------------------------------------------------------------------------------- what is wrong


def stop_tokens(template: Template) -> set[str]:
    """The special tokens that end an answer, as text."""
    special = special_ids(template.tokenizer)
    return {token for i in template.stop_ids & special if (token := template.tokenizer.id_to_token(i))}


def control_tokens(template: Template) -> set[str]:
    """Those, and the one that opens a page."""
    return stop_tokens(template) | ({template.bos_token} - {""})


def prompt_fault(template: Template, prompt: Prompt) -> str | None:
    """Why nothing can be learnt from answers to this prompt; None where all is well."""
    control = control_tokens(template)
    if any(token in message.content for message in prompt.messages for token in control):
        return CONTROL
    try:
        template.render(prompt.messages, answer_next=True)
    except ModelError:
        return REFUSED
    return None


def answer_fault(template: Template, prompt: Prompt, text: str) -> str | None:
    """Why this text, written elsewhere, is no answer to learn from. One stop token at its end is as good as none."""
    body = text.strip()
    for token in sorted(stop_tokens(template)):
        body = body.removesuffix(token).strip()
    if not body:
        return EMPTY
    if any(token in body for token in control_tokens(template)):
        return CONTROL
    try:
        template.answer_text(prompt, text)
    except ModelError:
        return REWRITTEN
    return None


# ------------------------------------------------------------------------------------------------------ cutting


def least_room(template: Template, prompt: Prompt) -> int:
    """Tokens that must be left of a prompt: its start token, the cue for the assistant, and one token of what was asked."""
    asked, cued = (template.render(prompt.messages, answer_next=cue) for cue in (False, True))
    cue = cued[len(asked) :] if cued.startswith(asked) else cued[-1:]
    return len(template.bos_ids) + len(template.tokenizer.encode(cue, add_special_tokens=False).ids) + 1


def cut_prompt(template: Template, prompt: Prompt, room: int) -> tuple[list[int], str]:
    """The prompt's ids in `room` tokens (at least `least_room`), and what was done: its oldest turns go first, up to a later
    turn of the user; a system message stays. Where that is not enough, or the template refuses it, its first tokens go."""
    count = 1 if prompt.messages[0].role == "system" else 0
    system, turns = prompt.messages[:count], prompt.messages[count:]
    ids = template.prompt_ids([prompt])[0]
    for start in range(1, len(turns)):
        if turns[start].role != "user":
            continue
        shorter = Prompt((*system, *turns[start:]))
        if prompt_fault(template, shorter) is not None:
            break
        ids = template.prompt_ids([shorter])[0]
        if len(ids) <= room:
            return ids, OLD_TURNS
    first = template.bos_ids if ids[: len(template.bos_ids)] == template.bos_ids else []
    return [*first, *ids[len(ids) - room + len(first) :]], LEFT


def fitting_ids(
    template: Template, prompt: Prompt, ids: list[int], room: int, report: DataReport, rows: int = 1
) -> list[int]:
    """The prompt's ids where they fit, else what `cut_prompt` leaves of them, counted."""
    if len(ids) <= room:
        return ids
    shorter, how = cut_prompt(template, prompt, room)
    report.shorten(how, prompt, rows)
    return shorter


# ----------------------------------------------------------------------------------------------------- encoding


def encode_shown(
    template: Template, shown: Sequence[tuple[Prompt, str]], limit: int
) -> tuple[list[tuple[list[int], list[int]]], DataReport]:
    """(prompt ids, answer ids) of demonstrations within `limit` tokens, and the report."""
    report = DataReport("demonstrations", len(shown))
    good = [
        (prompt, text)
        for prompt, text in shown
        if report.without_fault(prompt, prompt_fault(template, prompt) or answer_fault(template, prompt, text))
    ]
    prompts = template.prompt_ids([prompt for prompt, _ in good])
    answers = template.completion_ids([prompt for prompt, _ in good], [text for _, text in good])
    kept = []
    for (prompt, _), ids, answer in zip(good, prompts, answers, strict=True):
        if not report.without_fault(prompt, too_long(template, prompt, ids, answer, limit)):
            continue
        kept.append((fitting_ids(template, prompt, ids, limit - len(answer), report), answer))
    return kept, report


def too_long(template: Template, prompt: Prompt, ids: list[int], answer: list[int], limit: int) -> str | None:
    """Whether an answer leaves no room even for a cut prompt."""
    if len(ids) + len(answer) <= limit:
        return None
    return LONG if len(answer) + min(len(ids), least_room(template, prompt)) > limit else None


def encode_compared(
    template: Template, members: Sequence[Pair], limit: int, report: DataReport
) -> tuple[list[int], dict[str, list[int]], list[Pair]] | None:
    """Of one prompt's pairs: (prompt ids, ids of each answer by its id, pairs that can be used), all within `limit`; None
    where no pair is left. The prompt is cut once, for the longest answer that is kept."""
    prompt = members[0].prompt
    if (fault := prompt_fault(template, prompt)) is not None:
        report.drop(fault, prompt, len(members))
        return None
    ids = template.prompt_ids([prompt])[0]
    answers = {c.id: c for pair in members for c in (pair.chosen, pair.rejected)}
    faults = {
        name: None if c.token_ids else answer_fault(template, prompt, c.text)  # what a model wrote is as it wrote it
        for name, c in answers.items()
    }
    good = [c for name, c in answers.items() if faults[name] is None]
    encoded = dict(zip((c.id for c in good), answer_ids(template, prompt, good), strict=True))
    faults |= {name: too_long(template, prompt, ids, row, limit) for name, row in encoded.items()}
    kept = []
    for pair in members:
        one, other = pair.chosen.id, pair.rejected.id
        fault = faults[one] or faults[other] or (SAME if encoded[one] == encoded[other] else None)
        if report.without_fault(prompt, fault):
            kept.append(pair)
    if not kept:
        return None
    used = {c.id: encoded[c.id] for pair in kept for c in (pair.chosen, pair.rejected)}
    room = limit - max(map(len, used.values()))
    return fitting_ids(template, prompt, ids, room, report, len(kept)), used, kept


def answer_ids(template: Template, prompt: Prompt, completions: Sequence[Completion]) -> list[list[int]]:
    """Ids as they were sampled; text written elsewhere is encoded as the template would."""
    written = [c for c in completions if not c.token_ids]
    encoded = iter(template.completion_ids([prompt] * len(written), [c.text for c in written]))
    return [list(c.token_ids) if c.token_ids else next(encoded) for c in completions]


def roomy(
    template: Template, prompts: Sequence[Prompt], new_tokens: int, limit: int, what: str
) -> tuple[list[Prompt], DataReport]:
    """Prompts that leave room for `new_tokens` within `limit`, whole: a question that is cut is another question."""
    report = DataReport(what, len(prompts))
    good = [prompt for prompt in prompts if report.without_fault(prompt, prompt_fault(template, prompt))]
    lengths = [len(ids) for ids in template.prompt_ids(good)]
    kept = [
        prompt
        for prompt, length in zip(good, lengths, strict=True)
        if report.without_fault(prompt, None if length + new_tokens <= limit else NO_ROOM)
    ]
    return kept, report
