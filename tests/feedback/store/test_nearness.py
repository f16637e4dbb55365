import hashlib
import re

from hypothesis import given
from hypothesis import strategies as st

from bridle.core.records import Message, Prompt
from bridle.feedback.store.nearness import nearness, split_key


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("aA bé_,.\n月 ß"))))
def test_prompts_are_near_that_differ_in_nothing_that_is_read_aloud(turns: list[str]) -> None:
    """Stores hold the hash, so it stays that of letters and numbers without their case, a turn a line."""
    letters = "\n".join(re.sub(r"[\W_]+", "", turn.casefold()) for turn in turns)
    digest = hashlib.sha256((letters if letters.strip() else "\0".join(turns)).encode()).digest()
    assert nearness(turns) == int.from_bytes(digest[:8], "big") >> 1


def test_white_space_alone_does_not_change_the_split() -> None:
    plain, spaced = (Prompt((Message("system", text), Message("user", "b"))) for text in ("a c", " a \n c"))
    assert split_key(plain) == plain.id == split_key(spaced) != spaced.id
