"""From rows to token ids, and what of the data a model can learn from: what is kept, what is cut, what cannot be used, and why.

What is too long loses the beginning of its prompt, which the answers of a comparison share: whole old turns where the chat
template lets it, else its first tokens. An answer is never cut and no token is overwritten. What cannot be saved so is
dropped; nothing is dropped without being counted, with one example for each reason. Each function here takes the template and the
limit in tokens, and returns what is kept with a `DataReport`, which its caller prints and checks.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from bridle.core.errors import ModelError, NoUsableRows, OutsideEmbeddings, RunawayTemplate, UnspeltToken
from bridle.core.records import Completion, Pair, Prompt, Ranking, Rating
from bridle.core.timeline import timed
from bridle.models.batches import REWARD, Compared, Group, Ranked, Rated
from bridle.models.control import OPENED
from bridle.models.imitation import Example
from bridle.models.template import Template, WrittenAnswer

T = TypeVar("T")

# An answer's id and, where one ranking holds it several times, which of them it is.
AnswerKey = tuple[str, int]

EMPTY = "an empty answer"
SAME = "answers of the same tokens"
EVEN = "answers that all tie"
LONG = "an answer longer than the context"
NO_ROOM = "no room in the context for an answer"
CONTROL = "a special token spelt in the text, which cannot be encoded as text"
OUTSIDE = "a token that the model has no embedding for"
REFUSED = "messages that the chat template refuses"
LEFT_OUT = "a system message that the chat template leaves out"
REWRITTEN = "a prompt that the chat template changes once it is answered"
DROPPED = "an answer of which the chat template leaves out a part"
SPELT = "a special token spelt in the text, encoded as the text it is"
APART = "an answer whose beginning the tokenizer would join with the end of its prompt, encoded apart"
UNTHOUGHT = "an answer without the thought that the cue for the assistant opens, put where the template has it: after the cue's beginning"
PIECES = "a text longer than the context, learnt in pieces"
OLD_TURNS, LEFT = "old turns left out", "the prompt cut from the left"
HINTS = {
    EMPTY: "look at the answers' field in the file",
    SAME: "look for answers that differ only in white space or after a stop token",
    EVEN: "rank some answers above others",
    LONG: "raise model.max_positions before `train pretrain`, or take a model of a longer context",
    NO_ROOM: "lower sampling.max_new_tokens, or take a model of a longer context",
    CONTROL: "import plain text, for the chat template writes such tokens itself",
    OUTSIDE: "leave the token's text out of the file, or give the model an embedding for it",
    REFUSED: "take another template, leave out turns out of order, or set model.fold_system = true where it refuses system messages",
    LEFT_OUT: "set model.fold_system = true, which writes it at the head of the user's turn after it",
    REWRITTEN: "take a template that only appends, or have its cue suit the answers by model.template_kwargs",
    DROPPED: "leave out thoughts, which such templates drop, or take a template that keeps them",
}


class Chosen(list[T]):
    """Rows that were chosen of a user's, with `notes` of what they are: "40 of 400 used (data.demonstrations)"."""

    def __init__(self, rows: Iterable[T], *notes: str) -> None:
        super().__init__(rows)
        self.notes = notes


def notes_of(rows: Sequence[Any]) -> tuple[str, ...]:
    return rows.notes if isinstance(rows, Chosen) else ()


