"""Names for what a person brings: tasks, models, mixing rules and kinds of exchange.

A session says a name; whoever joins must have registered it before, or have installed a package
that does so by an entry point: `p2pl.tasks`, `p2pl.models`, `p2pl.mixing`, `p2pl.exchanges`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from p2pl.exchange.base import EXCHANGES, Exchange
from p2pl.learning.models import MODELS
from p2pl.learning.task import TASKS, Task
from p2pl.mixing.base import MIXERS, Mixer
from p2pl.registry import Registry

T = TypeVar("T", bound=type[Task])
M = TypeVar("M", bound=type[Mixer])
E = TypeVar("E", bound=type[Exchange])
N = TypeVar("N", bound=Callable[..., nn.Module])

S = TypeVar("S")


def _named(registry: Registry[Any], name: str) -> Callable[[S], S]:
    """Returns the registry's decorator, which gives back what it gets, of its very type."""
    return registry.register(name)


def register_task(name: str) -> Callable[[T], T]:
    """Returns a class decorator: sessions with this `task.kind` have this task.

    Args:
        name: letters, digits, dots, dashes and underscores.
    """
    return _named(TASKS, name)


def register_mixing(name: str) -> Callable[[M], M]:
    """Returns a class decorator: sessions with this `mixing.rule` mix by this rule.

    Args:
        name: letters, digits, dots, dashes and underscores.
    """
    return _named(MIXERS, name)


def register_exchange(name: str) -> Callable[[E], E]:
    """Returns a class decorator: sessions with this `exchange.kind` exchange in this way.

    Args:
        name: letters, digits, dots, dashes and underscores.
    """
    return _named(EXCHANGES, name)


def register_model(name: str) -> Callable[[N], N]:
    """Returns a decorator: sessions with this `model.name` train what the function returns.

    The function is called with the session's `task` and its `model.arguments` as keywords.

    Args:
        name: letters, digits, dots, dashes and underscores.
    """
    return _named(MODELS, name)
