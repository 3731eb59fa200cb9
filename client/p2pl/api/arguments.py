"""Whether arguments of the public functions are of their types: the same name means one type."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from torch import nn

from p2pl.attacks.kinds import Attack
from p2pl.data.load import Shard
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


def _is_whole(given: object, least: int) -> bool:
    return type(given) is not bool and isinstance(given, Integral) and int(given) >= least


def _is_number(given: object) -> bool:
    return type(given) is not bool and isinstance(given, Real)


def _is_shard(given: object) -> bool:
    if not isinstance(given, Shard):
        return False
    numbers = ((given.index, 0), (given.count, 1), (given.seed, 0))
    are_whole = all(_is_whole(number, least) for number, least in numbers)
    return are_whole and type(given.partition) is str


def _maybe(kind: Type) -> Type:
    return Type(f"{kind.allowed}, or None", kind.holds, is_optional=True)


_PATH = Type("a path: a str or a pathlib.Path", _is_path)
_TEXT = Type("a str", lambda given: isinstance(given, str))
_TEXTS = Type('a list of str, e.g. ["..."]', _is_texts)
_TEXT_OR_TEXTS = Type(
    "a str, or a list of str", lambda given: isinstance(given, str) or _is_texts(given)
)
_FLAG = Type("True or False", lambda given: isinstance(given, bool))
_NUMBER = Type("a number", _is_number)
_FROM_0 = Type("a whole number from 0 on", lambda given: _is_whole(given, 0))
_FROM_1 = Type("a whole number from 1 on", lambda given: _is_whole(given, 1))
_SECONDS = Type(
    "seconds, a finite number from 0 on",
    lambda given: _is_number(given) and 0 <= float(given) < float("inf"),  # type: ignore[arg-type]
)
_FUNCTION = _maybe(Type("a function", callable))
_MAPPING = Type(
    'a dictionary by paths, e.g. {"exchange.rounds": 5}',
    lambda given: isinstance(given, Mapping) and all(isinstance(key, str) for key in given),
)
_SHARD = Type("p2pl.Shard(index, count, partition), of whole numbers and a str", _is_shard)

TYPES: Mapping[str, Type] = {
    # of taking part
    "log": _TEXT_OR_TEXTS,
    "run_dir": _maybe(_PATH),
    "identity": _maybe(_PATH),
    "listen": _TEXT,
    "trackers": _TEXTS,
    "ca": _maybe(_PATH),
    "invitation": _maybe(_PATH),
    "announce": _TEXT_OR_TEXTS,
    "relay": _TEXT,
    "relays": _TEXTS,
    "rounds": _maybe(_FROM_1),
    "seed_for": _SECONDS,
    "alone": _FLAG,
    "shard": _maybe(_SHARD),
    "test_share": _maybe(_NUMBER),
    "tokenizer": _maybe(_PATH),
    "dp_epsilon": _maybe(_NUMBER),
    "dp_delta": _maybe(_NUMBER),
    "dp_clip": _maybe(_NUMBER),
    "personal": _FLAG,
    "device": _TEXT,
    "precision": _TEXT,
    "threads": _maybe(_FROM_1),
    "data_dir": _maybe(_PATH),
    "on_signals": _FLAG,
    # of simulations
    "peers": _FROM_1,
    "partition": _TEXT,
    "partition_seed": _FROM_0,
    "seeds": _FROM_1,
    "first_seed": _FROM_0,
    "changes": _maybe(_MAPPING),
    "baseline": _maybe(_TEXT),
    "held_out": _maybe(_FROM_0),
    "engine": _TEXT,
    "curves": _FLAG,
    "on_begin": _FUNCTION,
    "on_round": _FUNCTION,
    # of making sessions
    "schema_from": _maybe(_PATH),
    "target": _maybe(_TEXT_OR_TEXTS),
    "categorical": _TEXT_OR_TEXTS,
    "leave_out": _TEXT_OR_TEXTS,
    "from_folder": _maybe(_PATH),
    "private": _FLAG,
}
# What is called alike and is of different types.
ATTACKER = _maybe(
    Type("what p2pl.attacks.kinds.parse returns", lambda given: isinstance(given, Attack))
)
ATTACK_TEXT = _maybe(Type("a str, KIND:COUNT[:ARGUMENT]", lambda given: isinstance(given, str)))
MODULE = _maybe(Type("a torch.nn.Module", lambda given: isinstance(given, nn.Module)))
OUT = _PATH
OUT_OR_NONE = _maybe(_PATH)


def check(given: Mapping[str, object], **others: Type) -> None:
    """Raises InputError where an argument is of another type than its name stands for.

    Args:
        given: arguments by name; one whose name is neither in `TYPES` nor in `others` may be
            anything here.
        others: the types of names that mean different things in different functions.
    """
    for name, value in given.items():
        kind = others.get(name) or TYPES.get(name)
        if kind is None or (value is None and kind.is_optional) or kind.holds(value):
            continue
        raise InputError(wrong(name, got=value, allowed=kind.allowed))