@dataclass
class DataReport:
    """How many of `rows` can be used. `cut` and `dropped` count them by reason, `noted` what else a reader should know of (prompts and
    answers that are encoded otherwise than their text read as one); `notes` say how the rows were chosen before."""

    what: str  # "demonstrations", "comparisons", "prompts"
    rows: int
    room: str = ""  # what a row leaves that has room for an answer: "leaves room for 72 new tokens in a context of 512"
    cut: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> int:
        return self.rows - self.dropped.total()

    def drop(self, reason: str, prompt: Prompt, count: int = 1) -> None:
        self.dropped[reason] += count
        self.examples.setdefault(reason, beginning(prompt.text))

    def shorten(self, reason: str, prompt: Prompt, count: int = 1) -> None:
        self.cut[reason] += count
        self.examples.setdefault(reason, beginning(prompt.text))

    def note(self, reason: str, prompt: Prompt, count: int = 1) -> None:
        self.noted[reason] += count
        self.examples.setdefault(reason, beginning(prompt.text))

    def lines(self) -> list[str]:
        """What a person reads before the first step."""
        name = f"{self.what}: " + "".join(f"{note}; " for note in self.notes)
        if not self.cut and not self.dropped and not self.noted:
            return [f"{name}all {self.rows:,} can be used as they are"]
        counted = [("cut", self.cut), ("dropped", self.dropped), ("noted", self.noted)]
        return [f"{name}{self.kept:,} of {self.rows:,} kept, {self.cut.total():,} of them cut"] + [
            f"  {count:,} {done}: {reason}, such as “{self.examples[reason]}”"
            for done, reasons in counted
            for reason, count in reasons.most_common()
        ]

    def check(self, limit: float) -> None:
        """Raise NoUsableRows where more than the share `limit` was dropped, or nothing is left (whatever the limit)."""
        dropped = self.dropped.total()
        if dropped <= limit * self.rows and (self.kept or not self.rows):
            return
        counted = ", ".join(f"{count:,} for {reason}" for reason, count in self.dropped.most_common())
        worst = self.dropped.most_common(1)[0][0]
        why = f"{counted}; the first begins “{self.examples[worst]}”"
        if not self.kept:
            good = self.room if worst == NO_ROOM else "can be used"
            raise NoUsableRows(f"none of {self.rows:,} {self.what} {good} ({why}); {HINTS[worst]}")
        raise NoUsableRows(
            f"{dropped:,} of {self.rows:,} {self.what} cannot be used ({why}), "
            f"which is more than data.drop_limit = {limit} allows; {HINTS[worst]}, or raise that limit"
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "kept": self.kept,
            "cut": dict(self.cut),
            "dropped": dict(self.dropped),
            "examples": self.examples,
            **({"noted": dict(self.noted)} if self.noted else {}),
            **({"notes": list(self.notes)} if self.notes else {}),
        }


