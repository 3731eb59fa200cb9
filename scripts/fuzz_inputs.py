"""Inputs for decoders: values that are nearly right, and bytes that once were.

Two ways, because neither finds what the other does. Hypothesis makes values from the types that a
decoder reads, each field at its limits or just beyond. A cheap mutator changes valid inputs, as
trees (a field, a length, a depth) and as bytes, tens of thousands a second.
"""

import bisect
import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from p2pl.protocol import bencode

MAX_NODES = 500  # of a tree, of which one is changed; to look at more takes longer than to decode
EDITS = 4  # at most, for one input
# What has ended programs before: limits of number types, lengths, depths, and what moves a cursor.
NUMBERS = (0, 1, -1, 127, 128, 255, 1 << 31, (1 << 53) - 1, 1 << 53, 1 << 63, -(1 << 63), 10**18)
FLOATS = (0.0, -0.0, 1e308, -1e308, 5e-324, float("inf"), float("nan"))
TEXTS = (
    "",
    "#" * 40,
    "0" * 40,
    "0.0.0.0",
    "::1",
    "\x1b[2J",
    "\u202e",
    "\x00",
    "../../x",
    "é" * 300,
)
WRONG_IN = 60  # fields, one has a value of another type or size: a whole one is wrong half the time
_WRONG: tuple[Any, ...] = (
    None,
    -1,
    0,
    1 << 53,
    1 << 63,
    "",
    b"",
    bytes(33),
    "\x1b[2J",
    [],
    {},
    1e308,
    True,
)
TOKENS = (
    *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc1"),
    *(b"[" * 3_000, b"l" * 400, b"d0:" * 60, b"\x91" * 1_900, b'{"":' * 1_500, b"\x81\xa0" * 900),
    *(b"9" * 30, b"1e999", b"NaN", b"-", b"\xff\xfe", b"\x00" * 8, b"\xed\xa0\x80", b"i-0e", b":"),
)


@dataclass(frozen=True, slots=True)
class Notation:
    """How a value is written, so that it can be changed as a tree."""

    read: Callable[[bytes], Any]
    write: Callable[[Any], bytes]


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), default=lambda one: one.hex()).encode()


JSON = Notation(json.loads, _dump)
MSGPACK = Notation(msgspec.msgpack.decode, msgspec.msgpack.encode)
BENCODE = Notation(bencode.decode, bencode.encode)


# More than any edge but that of session files lets through; what is repeated grows without end.
MAX_BYTES = 1 << 20
# A list of lists that were repeated a few times may be larger than memory.
_UNSAID = (ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgspec.MsgspecError)


def mutant(rng: random.Random, corpus: Sequence[bytes], notation: Notation | None) -> bytes:
    """Returns an input that began as one of `corpus`.

    Args:
        rng: chooses.
        corpus: valid inputs, at least one.
        notation: of the inputs; None: they are changed as bytes alone.
    """
    data = rng.choice(corpus)
    as_tree = notation is not None and rng.random() < 0.6
    if notation is not None and as_tree:
        try:
            value = notation.read(data)
            for _ in range(rng.randint(1, EDITS)):
                value = _edited(rng, value)
            data = notation.write(value)[:MAX_BYTES]
        except _UNSAID:
            as_tree = False  # what the notation cannot say is said in bytes
    if as_tree and rng.random() < 0.7:
        return data
    changed = bytearray(data)
    for _ in range(rng.randint(1, EDITS)):
        _scratch(rng, changed, corpus)
    return bytes(changed)


def _edited(rng: random.Random, value: Any) -> Any:  # noqa: ANN401  # a tree of builtins
    """Returns the tree with one of its nodes changed."""
    parents = _parents(rng, value)
    if not parents or rng.random() < 0.03:
        return _odd(rng, value)
    sizes = [*itertools.accumulate(map(len, parents))]
    parent, key = _place(rng, parents, sizes)
    act = rng.random()
    if act < 0.6:
        parent[key] = _odd(rng, parent[key])
    elif act < 0.75:
        del parent[key]
    elif act < 0.9:
        other, there = _place(rng, parents, sizes)
        if isinstance(there, int) and there >= len(other):
            return value
        parent[key] = other.get(there) if isinstance(other, dict) else other[there]
    elif isinstance(parent, list):
        parent[key:key] = [parent[key]] * rng.choice((1, 2, 40, 300))
    else:
        parent[rng.choice(TEXTS) if isinstance(key, str) else b"x" * rng.randrange(9)] = 1
    return value


def _parents(rng: random.Random, value: object) -> list[Any]:
    """Returns the lists and dicts of a tree that are not empty; of a large one some, at random."""
    left, parents, nodes = [value], [], 0
    while left and nodes < MAX_NODES:
        at = rng.randrange(len(left))
        left[at], left[-1] = left[-1], left[at]
        node = left.pop()
        if isinstance(node, dict | list) and node:
            parents.append(node)
            nodes += len(node)
            inner = node.values() if isinstance(node, dict) else node
            left += [one for one in inner if isinstance(one, dict | list)]
    return parents


def _place(rng: random.Random, parents: Sequence[Any], sizes: Sequence[int]) -> tuple[Any, Any]:
    """Returns a list and an index, or a dict and a key: each node is equally likely.

    Args:
        rng: chooses.
        parents: the lists and dicts.
        sizes: how many nodes they and those before them hold.
    """
    drawn = rng.randrange(sizes[-1])
    number = bisect.bisect_right(sizes, drawn)
    parent, at = parents[number], drawn - sizes[number]  # counted from the end, below 0
    if isinstance(parent, list):
        return parent, len(parent) + at
    return parent, list(parent)[at]


