"""Which prompts nearly equal one another: by white space alone (they share a split), or by case and punctuation too (they are counted)."""

import hashlib
import re
from collections.abc import Iterable
from functools import cache

from bridle.core.records import Prompt, content_hash

NOT_SAID = re.compile(r"[\W_]+")  # what a reader would not read aloud


@cache
def signs() -> bytes:
    """What is not read aloud of ASCII."""
    return bytes(sign for sign in range(128) if not chr(sign).isalnum())


def nearness(turns: Iterable[str]) -> int:
    """A hash of 63 bits of a prompt's turns without their case, white space and punctuation; of signs alone, of the turns as they are."""
    turns = list(turns)
    letters = b"\n".join(map(_said, turns))
    digest = hashlib.sha256(letters if letters.strip() else "\0".join(turns).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _said(turn: str) -> bytes:
    letters = turn.casefold().encode().translate(None, signs())
    return letters if letters.isascii() else NOT_SAID.sub("", letters.decode()).encode()


def split_key(prompt: Prompt) -> str:
    """What decides a prompt's split: its id, all runs of white space being one space. Of most prompts that is their id."""
    plain = [" ".join(message.content.split()) for message in prompt.messages]
    if plain == [message.content for message in prompt.messages]:
        return prompt.id
    return content_hash([(message.role, text) for message, text in zip(prompt.messages, plain, strict=True)])
