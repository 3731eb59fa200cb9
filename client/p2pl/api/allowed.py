"""What a type of argument allows, and the types that cost no import to tell."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from p2pl.errors import InputError, wrong


@dataclass(frozen=True, slots=True)
class Type:
    """What an argument may be.

    Attributes:
        allowed: for messages.
        holds: whether a value is of this type.
        is_optional: whether None is allowed too.
    """

    allowed: str
    holds: Callable[[object], bool]
    is_optional: bool = False


def _is_path(given: object) -> bool:
    if not isinstance(given, str | os.PathLike):
        return False
    text = os.fspath(given)
    return isinstance(text, str) and "\0" not in text


def _is_texts(given: object) -> bool:
    is_many = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    return is_many and all(isinstance(one, str) for one in given)  # type: ignore[attr-defined]


def maybe(kind: Type) -> Type:
    """Returns a type that allows None besides."""
    return Type(f"{kind.allowed}, or None", kind.holds, is_optional=True)


PATH = Type("a path: a str or a pathlib.Path", _is_path)
TEXT = Type("a str", lambda given: isinstance(given, str))
TEXTS = Type('a list of str, e.g. ["..."]', _is_texts)
TEXT_OR_TEXTS = Type(
    "a str, or a list of str", lambda given: isinstance(given, str) or _is_texts(given)
)
FLAG = Type("True or False", lambda given: isinstance(given, bool))


def check_types(given: Mapping[str, object], types: Mapping[str, Type]) -> None:
    """Raises InputError where an argument is not of the type of its name.

    Args:
        given: arguments by name; one that `types` does not name may be anything here.
        types: by name.
    """
    for name, value in given.items():
        kind = types.get(name)
        if kind is None or (value is None and kind.is_optional) or kind.holds(value):
            continue
        raise InputError(wrong(name, got=value, allowed=kind.allowed))