def _odd(rng: random.Random, value: object) -> Any:  # noqa: ANN401  # a tree of builtins
    """Returns a value in the place of another: of its type, most times."""
    act = rng.random()
    if act < 0.15:
        return rng.choice((None, True, 0, "", b"", [], {}, [[]], 1.5, {"": 0}))
    if act < 0.165:
        return _deep(rng.choice((5, 30, 500)))
    if isinstance(value, bool | int):
        return rng.choice((value + rng.choice((-1, 1)), rng.choice(NUMBERS)))
    if isinstance(value, float):
        return rng.choice((-value, value * 10 ** rng.randint(-30, 30), rng.choice(FLOATS)))
    if isinstance(value, str):
        cut = value[: rng.randint(0, len(value))]
        return rng.choice((cut, value + "x", value * 3, rng.choice(TEXTS), _spoilt(rng, value)))
    if isinstance(value, bytes):
        changed = bytearray(value)
        _scratch(rng, changed, (value,))
        return bytes(changed)
    return rng.choice(([value], value, rng.choice(NUMBERS)))


def _spoilt(rng: random.Random, text: str) -> str:
    at = rng.randint(0, len(text))
    return text[:at] + chr(rng.choice((rng.randrange(128), rng.randrange(0xD800)))) + text[at + 1 :]


def _deep(levels: int) -> object:
    value: object = 0
    for _ in range(levels):
        value = [value]
    return value


def _scratch(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    """Changes bytes in place."""
    at = rng.randint(0, len(data))
    act = rng.randrange(8)
    if act == 0 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif act == 1 and at < len(data):
        data[at] = rng.randrange(256)
    elif act == 2:
        del data[at : at + rng.choice((1, 2, 8, 1 << 16))]
    elif act == 3:
        data[at:at] = rng.choice(TOKENS)
    elif act == 4:
        token = rng.choice(TOKENS)
        data[at : at + len(token)] = token
    elif act == 5:
        other = rng.choice(corpus)
        start = rng.randint(0, len(other))
        data[at:] = other[start:]
    elif act == 6:
        data[at:at] = data[at : at + rng.choice((1, 4, 32, 1024))]
    else:
        data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64)))


def values_of(kind: object) -> st.SearchStrategy[Any]:
    """Returns builtins that nearly are of a type that msgspec decodes.

    Args:
        kind: a type, as a `msgspec` decoder takes it.
    """
    return _nearly(inspect.type_info(kind))


def _nearly(info: inspect.Type) -> st.SearchStrategy[Any]:
    right, wrong = _right(info), st.sampled_from(_WRONG)
    return st.integers(0, WRONG_IN).flatmap(lambda dice: right if dice else wrong)


def _right(info: inspect.Type) -> st.SearchStrategy[Any]:  # noqa: C901  # a case for each type
    match info:
        case inspect.Metadata():
            return _right(info.type)
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType():
            return _whole(info)
        case inspect.FloatType():
            return st.floats() | st.floats(0, 1)
        case inspect.StrType():
            return _text(info)
        case inspect.BytesType():
            least, most = info.min_length or 0, min(info.max_length or 64, 2_000)
            sizes = st.sampled_from((least, most)) | st.integers(least, most)
            return sizes.flatmap(lambda size: st.binary(min_size=size, max_size=size))
        case inspect.LiteralType():
            return st.sampled_from(info.values)
        case inspect.UnionType():
            return st.one_of(*(_right(one) for one in info.types))
        case inspect.ListType() | inspect.VarTupleType():
            return st.lists(_nearly(info.item_type), max_size=min(info.max_length or 4, 5))
        case inspect.TupleType():
            return st.tuples(*(_nearly(one) for one in info.item_types)).map(list)
        case inspect.DictType():
            return st.dictionaries(_right(info.key_type), _nearly(info.value_type), max_size=4)
        case inspect.StructType():
            return _struct(info)
        case _:
            return st.none() | st.integers() | st.text(max_size=9) | st.floats()


def _whole(info: inspect.IntType) -> st.SearchStrategy[int]:
    least = info.ge if info.ge is not None else (info.gt or 0)
    most = info.le if info.le is not None else (info.lt or 1 << 62)
    low, high = int(least), int(most)
    return (
        st.sampled_from((low, high)) | st.integers(low, high) | st.integers(low, min(high, low + 9))
    )


def _text(info: inspect.StrType) -> st.SearchStrategy[str]:
    texts = st.sampled_from(TEXTS) | st.text(max_size=min(info.max_length or 20, 200))
    if info.pattern is None:
        return texts
    fitting = st.from_regex(info.pattern, fullmatch=True)
    return st.integers(0, 9).flatmap(lambda dice: texts if dice == 9 else fitting)


def _struct(info: inspect.StructType) -> st.SearchStrategy[Any]:
    parts = {one.encode_name: _nearly(one.type) for one in info.fields}
    if info.array_like:
        tags = [] if info.tag is None else [st.just(info.tag)]
        return st.tuples(*tags, *parts.values()).map(list)
    tagged = {} if info.tag_field is None else {info.tag_field: st.just(info.tag)}
    needed = {one.encode_name for one in info.fields if one.required}
    return st.fixed_dictionaries(
        {**tagged, **{name: part for name, part in parts.items() if name in needed}},
        optional={name: part for name, part in parts.items() if name not in needed},
    )
