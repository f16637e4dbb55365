"""Which prompts nearly equal one another: by white space alone (they share a split), or by case and punctuation too (they are counted)."""

import hashlib
import re
from collections.abc import Iterable

from bridle.core.records import Prompt, content_hash

NOT_SAID = re.compile(r"[\W_]+")  # what a reader would not read aloud


def nearness(turns: Iterable[str]) -> int:
    """A hash of 63 bits of a prompt's turns without their case, white space and punctuation; of signs alone, of the turns as they are."""
    turns = list(turns)
    letters = "\n".join(NOT_SAID.sub("", turn.casefold()) for turn in turns)
    digest = hashlib.sha256((letters if letters.strip() else "\0".join(turns)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def split_key(prompt: Prompt) -> str:
    """What decides a prompt's split: its id, all runs of white space being one space. Of most prompts that is their id."""
    plain = [(message.role, " ".join(message.content.split())) for message in prompt.messages]
    same = all(text == message.content for (_, text), message in zip(plain, prompt.messages, strict=True))
    return prompt.id if same else content_hash(plain)
