"""Canonical bencoding: one value, one encoding."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pl.protocol import bencode

values = st.recursive(
    st.integers(-(10**18), 10**18) | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.binary(max_size=6), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(values)
@settings(max_examples=200)
def test_what_is_encoded_reads_back_as_itself(value: bencode.Bencodable) -> None:
    assert bencode.decode(bencode.encode(value)) == value


@given(st.binary(max_size=60))
@settings(max_examples=200)
def test_random_bytes_are_refused_or_are_the_one_encoding_of_their_value(data: bytes) -> None:
    try:
        value = bencode.decode(data)
    except ValueError:
        return
    assert bencode.encode(value) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"d0:0:-5:",  # the library's own decoder never returns from this one
        b"i01e",
        b"i-0e",
        b"i+5e",
        b"i 5 e",
        b"i1_000e",
        b"ie",
        b"i12345678901234567890e",
        b"03:abc",
        b"3 :abc",
        b"4:abc",
        b"-1:a",
        b"l",
        b"li1e",
        b"d",
        b"d1:a",
        b"di1ei2ee",
        b"d1:bi1e1:ai2ee",
        b"d1:ai1e1:ai2ee",
        b"i1ei2e",
        b"l" * 2_000 + b"e" * 2_000,
        b"d1:a" * 2_000 + b"de" + b"e" * 2_000,
    ],
)
def test_what_is_not_canonical_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the message is for people
        bencode.decode(data)


@pytest.mark.parametrize("value", [True, 1.5, None, {"a": False}, [None], {"a": 1, b"a": 2}])
def test_what_bencoding_does_not_have_is_not_encoded(value: bencode.Bencodable) -> None:
    with pytest.raises(TypeError):
        bencode.encode(value)


def test_text_becomes_utf8_and_keys_are_sorted_by_their_bytes() -> None:
    assert bencode.encode({"é": 1, "z": [b"\xff"]}) == b"d1:zl1:\xffe2:\xc3\xa9i1ee"
