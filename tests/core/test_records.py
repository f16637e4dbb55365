"""What names a record is the hash of one spelling of it: another byte, and every store would hold it under another name."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridle.core.records import CANONICAL, KeptEncoder, content_hash

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(VALUES)
def test_the_canonical_form_is_what_json_dumps_writes(value: Any) -> None:
    written = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert CANONICAL.encode(value) == written
    assert content_hash(value) == hashlib.sha256(written.encode()).hexdigest()


@given(VALUES)
def test_an_encoder_that_is_made_once_writes_the_same(value: Any) -> None:
    assert KeptEncoder().encode(value) == json.dumps(value)


def test_what_is_not_json_has_no_canonical_form() -> None:
    for value, error in (({1}, TypeError), ({(1, 2): 3}, TypeError)):
        with pytest.raises(error):
            CANONICAL.encode(value)
    with pytest.raises(ValueError, match="not JSON compliant"):
        KeptEncoder(allow_nan=False).encode(float("nan"))


def test_the_hash_of_a_value_is_the_one_that_stores_hold() -> None:
    assert (
        content_hash([["user", 'Sag "π"\n\x01']]) == "2ade336954932c9493d3c9b31de92767ea2af2622143ea3a560167232096b228"
    )
