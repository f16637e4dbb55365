"""Control tokens: those that hold a dialogue together (`<|im_start|>`, `</s>`), which the chat template writes and nobody else.

A text that somebody wrote may spell one. A tokenizer would read it as the token, and the text could close its turn and open another in
the system's name. So where a content spells one, every control token that the template itself wrote stands as a mark, one character
that is in no text, in a copy of the tokenizer that knows control tokens by their marks alone: all the rest is text, and is
encoded as the text it is, within the whole.

Every special token is one, every stop token, and what else the template writes between turns. Tags that are not special (`<think>`,
`<tool_call>`) and white space are none: a model writes them in its answers, and its tokenizer reads them there.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from os.path import commonprefix

from tokenizers import Encoding, Tokenizer
from tokenizers.models import Unigram

from bridle.core.errors import ModelError, OutsideEmbeddings, UnspeltToken

FIRST_MARK = (
    0x100000  # the last plane of private characters, one for each token; a content's place has one from PLACES on
)
PLACES = 0x108000
PRIVATE = re.compile(r"[\U00100000-\U0010FFFD]")
TEXT = re.compile(r"</?\w+>|[\s▁]*")  # added tokens that stand in anybody's text
OPENED, HALF_TAG = re.compile(r"<\w+>\s*$"), re.compile(r"<\w*$")  # at the end of a cue, where it opens a thought
OPENERS = "\n:.>0"  # what may stand before an answer
RARE = "𓀀 𒀀 ꙮ 𐎠"  # letters that are in no tokenizer's vocabulary, or in one that has all


def special_ids(tokenizer: Tokenizer) -> set[int]:
    return {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}


def unknown_ids(tokenizer: Tokenizer) -> set[int]:
    """What the tokenizer writes for a character that it does not know: none where it can write every byte."""
    named = None if isinstance(tokenizer.model, Unigram) else tokenizer.model.unk_token
    special = special_ids(tokenizer)
    written = tokenizer.encode(RARE, add_special_tokens=False).ids
    return {i for i in written if i in special or tokenizer.id_to_token(i) == named}


def plain_added(tokenizer: Tokenizer) -> dict[int, str]:
    """Added tokens that are neither special, nor a tag, nor white space (Gemma's line ends are added tokens), by id."""
    added = tokenizer.get_added_tokens_decoder().items()
    return {i: token.content for i, token in added if not token.special and not TEXT.fullmatch(token.content)}


def require_within(tokenizer: Tokenizer, ids: Iterable[int], outside: Collection[int]) -> None:
    """OutsideEmbeddings where one of the ids is `outside` of the model's embeddings."""
    if outside and (found := set(ids).intersection(outside)):
        raise OutsideEmbeddings(
            f"a text holds the token {tokenizer.id_to_token(min(found))!r}, which is number {min(found)} and for which the model has no "
            "embedding; leave it out"
        )


def opening_of_a_thought(texts: Sequence[str], encodings: Sequence[Encoding], question: str) -> str:
    """What stands at the end of a prompt's text, the first, and not in the others, the whole dialogues: a thought's opening tag, an empty
    thought, or the white space behind one, which may also be of one token with what follows. Empty where all is kept, or more is not."""
    prompt, kept = texts[0], commonprefix(list(texts))
    if kept == prompt and OPENED.search(prompt):
        same = len(commonprefix([encoding.ids for encoding in encodings]))
        kept = prompt[: encodings[0].offsets[same][0]] if same < len(encodings[0].ids) else prompt
    elif tag := HALF_TAG.search(kept):
        kept = kept[: tag.start()]
    end = prompt[len(kept) :]
    return end if question in kept and re.fullmatch(r"\s*(<\w+>\s*(</\w+>\s*)?)?", end) else ""


def refuse_lost_text(probe: str, written: str) -> None:
    """ModelError where an answer is not in what a template wrote for it: one that takes contents in parts finds none in a text."""
    if probe not in written.casefold():
        raise ModelError(
            f"the chat template leaves out the text of the answer {probe!r}, as those do that take contents in parts, with images; "
            "take one that writes text"
        )


def refuse_spelt_marker(tokenizer: Tokenizer, tail: str) -> None:
    """A template of another tokenizer closes a turn with a marker that this one only spells: nothing would end an answer."""
    marker = tail.strip()
    if re.fullmatch(r"<[^<>\s]+>", marker) and tokenizer.token_to_id(marker) is None:
        raise ModelError(
            f"the chat template closes an answer with {marker!r}, which the tokenizer beside it does not have as a token; "
            "take the template and the tokenizer of one model"
        )


class ControlTokens:
    """A tokenizer's control tokens, by their ids."""

    def __init__(self, tokenizer: Tokenizer, ids: Collection[int]) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.marks = {added[i].content: chr(FIRST_MARK + n) for n, i in enumerate(sorted(ids & added.keys()))}
        self.ids = {self.marks[added[i].content]: i for i in ids & added.keys()}  # by mark
        longest_first = sorted(self.marks, key=len, reverse=True)  # as the tokenizer takes them
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def spelt_in(self, texts: Iterable[str]) -> bool:
        """Whether one of the texts spells a control token."""
        return any(self.pattern.search(text) for text in texts)

    def mark(self, text: str) -> str:
        """A text of the template's own, with the mark of every control token in it."""
        return self.pattern.sub(lambda found: self.marks[found[0]], text)

    @cached_property
    def marking(self) -> Tokenizer | None:
        """The tokenizer that knows control tokens by their marks alone; None where there can be no such copy."""
        parts = json.loads(self.tokenizer.to_str())
        for token in parts["added_tokens"]:
            token["content"] = self.marks.get(token["content"], token["content"])
        model = parts["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {self.marks.get(piece, piece): i for piece, i in model["vocab"].items()}
        else:  # Unigram: pieces with their scores
            model["vocab"] = [[self.marks.get(piece, piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token") in self.marks:
            model["unk_token"] = self.marks[model["unk_token"]]
        try:
            copy = Tokenizer.from_str(json.dumps(parts))
        except Exception:  # the library raises a bare Exception: a piece that is made of a control token
            return None
        return copy if all(copy.token_to_id(mark) == i for mark, i in self.ids.items()) else None

    def encode_marked(self, text: str) -> Encoding:
        """A text in which marks are control tokens and nothing else is. UnspeltToken: the tokenizer cannot write it so."""
        if self.marking is not None:
            encoding = self.marking.encode(text, add_special_tokens=False)
            unknown = unknown_ids(self.marking)
            control = set(self.ids.values()) - unknown
            as_marked = [i for c in text if (i := self.ids.get(c)) in control]
            spelt = self.marking.encode_batch(sorted(set(self.pattern.findall(text))), add_special_tokens=False)
            if as_marked == [i for i in encoding.ids if i in control] and not any(
                unknown.intersection(e.ids) for e in spelt
            ):
                return encoding
        raise UnspeltToken(
            "a text spells a special token that the tokenizer cannot write as text; leave it out, or take a tokenizer that can"
        )

    def encode_text(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of whole texts that somebody wrote, with no control token in any. UnspeltToken: one cannot be written so."""
        spelt = [self.spelt_in([text]) for text in texts]
        plain = [text for text, spells in zip(texts, spelt, strict=True) if not spells]
        rest = iter(self.tokenizer.encode_batch(plain, add_special_tokens=False))
        pairs = zip(texts, spelt, strict=True)
        return [self.encode_marked(without_marks(text)).ids if spells else next(rest).ids for text, spells in pairs]

    def encoded_after_others(self, text: str) -> Iterator[list[int]]:
        """Ids of a text as it stands after characters with which it is not joined: some tokenizers have other pieces there."""
        for before in "" if self.spelt_in([text]) else OPENERS:
            encoding = self.tokenizer.encode(before + text, add_special_tokens=False)
            border = next((i for i, (start, _) in enumerate(encoding.offsets) if start >= len(before)), 0)
            yield encoding.ids[border:]


def without_marks(text: str) -> str:
    """The text, which holds no mark of its own: UnspeltToken where it does."""
    if PRIVATE.search(text):
        raise UnspeltToken(
            "a text spells a special token and holds private characters, which mark such tokens; leave either out"
        )
    return text


def filled(pattern: str, contents: Sequence[str], rendered: str, control: ControlTokens) -> str:
    """A rendered text with its control tokens marked: `pattern` is the same with a character for each of the `contents`, which may
    be trimmed. UnspeltToken where the template changes them otherwise, so that nobody can tell whose a token is."""
    without_marks(rendered)
    marked = control.mark(pattern)
    for change in (str, str.strip, str.rstrip, str.lstrip):
        table = {PLACES + n: change(content) for n, content in enumerate(contents)}
        if pattern.translate(table) == rendered:
            return marked.translate(table)
    raise UnspeltToken(
        "a text spells a special token, and the chat template changes it, so that nobody can tell it from the template's own; leave it out"
    )
