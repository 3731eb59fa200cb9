"""What is public says what it is: the promises of the house about docstrings, held by reading."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("client/p2pl", "tracker/p2pl_tracker")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
FIRST_PERSON = re.compile(r"\b(I|[Mm]e|[Mm]y|[Mm]ine|[Mm]yself|[Ww]e|[Oo]urs?|us)\b")
# No person: code in backticks, `peer-I` and `I/N`, matrices [K, I, B], ITU-T I.371, microseconds.
NO_PERSON = re.compile(r"`[^`]*`|\bI/N\b|-I\b|\[[^\]]*\]|\bI\.\d|\d us\b")
SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):")
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Documented: TypeAlias = Function | ast.ClassDef


@dataclass(frozen=True)
class Definition:
    """One class, function or method."""

    name: str  # after those of the classes that it is in
    node: Documented

    @property
    def is_public(self) -> bool:
        return not any(part.startswith("_") for part in self.name.split("."))

    @property
    def docstring(self) -> str:
        """The docstring; of a class also that of its `__init__`."""
        own = ast.get_docstring(self.node) or ""
        made = init_of(self.node)
        return f"{own}\n{ast.get_docstring(made) or ''}" if made else own

    @property
    def parameters(self) -> set[str]:
        """Whatever it can be called with; the fields of a class without `__init__`."""
        if isinstance(self.node, ast.ClassDef):
            made = init_of(self.node)
            return parameters(made) if made else fields(self.node)
        return parameters(self.node)


def init_of(node: Documented) -> Function | None:
    """Returns the `__init__` of a class; None where there is none."""
    inside = node.body if isinstance(node, ast.ClassDef) else []
    found = (one for one in inside if isinstance(one, Function) and one.name == "__init__")
    return next(found, None)


def definitions(tree: ast.AST, before: str = "") -> Iterator[Definition]:
    """Yields what a module defines outside of functions, and what is in its classes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Documented):
            yield Definition(before + node.name, node)
        if isinstance(node, ast.ClassDef):
            yield from definitions(node, f"{before}{node.name}.")
        elif isinstance(node, ast.If | ast.Try):
            yield from definitions(node, before)


def parameters(node: Function) -> set[str]:
    """Returns the names of a function's parameters, `self` and `cls` left out."""
    given = node.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    named += [one for one in (given.vararg, given.kwarg) if one]
    return {one.arg for one in named} - {"self", "cls"}


def fields(node: ast.ClassDef) -> set[str]:
    """Returns what a class has: fields, properties, methods, and what its methods set."""
    found: set[str] = set()
    for one in ast.walk(node):
        if isinstance(one, ast.Name | ast.Attribute) and isinstance(one.ctx, ast.Store):
            found.add(one.id if isinstance(one, ast.Name) else one.attr)
        elif isinstance(one, Function):
            found.add(one.name)
    return found


def sections(docstring: str) -> Mapping[str, set[str]]:
    """Returns the names that a docstring's sections list, by the section's title."""
    found: dict[str, set[str]] = {}
    title = ""
    for line in docstring.splitlines():
        if heading := SECTION.fullmatch(line):
            title = heading[1]
            found.setdefault(title, set())
        elif line and not line.startswith(" "):
            title = ""
        elif title and (entry := re.match(r" {4}([\w*]+(?:, [\w*]+)*):", line)):
            found[title] |= set(entry[1].replace("*", "").split(", "))
    return found


