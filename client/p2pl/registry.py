"""What a session may name: tasks, models, mixing rules and kinds of exchange, each by one name.

A session file says a name and nothing else. What the name means is decided by what the person who
joins has installed: what p2pl brings, what this process has registered, or an entry point of an
installed package. Nothing is ever imported because a session file says so.
"""

import importlib
import pkgutil
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from p2pl.errors import InputError, wrong

T = TypeVar("T")


class Registry(Generic[T]):
    """Named things of one sort.

    Args:
        field: the field of a session that says the name, for messages.
        group: the entry points' group, e.g. `p2pl.mixing`.
        package: whose modules register what p2pl brings, each when it is imported; None: there is
            no more to import.
        error: what an unknown name raises.
    """

    def __init__(
        self, field: str, group: str, package: str | None, error: type[InputError] = InputError
    ) -> None:
        self._field, self._group, self._package, self._error = field, group, package, error
        self._builtin: dict[str, T] = {}
        self._registered: dict[str, T] = {}
        self._installed: dict[str, T] = {}
        self._is_loaded = False
        self._loading = threading.RLock()

    def register(self, *names: str) -> Callable[[T], T]:
        """Returns a decorator that makes its object known by these names, in this process.

        Raises:
            InputError: p2pl itself brings something of this name, and others rely on what it is.
        """
        self._load()
        for name in names:
            if name in self._builtin:
                raise self._error(
                    wrong(self._field, got=name, allowed="a name that p2pl does not use itself")
                )

        def remember(thing: T) -> T:
            self._registered.update(dict.fromkeys(names, thing))
            return thing

        return remember

    def builtin(self, *names: str) -> Callable[[T], T]:
        """Returns the decorator for what p2pl itself brings; for modules of the package alone."""

        def remember(thing: T) -> T:
            self._builtin.update(dict.fromkeys(names, thing))
            return thing

        return remember

    def find(self, name: str) -> T:
        """Returns the thing of this name.

        Raises:
            InputError: nothing here has this name, or the installed package that has it is broken.
        """
        self._load()
        for known in (self._builtin, self._registered, self._installed):
            if name in known:
                return known[name]
        for point in entry_points(group=self._group):
            if point.name == name:
                return self._install(point)
        raise self._error(
            wrong(
                self._field,
                got=name,
                allowed=", ".join(self.names()),
                hint=f"install the package that offers it (entry point group {self._group}), or "
                "register it before you join",
            )
        )

    def _install(self, point: EntryPoint) -> T:
        try:
            thing: T = point.load()
        except (ImportError, AttributeError) as fault:
            raise self._error(
                f"{self._field} {point.name}: its package cannot be imported: {fault}"
            ) from fault
        self._installed[point.name] = thing
        return thing

    def names(self) -> list[str]:
        """Returns all names that are known here, sorted."""
        self._load()
        installed = (point.name for point in entry_points(group=self._group))
        return sorted({*self._builtin, *self._registered, *installed})

    def _load(self) -> None:
        """Imports the package's own modules, once: each registers what it holds."""
        if self._package is None:
            return
        with self._loading:  # several threads may take part in sessions
            if self._is_loaded:
                return
            self._is_loaded = True
            package = importlib.import_module(self._package)
            for module in pkgutil.walk_packages(package.__path__, f"{self._package}."):
                importlib.import_module(module.name)


def check_arguments(field: str, name: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raises InputError where a session gives something an argument that it does not read.

    Args:
        field: the session's table of arguments, e.g. `mixing.arguments`.
        name: of the thing.
        given: names in that table.
        known: names that the thing reads.
    """
    for argument in given:
        if argument not in known:
            allowed = ", ".join(sorted(known)) or "no arguments"
            raise InputError(
                wrong(
                    f"{field} of {name}",
                    got=argument,
                    allowed=allowed,
                    hint=f"without any: --set '{field}={{}}'",
                )
            )


def whole_number(
    field: str, given: Mapping[str, object], *, default: int, low: int, high: int
) -> int:
    """Returns an argument of a session that is a whole number.

    Args:
        field: its path, e.g. `mixing.arguments.groups`; the last part is its name.
        given: the table of arguments.
        default: where it is not given.
        low: the smallest that is allowed.
        high: the largest.

    Raises:
        InputError: it is no whole number, or out of range.
    """
    value = given.get(field.rpartition(".")[2], default)
    if not isinstance(value, int) or not low <= value <= high:
        raise InputError(wrong(field, got=value, allowed=f"a whole number, {low}..{high}"))
    return value


def real_number(
    field: str, given: Mapping[str, object], *, default: float, low: float, high: float
) -> float:
    """Returns an argument of a session that is a number; a whole one is one too.

    Args:
        field: its path, e.g. `mixing.arguments.share`; the last part is its name.
        given: the table of arguments.
        default: where it is not given.
        low: the smallest that is allowed.
        high: the largest.

    Raises:
        InputError: it is no number, or out of range.
    """
    value = given.get(field.rpartition(".")[2], default)
    if not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(wrong(field, got=value, allowed=f"a number, {low:g}..{high:g}"))
    return float(value)