def beginning(text: str, width: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


# ------------------------------------------------------------------------------------------------- what is wrong


def render_prompt(template: Template, prompt: Prompt) -> tuple[str, str | None]:
    """The prompt as the template writes it up to the cue for the assistant, and why nothing can be learnt from answers to it; None
    where all is well."""
    try:
        text = template.prompt_text(prompt)
        if template.outside or template.spells_control(prompt):
            template.rendered_ids([prompt], [text])
        left_out = any(m.role == "system" and lacks(text, m.content) for m in prompt.messages)
        return (text, None) if not left_out else ("", LEFT_OUT)
    except RunawayTemplate:  # no fault of this row, and each would cost as much
        raise
    except UnspeltToken:
        return "", CONTROL
    except OutsideEmbeddings:
        return "", OUTSIDE
    except ModelError:
        return "", REFUSED


def lacks(rendered: str, content: str) -> bool:
    """Whether a content is not in the text that a template made of it, white space and capitals apart."""
    texts = ["".join(text.casefold().split()) for text in (content, rendered)]
    return content.strip() not in rendered and texts[0] not in texts[1]


def render_answer(template: Template, prompt: Prompt, text: str) -> tuple[str, str | None]:
    """What the template appends to the prompt for this text, written elsewhere, and why nothing can be learnt from it as an answer;
    None where all is well. One stop token at its end is as good as none."""
    if not template.without_stop(text).strip():
        return "", EMPTY
    try:
        suffix = template.answer_text(prompt, text)
        if template.outside or template.spells_control(prompt, template.without_stop(text)):
            template.answers([prompt], [text], [suffix])
        opened = OPENED.search(template.prompt_text(prompt))  # the thought that begins the answer, say
        written = f"{opened[0]}{suffix}" if opened else suffix
        return ("", DROPPED) if lacks(written, template.without_stop(text)) else (suffix, None)
    except RunawayTemplate:
        raise
    except UnspeltToken:
        return "", CONTROL
    except OutsideEmbeddings:
        return "", OUTSIDE
    except ModelError:
        return "", REWRITTEN


def note_prompts(template: Template, prompts: Sequence[Prompt], report: DataReport) -> None:
    """Note prompts that spell a special token, which were encoded as text, and those that go without the end of their cue."""
    for prompt in prompts:
        if template.spells_control(prompt):
            report.note(SPELT, prompt)
        if not template.prompt_text(prompt).endswith(template.unkept_cue):
            report.note(UNTHOUGHT, prompt)


def note_answer(template: Template, prompt: Prompt, text: str, answer: WrittenAnswer, report: DataReport) -> None:
    """Note what is special in how an answer was encoded."""
    if template.control.spelt_in([template.without_stop(text)]):
        report.note(SPELT, prompt)
    if answer.apart:
        report.note(APART, prompt)


# ------------------------------------------------------------------------------------------------------ cutting


def min_prompt_tokens(template: Template, prompt: Prompt) -> int:
    """Tokens that must be left of a prompt: its start token, the cue for the assistant, and one token of what was asked."""
    asked, cued = template.render(prompt.messages, answer_next=False), template.prompt_text(prompt)
    cue = cued[len(asked) :] if cued.startswith(asked) else cued[-1:]
    return len(template.bos_ids) + len(template.tokenizer.encode(cue, add_special_tokens=False).ids) + 1


def cut_prompt(template: Template, prompt: Prompt, room: int) -> tuple[list[int], str]:
    """The prompt's ids in `room` tokens (at least `min_prompt_tokens`), and what was done: its oldest turns go first, up to a later
    turn of the user; a system message stays. Where that is not enough, or the template refuses it, its first tokens go."""
    count = 1 if prompt.messages[0].role == "system" else 0
    system, turns = prompt.messages[:count], prompt.messages[count:]
    ids = template.prompt_ids([prompt])[0]
    for start in range(1, len(turns)):
        if turns[start].role != "user":
            continue
        [(shorter, fault)] = encode_prompts(template, [Prompt((*system, *turns[start:]))])
        if fault is not None:
            break
        ids = template.prompt_ids([cued_as(template, shorter, prompt)])[0]
        if len(ids) <= room:
            return ids, OLD_TURNS
    first = template.bos_ids if ids[: len(template.bos_ids)] == template.bos_ids else []
    return [*first, *ids[len(ids) - room + len(first) :]], LEFT


def cued_as(template: Template, prompt: Prompt, other: Prompt) -> Prompt:
    """A prompt with as much of its cue as the other has."""
    whole = template.prompt_text(other).endswith(template.unkept_cue)
    return prompt if whole else template.before_written(prompt)


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


def encode_prompts(template: Template, prompts: Sequence[Prompt]) -> list[tuple[Prompt, str | None]]:
    """Each prompt with its text and ids, rendered and tokenised here, once, for all that follows; or, as it was, with its fault."""
    written = [render_prompt(template, prompt) for prompt in prompts]
    good = [(prompt, text) for prompt, (text, fault) in zip(prompts, written, strict=True) if fault is None]
    encoded = iter(template.encode([prompt for prompt, _ in good], [text for _, text in good]))
    faults = [fault for _, fault in written]
    return [(next(encoded) if fault is None else prompt, fault) for prompt, fault in zip(prompts, faults, strict=True)]


@timed("encode")
def prompts_that_fit(
    template: Template, prompts: Sequence[Prompt], new_tokens: int, limit: int, what: str = "prompts"
) -> tuple[list[Prompt], DataReport]:
    """Prompts that leave room for `new_tokens` within `limit`, whole: a question that is cut is another question."""
    room = f"leaves room for {new_tokens} new tokens in a context of {limit}"
    report, kept, good = DataReport(what, len(prompts), room, notes=notes_of(prompts)), [], []
    for prompt, fault in encode_prompts(template, prompts):
        if fault is None:
            good.append(prompt)
        else:
            report.drop(fault, prompt)
    for prompt, ids in zip(good, template.prompt_ids(good), strict=True):
        if len(ids) + new_tokens <= limit:
            kept.append(prompt)
        else:
            report.drop(NO_ROOM, prompt)
    note_prompts(template, kept, report)
    return kept, report


@timed("encode")
def encode_demonstrations(
    template: Template, demonstrations: Sequence[tuple[Prompt, str]], limit: int
) -> tuple[list[Example], DataReport]:
    """(prompt ids, answer ids) of demonstrations within `limit` tokens, and the report."""
    report, good = DataReport("demonstrations", len(demonstrations), notes=notes_of(demonstrations)), []
    encoded = encode_prompts(template, [prompt for prompt, _ in demonstrations])
    for (prompt, fault), (_, text) in zip(encoded, demonstrations, strict=True):
        prompt = prompt if fault else template.before_answers(prompt, [text])
        suffix, fault = render_answer(template, prompt, text) if fault is None else ("", fault)
        if fault is None:
            good.append((prompt, text, suffix))
        else:
            report.drop(fault, prompt)
    prompts, texts = [prompt for prompt, _, _ in good], [text for _, text, _ in good]
    answers = template.answers(prompts, texts, [suffix for _, _, suffix in good])
    kept = []
    for prompt, text, ids, answer in zip(prompts, texts, template.prompt_ids(prompts), answers, strict=True):
        if (fault := length_fault(template, prompt, ids, answer.ids, limit)) is not None:
            report.drop(fault, prompt)
            continue
        kept.append((fitting_ids(template, prompt, ids, limit - len(answer.ids), report), answer.ids))
        note_prompts(template, [prompt], report)
        note_answer(template, prompt, text, answer, report)
    return kept, report


@timed("encode")
def encode_documents(template: Template, texts: Sequence[str], limit: int) -> tuple[list[Example], DataReport]:
    """Texts that are learnt whole but for the first token of each, with what ends a page; what is longer than `limit` in pieces, each of
    which begins with the last token of the one before."""
    report, kept = DataReport("texts", len(texts)), list[Example]()
    for text, ids in zip(texts, template.document_ids(texts), strict=True):
        if not text.strip():
            report.drop(EMPTY, Prompt.from_text(text))
            continue
        if len(ids) > limit:
            report.note(PIECES, Prompt.from_text(text))
        kept += [(ids[i : i + 1], ids[i + 1 : i + limit]) for i in range(0, len(ids) - 1, limit - 1)]
    return kept, report


def length_fault(template: Template, prompt: Prompt, ids: list[int], answer: list[int], limit: int) -> str | None:
    """Why the two cannot fit: the answer leaves no room even for a cut prompt. None where they can."""
    if len(ids) + len(answer) <= limit:
        return None
    return LONG if len(answer) + min(len(ids), min_prompt_tokens(template, prompt)) > limit else None


def encode_answers(
    template: Template, prompt: Prompt, answers: Mapping[AnswerKey, Completion], limit: int, report: DataReport
) -> tuple[list[int], dict[AnswerKey, list[int]], dict[AnswerKey, str]]:
    """Ids of a prompt and of those of its answers that can be used, by key, and why the others cannot. What a model wrote is as it
    wrote it; text written elsewhere is encoded as the template would."""
    prompt_ids, suffixes, faults = template.prompt_ids([prompt])[0], dict[AnswerKey, str](), dict[AnswerKey, str]()
    for key, answer in answers.items():
        if answer.token_ids:
            continue
        suffix, fault = render_answer(template, prompt, answer.text)
        if fault is None:
            suffixes[key] = suffix
        else:
            faults[key] = fault
    texts = [answers[key].text for key in suffixes]
    written = dict(zip(suffixes, template.answers([prompt] * len(texts), texts, [*suffixes.values()]), strict=True))
    ids = {
        key: written[key].ids if key in written else list(answer.token_ids)
        for key, answer in answers.items()
        if key not in faults
    }
    for key, row in ids.items():
        if (fault := length_fault(template, prompt, prompt_ids, row, limit)) is not None:
            faults[key] = fault
    for key in written.keys() - faults.keys():
        note_answer(template, prompt, answers[key].text, written[key], report)
    return prompt_ids, {key: row for key, row in ids.items() if key not in faults}, faults


Judged = TypeVar("Judged", Pair, Ranking)
Turned = Callable[[Prompt], bool]


@dataclass(frozen=True)
class Usable(Generic[Judged]):
    """What was said of the answers to one prompt, `members`, of which `kept` can be used; the prompt's ids, and those of the answers
    that are compared."""

    prompt: Prompt
    members: list[Judged]
    kept: list[Judged]
    prompt_ids: list[int]
    answers: dict[AnswerKey, list[int]]


def usable_by_prompt(
    template: Template, judged: Sequence[Judged], limit: int, report: DataReport
) -> Iterator[Usable[Judged]]:
    """Pairs or rankings by prompt. The prompt is cut once, for the longest answer that is kept. An answer that cannot be used leaves its
    ranking; what then compares fewer than two answers of different tokens and places is dropped."""
    by_prompt: dict[str, list[Judged]] = {}
    for one in judged:
        by_prompt.setdefault(one.prompt.id, []).append(one)
    for members in by_prompt.values():
        [(prompt, fault)], kept = encode_prompts(template, [members[0].prompt]), list[Judged]()
        if fault is not None:
            report.drop(fault, prompt, len(members))
            continue
        places = [places_of(one) for one in members]
        by_key = {key: answer for place in places for key, (answer, _) in place.items()}
        if not any(answer.token_ids for answer in by_key.values()):
            prompt = template.before_answers(prompt, [answer.text for answer in by_key.values()])
        prompt_ids, ids, faults = encode_answers(template, prompt, by_key, limit, report)
        used: dict[AnswerKey, list[int]] = {}
        for one, place in zip(members, places, strict=True):
            ranks = {key: rank for key, (_, rank) in place.items() if key in ids}
            even, same = len(set(ranks.values())) < 2, len({tuple(ids[key]) for key in ranks}) < 2
            if even or same:
                broken = [faults[key] for key in place if key in faults]
                report.drop(broken[0] if broken else SAME if same else EVEN, prompt)
            else:
                kept.append(one)
                used |= {key: ids[key] for key in ranks}
        if kept:
            note_prompts(template, [prompt], report)
            room = limit - max(map(len, used.values()))
            prompt_ids = fitting_ids(template, prompt, prompt_ids, room, report, len(kept))
            yield Usable(prompt, members, kept, prompt_ids, used)


def places_of(judged: Pair | Ranking) -> dict[AnswerKey, tuple[Completion, int]]:
    """Its answers by key, each with its place; a pair is a ranking of two."""
    if isinstance(judged, Pair):
        judged = Ranking(judged.prompt, (judged.chosen, judged.rejected), (0, 1))
    names = [answer.id for answer in judged.answers]
    keys = [(name, names[:i].count(name)) for i, name in enumerate(names)]
    return dict(zip(keys, zip(judged.answers, judged.ranks, strict=True), strict=True))


@timed("encode")
def encode_pairs(
    template: Template,
    pairs: Sequence[Pair],
    limit: int,
    *,
    margin: float = 0.0,
    turned: Turned | None = None,
    what: str = "comparisons",
    task: str = REWARD,
) -> tuple[list[Group], DataReport]:
    """Pairs by prompt, with their answers' ids, for a task of the reward model.

    A prompt weighs as much as one of its items does on the mean: thirty items of a prompt are no thirty prompts, and four votes on one item
    are four. Each pair should be won by `margin` times its strength, for each vote 1 where none was given. The pairs of a prompt that
    is `turned` are turned round (a control).
    """
    groups, report = [], DataReport(what, len(pairs), notes=notes_of(pairs))
    for usable in usable_by_prompt(template, pairs, limit, report):
        turn = turned is not None and turned(usable.prompt)
        scale = len({pair.item_id for pair in usable.members})
        place = {name: i for i, (name, _) in enumerate(usable.answers)}
        compared = [compared_of(pair, place, scale, margin, turn)._replace(task=task) for pair in usable.kept]
        groups.append(Group(usable.prompt_ids, list(usable.answers.values()), compared))
    return groups, report


def compared_of(pair: Pair, place: Mapping[str, int], scale: int, margin: float, turn: bool) -> Compared:
    """The pair by the places of its answers, its weight shared among the prompt's `scale` items."""
    better, worse = (pair.rejected, pair.chosen) if turn else (pair.chosen, pair.rejected)
    gap = margin * (2 * pair.target - 1 if pair.strength is None else pair.strength)
    gap += pair.offset if turn else -pair.offset
    return Compared(place[better.id], place[worse.id], pair.weight / scale, pair.target, gap)


@timed("encode")
def encode_rankings(
    template: Template,
    rankings: Sequence[Ranking],
    limit: int,
    *,
    turned: Turned | None = None,
    what: str = "rankings",
    task: str = REWARD,
) -> tuple[list[Group], DataReport]:
    """Whole rankings by prompt, as they were given. A `turned` prompt's rankings are read from worst to best (a control)."""
    groups, report = [], DataReport(what, len(rankings))
    for usable in usable_by_prompt(template, rankings, limit, report):
        turn = turned is not None and turned(usable.prompt)
        share = 1 / len({one.item_id for one in usable.members})
        ranked = [Ranked(ranks_among(one, usable.answers, turn), one.weight * share, task) for one in usable.kept]
        groups.append(Group(usable.prompt_ids, list(usable.answers.values()), rankings=ranked))
    return groups, report


@timed("encode")
def encode_ratings(
    template: Template, rated: Sequence[tuple[Prompt, Rating]], limit: int, task: str, what: str = "ratings"
) -> tuple[list[Group], DataReport]:
    """A group for each answer that was rated, with all that was said of it; each rating weighs its own weight."""
    groups, report = [], DataReport(what, len(rated), notes=notes_of(rated))
    by_answer: dict[AnswerKey, list[tuple[Prompt, Rating]]] = {}
    for prompt, one in rated:
        by_answer.setdefault((one.completion.id, 0), []).append((prompt, one))
    for key, votes in by_answer.items():
        answer, [(prompt, fault)] = votes[0][1].completion, encode_prompts(template, [votes[0][0]])
        if fault is None:
            prompt = prompt if answer.token_ids else template.before_answers(prompt, [answer.text])
            prompt_ids, answers, faults = encode_answers(template, prompt, {key: answer}, limit, report)
            fault = faults.get(key)
        if fault is not None:
            report.drop(fault, prompt, len(votes))
            continue
        note_prompts(template, [prompt], report)
        prompt_ids = fitting_ids(template, prompt, prompt_ids, limit - len(answers[key]), report, len(votes))
        ratings = [Rated(0, float(one.value or 0), one.weight, task) for _, one in votes]
        groups.append(Group(prompt_ids, [answers[key]], ratings=ratings))
    return groups, report


def ranks_among(ranking: Ranking, answers: Collection[AnswerKey], turn: bool) -> tuple[int, ...]:
    """The places of these answers in a ranking, or in the reverse of it; -1 where one is not in it."""
    ranks = {key: rank for key, (_, rank) in places_of(ranking).items() if key in answers}
    last = max(ranks.values())
    return tuple(-1 if key not in ranks else last - ranks[key] if turn else ranks[key] for key in answers)
