"""Bencoding, canonical in both directions (BEP 3), so that a hash names one value and no other.

The decoder of bencode.py accepts signs, spaces and underscores in numbers, duplicate and unsorted
keys, and never returns from the eight bytes `d0:0:-5:`. This one accepts exactly the bytes that
`encode` writes, and bounds what it reads before it reads it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import bencodepy

MAX_DEPTH = 24
# A value of two bytes takes 70 and more once it is decoded. Chosen: 100,000 class names fit.
MAX_VALUES = 150_000

Bencodable: TypeAlias = (
    int
    | str
    | bytes
    | Sequence["Bencodable"]
    | Mapping[str, "Bencodable"]
    | Mapping[bytes, "Bencodable"]
)

_INT = re.compile(rb"i(0|-?[1-9][0-9]{0,18})e")
_LENGTH = re.compile(rb"(0|[1-9][0-9]{0,9}):")


class _StrictDecoder(bencodepy.BencodeDecoder):  # type: ignore[misc]  # the library is untyped
    """Accepts canonical bencoding only; raises ValueError, KeyError or the library's own error."""

    left = MAX_VALUES
    is_open = False  # whether the keys of the outermost dictionary may stand in any order

    def decode_int(self, data: bytes, at: int, **_: object) -> tuple[int, int]:
        found = _INT.match(data, at)
        if not found:
            raise ValueError(f"not a canonical integer at byte {at}")
        return int(found[1]), found.end()

    def decode_string(self, data: bytes, at: int, **_: object) -> tuple[bytes, int]:
        found = _LENGTH.match(data, at)
        if not found:
            raise ValueError(f"not a canonical string length at byte {at}")
        end = found.end() + int(found[1])
        if end > len(data):
            raise ValueError(f"string at byte {at} runs past the end")
        return data[found.end() : end], end

    def decode_list(self, data: bytes, at: int, depth: int = 0) -> tuple[list[Any], int]:
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} at byte {at}")
        at, items = at + 1, []
        while data[at : at + 1] != b"e":
            item, at = self._decode_next(data, at, depth)
            items.append(item)
        return items, at + 1

    def decode_dict(self, data: bytes, at: int, depth: int = 0) -> tuple[dict[bytes, Any], int]:
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} at byte {at}")
        at, entries, last = at + 1, {}, None
        any_order = self.is_open and not depth
        while data[at : at + 1] != b"e":
            key, at = self.decode_string(data, at)
            if key in entries if any_order else last is not None and key <= last:
                raise ValueError(f"key {key!r} is out of order or repeated")
            last = key
            entries[key], at = self._decode_next(data, at, depth)
        return entries, at + 1

    def _decode_next(self, data: bytes, at: int, depth: int) -> tuple[Any, int]:
        """Returns the value that begins at a byte, and where it ends."""
        if not self.left:
            raise ValueError(f"more than {MAX_VALUES} values at byte {at}")
        self.left -= 1
        found: tuple[Any, int] = self.decode_func[data[at : at + 1]](data, at, depth=depth + 1)
        return found


def decode(data: bytes, *, is_open: bool = False) -> Any:  # noqa: ANN401  # any bencoded value
    """Returns the value in `data`: int, bytes, list or dict with bytes keys.

    Args:
        data: one value, canonical.
        is_open: whether the keys of the outermost dictionary may stand in any order, as programs
            write them that add their own; they still stand there once each.

    Raises:
        ValueError: `data` is not exactly one canonically bencoded value.
    """
    if not data:
        raise ValueError("nothing there")
    try:
        decoder = _StrictDecoder(max_depth=MAX_DEPTH)
        decoder.is_open = is_open
        value, end = decoder.decode_func[data[:1]](data, 0)
    except KeyError as fault:
        raise ValueError(f"{fault.args[0]!r} does not begin a value") from fault
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes after the end")
    return value


def encode(value: Bencodable) -> bytes:
    """Returns the canonical bencoding of `value`; text becomes UTF-8.

    Raises:
        TypeError: `value` holds a bool, a float, None or another type bencoding does not have.
    """
    _check(value)
    encoded: bytes = bencodepy.encode(value)
    return encoded


def _check(value: object) -> None:
    """Raises TypeError for what the library would silently change (True becomes 1)."""
    if isinstance(value, bool) or not isinstance(value, int | str | bytes | Mapping | Sequence):
        raise TypeError(f"bencoding has no {type(value).__name__}")
    if isinstance(value, Mapping):
        if len({key.encode() if isinstance(key, str) else key for key in value}) != len(value):
            raise TypeError("a key appears both as text and as bytes")
        for item in value.values():
            _check(item)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for item in value:
            _check(item)
