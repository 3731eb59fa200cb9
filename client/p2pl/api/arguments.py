"""Whether arguments of the public functions are of their types: the same name means one type."""

import math
from collections.abc import Mapping
from numbers import Integral, Real

from torch import nn

from p2pl.api.allowed import FLAG, PATH, TEXT, TEXT_OR_TEXTS, TEXTS, Type, check_types, maybe
from p2pl.attacks.kinds import Attack
from p2pl.data.load import Shard


def _is_whole(given: object, least: float, most: float = math.inf) -> bool:
    return type(given) is not bool and isinstance(given, Integral) and least <= int(given) <= most


def _is_number(given: object) -> bool:
    return type(given) is not bool and isinstance(given, Real)


def _is_shard(given: object) -> bool:
    if not isinstance(given, Shard):
        return False
    numbers = ((given.index, 0), (given.count, 1), (given.seed, 0))
    are_whole = all(_is_whole(number, least) for number, least in numbers)
    return are_whole and type(given.partition) is str


_NUMBER = Type("a number", _is_number)
_FROM_0 = Type("a whole number from 0 on", lambda given: _is_whole(given, 0))
_FROM_1 = Type("a whole number from 1 on", lambda given: _is_whole(given, 1))
_SEED = Type("a whole number, 0 to 4294967295", lambda given: _is_whole(given, 0, 2**32 - 1))
_SEEDS = Type("a whole number, 1 to 10000", lambda given: _is_whole(given, 1, 10_000))
# Of which range it may be is told by what it is for.
_WHOLE = Type("a whole number", lambda given: _is_whole(given, -math.inf))
_SECONDS = Type(
    "seconds, a finite number from 0 on",
    lambda given: _is_number(given) and 0 <= float(given) < float("inf"),  # type: ignore[arg-type]
)
_FUNCTION = maybe(Type("a function", callable))
_MAPPING = Type(
    'a dictionary by paths, e.g. {"exchange.rounds": 5}',
    lambda given: isinstance(given, Mapping) and all(isinstance(key, str) for key in given),
)
_SHARD = Type("p2pl.Shard(index, count, partition), of whole numbers and a str", _is_shard)

TYPES: Mapping[str, Type] = {
    # of taking part
    "log": TEXT_OR_TEXTS,
    "run_dir": maybe(PATH),
    "identity": maybe(PATH),
    "listen": TEXT,
    "trackers": TEXTS,
    "ca": maybe(PATH),
    "invitation": maybe(PATH),
    "base": maybe(PATH),
    "fetch": _FUNCTION,
    "announce": TEXT_OR_TEXTS,
    "relay": TEXT,
    "relays": TEXTS,
    "rounds": maybe(_FROM_1),
    "seed_for": _SECONDS,
    "alone": FLAG,
    "witness": FLAG,
    "shard": maybe(_SHARD),
    "test_share": maybe(_NUMBER),
    "tokenizer": maybe(PATH),
    "dp_epsilon": maybe(_NUMBER),
    "dp_delta": maybe(_NUMBER),
    "dp_clip": maybe(_NUMBER),
    "personal": FLAG,
    "device": TEXT,
    "precision": TEXT,
    "threads": maybe(_FROM_1),
    "data_dir": maybe(PATH),
    "on_signals": FLAG,
    # of what comes of it
    "best": FLAG,
    # of simulations
    "peers": _WHOLE,
    "partition": TEXT,
    "partition_seed": _SEED,
    "seeds": _SEEDS,
    "first_seed": _FROM_0,
    "changes": maybe(_MAPPING),
    "baseline": maybe(TEXT),
    "held_out": maybe(_FROM_1),
    "engine": TEXT,
    "curves": FLAG,
    "score_every": _FROM_0,
    "score_peers": _FROM_1,
    "score_examples": maybe(_FROM_1),
    "participation": _NUMBER,
    "lost_links": _NUMBER,
    "delay_rounds": _WHOLE,
    "on_begin": _FUNCTION,
    "on_round": _FUNCTION,
    # of making sessions
    "schema_from": maybe(PATH),
    "target": maybe(TEXT_OR_TEXTS),
    "categorical": TEXT_OR_TEXTS,
    "leave_out": TEXT_OR_TEXTS,
    "from_folder": maybe(PATH),
    "private": FLAG,
    "replace": FLAG,
}
# What is called alike and is of different types.
ATTACKER = maybe(
    Type("what p2pl.attacks.kinds.parse returns", lambda given: isinstance(given, Attack))
)
ATTACK_TEXT = maybe(Type("a str, KIND:COUNT[:ARGUMENT]", lambda given: isinstance(given, str)))
MODULE = maybe(Type("a torch.nn.Module", lambda given: isinstance(given, nn.Module)))
OUT = PATH
OUT_OR_NONE = maybe(PATH)


def check(given: Mapping[str, object], **others: Type) -> None:
    """Raises InputError where an argument is of another type than its name stands for.

    Args:
        given: arguments by name; one whose name is neither in `TYPES` nor in `others` may be
            anything here.
        others: the types of names that mean different things in different functions.
    """
    check_types(given, {**TYPES, **others})