@cache
def module(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def errors() -> Mapping[str, frozenset[str]]:
    """Returns each error of p2pl by name, with the names of all that it is."""
    found = {"P2PLError": frozenset({"P2PLError"})}
    classes = [one for path in SOURCES for one in ast.walk(module(path))]
    grown = -1
    while grown != len(found):  # until no class adds another one
        grown = len(found)
        for node in classes:
            if isinstance(node, ast.ClassDef):
                for base in names_in(*node.bases) & found.keys():
                    found[node.name] = found[base] | {node.name}
    return found


def names_in(*nodes: ast.AST) -> set[str]:
    """Returns all names and attributes that stand in some code."""
    inside = [one for node in nodes for one in ast.walk(node)]
    names = {one.id for one in inside if isinstance(one, ast.Name)}
    return names | {one.attr for one in inside if isinstance(one, ast.Attribute)}


def raised(node: ast.AST, caught: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yields the errors of p2pl that a function's own code raises and does not catch itself."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Try):
            handled = names_in(*(one.type for one in child.handlers if one.type))
            yield from raised(ast.Module(child.body, []), caught | handled)
            rest = [*child.handlers, *child.orelse, *child.finalbody]
            yield from raised(ast.Module(rest, []), caught)  # type: ignore[arg-type]
            continue
        if isinstance(child, Documented | ast.Lambda):
            continue
        if isinstance(child, ast.Raise) and child.exc is not None:
            what = child.exc.func if isinstance(child.exc, ast.Call) else child.exc
            known = names_in(what) & errors().keys()
            yield from (name for name in known if not errors()[name] & caught)
        yield from raised(child, caught)


def is_command(node: Documented) -> bool:
    """Returns whether the docstring is a help text, which speaks to a person."""
    return any(names_in(one) & {"command", "callback"} for one in node.decorator_list)


def where(path: Path, line: int, what: str) -> str:
    return f"{path.relative_to(ROOT)}:{line}: {what}"


def public(*, commands: bool = True) -> Iterator[tuple[Path, Definition]]:
    for path in SOURCES:
        for one in definitions(module(path)):
            if one.is_public and (commands or not is_command(one.node)):
                yield path, one


def test_whatever_is_public_has_a_docstring() -> None:
    missing = [
        where(path, one.node.lineno, one.name)
        for path, one in public()
        if not ast.get_docstring(one.node)
    ]
    assert missing == []


def test_whatever_raises_an_error_of_p2pl_says_so() -> None:
    silent = []
    for path, one in public(commands=False):
        code = init_of(one.node) if isinstance(one.node, ast.ClassDef) else one.node
        for name in sorted(set(raised(code))) if code else ():
            told = re.findall(r"\w+", one.docstring)
            if not errors()[name] & set(told):
                silent.append(where(path, one.node.lineno, f"{one.name} raises {name}"))
    assert silent == []


def test_whatever_is_listed_as_an_argument_is_one() -> None:
    wrong = []
    for path in SOURCES:
        for one in definitions(module(path)):
            listed = sections(one.docstring)
            for name in sorted(listed.get("Args", set()) - one.parameters):
                wrong.append(where(path, one.node.lineno, f"{one.name}: no argument {name}"))
            if isinstance(one.node, ast.ClassDef) and not one.node.bases:
                for name in sorted(listed.get("Attributes", set()) - fields(one.node)):
                    wrong.append(where(path, one.node.lineno, f"{one.name}: no attribute {name}"))
    assert wrong == []


def test_who_lists_arguments_lists_all_of_them() -> None:
    partial = []
    for path, one in public():
        listed = sections(one.docstring).get("Args")
        for name in sorted(one.parameters - listed) if listed else ():
            partial.append(where(path, one.node.lineno, f"{one.name}: nothing about {name}"))
    assert partial == []


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines of docstrings and comments, names of arguments and code left out."""
    for node in ast.walk(module(path)):
        if isinstance(node, Documented | ast.Module) and ast.get_docstring(node):
            text = ast.get_docstring(node, clean=False) or ""
            for number, line in enumerate(text.splitlines(), node.body[0].lineno):
                yield number, re.sub(r"^ +(me|mine):", "", line)
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nobody_speaks_in_the_first_person(path: Path) -> None:
    spoken = [
        where(path, number, line.strip())
        for number, line in prose(path)
        if FIRST_PERSON.search(NO_PERSON.sub("", line))
    ]
    assert spoken == []


SAMPLE = '''
class Thing:
    """Says that I am one.

    Args:
        size: in bytes.
        colour: of it.

    Attributes:
        weight: in kg.
    """

    def __init__(self, size: int) -> None:
        self.size = size  # mine

    def fall(self, height: float, far: bool) -> None:
        """Falls.

        Args:
            height: in m.
        """
        try:
            raise PullError("caught")
        except NetworkError:
            pass
        if far:
            raise errors.RunDirError("not caught")

    def rise(self) -> None:
        pass
'''


def test_the_reader_finds_what_it_looks_for() -> None:
    """What the tests above would see in a class that breaks every promise."""
    thing, _, fall, rise = definitions(ast.parse(SAMPLE))
    assert (thing.is_public, fall.name, rise.docstring) == (True, "Thing.fall", "")
    assert sections(thing.docstring)["Args"] - thing.parameters == {"colour"}
    assert isinstance(thing.node, ast.ClassDef)
    assert sections(thing.docstring)["Attributes"] - fields(thing.node) == {"weight"}
    assert fall.parameters - sections(fall.docstring)["Args"] == {"far"}
    assert list(raised(fall.node)) == ["RunDirError"]
    assert errors()["RunDirError"] == {"RunDirError", "InputError", "P2PLError"}
    assert FIRST_PERSON.search(thing.docstring)
    assert not FIRST_PERSON.search(NO_PERSON.sub("", "peer-I of I/N as `I` do, [K, I], 3 us"))
