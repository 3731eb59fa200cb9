"""Writes docs/reference: a session's fields, commands from their help, kinds of attacks, and names.

What a field means is said once, in a comment beside it in the schema; here it becomes a table.
"""

import ast
import inspect
import io
import sys
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import msgspec
import typer
from msgspec import inspect as shapes
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

import p2pl
from p2pl import cli
from p2pl.attacks.kinds import KINDS, Kind
from p2pl.protocol.session import schema
from p2pl_tracker import cli as tracker

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"
MADE = "<!-- made by `scripts/docs reference`: do not edit -->"
UNITS = {
    "_s": "seconds",
    "_bytes": "bytes",
    "rounds": "rounds",
    "epochs": "passes over the data",
    "_chars": "characters",
    "batch_size": "examples",
}
NOTHING = "none"
FAR = 1e18  # a bound so far out says nothing to a person


def main() -> None:
    """Writes every page that is made."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)


def pages() -> dict[str, str]:
    """Returns the text of each page, by the name of its file."""
    return {
        "session.md": session_page(),
        "commands.md": commands_page(),
        "attacks.md": attacks_page(),
        "python.md": python_page(),
    }


# --- the session ---------------------------------------------------------------------------------


def session_page() -> str:
    """Returns the page of every field of a session's TOML file."""
    said = comments(schema)
    parts = [
        MADE,
        "# Every field of a session",
        "What a person writes in TOML, table by table. A key that does not stand here is an error. "
        "A field with a default may be left out. `p2pl inspect FILE` shows those of a session; "
        "[concepts](../concepts.md) says what they are for.",
    ]
    for path, kind in tables(schema.Spec):
        title = f"`[{path}]`" if path else "Outside of all tables"
        doc = (inspect.getdoc(kind) or "").splitlines()[0] if path else ""
        rows = [row(field, said[kind.__name__]) for field in fields(kind)]
        head = "| field | default | unit | allowed | means |\n|---|---|---|---|---|"
        parts.append("\n\n".join(filter(None, [f"## {title}", doc, "\n".join([head, *rows])])))
    return "\n\n".join(parts) + "\n"


def tables(kind: type[msgspec.Struct], path: str = "") -> Iterator[tuple[str, type]]:
    """Yields each table of a session with its path, in the order of the schema."""
    yield path, kind
    for field in shapes.type_info(kind).fields:  # type: ignore[attr-defined]
        inner = struct_of(field.type)
        if inner is not None:
            yield from tables(inner, f"{path}.{field.name}".lstrip("."))


def struct_of(kind: shapes.Type) -> type[msgspec.Struct] | None:
    """Returns the table that a field holds, directly, in a list or perhaps; None: a value."""
    if isinstance(kind, shapes.StructType):
        return kind.cls
    if isinstance(kind, shapes.UnionType):
        inner = [struct_of(one) for one in kind.types]
        return next((one for one in inner if one is not None), None)
    return struct_of(kind.item_type) if isinstance(kind, shapes.VarTupleType) else None


def fields(kind: type) -> list[shapes.Field]:
    """Returns the fields of a table that are values."""
    found = shapes.type_info(kind).fields  # type: ignore[attr-defined]
    return [field for field in found if struct_of(field.type) is None]


def row(field: shapes.Field, said: Mapping[str, str]) -> str:
    """Returns one line of the table of fields."""
    cells = (
        f"`{field.name}`",
        default_of(field),
        unit_of(field.name),
        allowed(field.type),
        said[field.name],
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def default_of(field: shapes.Field) -> str:
    """Returns a field's default as TOML would have it."""
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if value is None or value in ((), {}, ""):
        return NOTHING
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return ", ".join(f"`{one}`" for one in value)
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def unit_of(name: str) -> str:
    """Returns the unit that a field's name says, or nothing."""
    return next((unit for end, unit in UNITS.items() if name.endswith(end)), "")


def allowed(kind: shapes.Type) -> str:
    """Returns in words what a field may hold."""
    if isinstance(kind, shapes.UnionType):
        parts = dict.fromkeys(allowed(one) for one in kind.types)
        parts.pop("nothing", None)
        return " or ".join(parts)
    if isinstance(kind, shapes.LiteralType):
        return ", ".join(f"`{one}`" for one in kind.values)
    if isinstance(kind, shapes.VarTupleType):
        return f"a list, each {allowed(kind.item_type)}{bounds(kind)}"
    if isinstance(kind, shapes.DictType):
        return "a table: name = number, text, or a list of them"
    if isinstance(kind, shapes.StrType):
        return ("a name" if kind.pattern else "text") + bounds(kind)
    words = {
        shapes.IntType: "whole number",
        shapes.FloatType: "number",
        shapes.BoolType: "`true`, `false`",
        shapes.NoneType: "nothing",
    }
    return words[type(kind)] + bounds(kind)


def bounds(kind: shapes.Type) -> str:
    """Returns the bounds of a number, a text or a list, as far as somebody would meet them."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    said = [
        f"{word} {int(limit):,}" if limit == int(limit) else f"{word} {limit:g}"
        for key, word in words.items()
        if (limit := getattr(kind, key, None)) is not None and abs(limit) < FAR
    ]
    for key, word in (("min_length", "at least"), ("max_length", "at most")):
        length = getattr(kind, key, None)
        if length is not None and length > 1:
            what = "characters" if isinstance(kind, shapes.StrType) else "of them"
            said.append(f"{word} {length:,} {what}")
    return f", {', '.join(said)}" if said else ""


def comments(module: ModuleType) -> dict[str, dict[str, str]]:
    """Returns what the comments beside each field say: class -> field -> text.

    A field's comment stands on its own lines above it, or behind it, or both.
    """
    source = inspect.getsource(module)
    at: dict[int, tuple[str, bool]] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            is_alone = not token.line[: token.start[1]].strip()
            at[token.start[0]] = (token.string.lstrip("# ").strip(), is_alone)
    return {
        node.name: {
            item.target.id: comment_of(item, at)
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        }
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }


def comment_of(item: ast.AnnAssign, at: Mapping[int, tuple[str, bool]]) -> str:
    """Returns the comment of one field, as a sentence begins: with a capital."""
    above: list[str] = []
    line = item.lineno - 1
    while line in at and at[line][1]:
        above.insert(0, at[line][0])
        line -= 1
    last = item.end_lineno or item.lineno
    behind = [at[line][0] for line in range(item.lineno, last + 1) if line in at]
    text = " ".join([*above, *behind])
    return text if text.startswith(("p2pl", "e.g.")) else text[:1].upper() + text[1:]


# --- the command line ----------------------------------------------------------------------------


def commands_page() -> str:
    """Returns the page of every command and every option."""
    parts = [
        MADE,
        "# Every command",
        f"`COMMAND --help` says the same in a terminal. The exit codes of `p2pl`: {exit_codes()}",
    ]
    for name, app in (("p2pl", cli.app), ("p2pl-tracker", tracker.app)):
        group = typer.main.get_command(app)
        assert isinstance(group, TyperGroup)
        for command in group.commands.values():
            inner = command.commands.values() if isinstance(command, TyperGroup) else [command]
            within = f"{name} {command.name}" if isinstance(command, TyperGroup) else name
            for one in inner:
                assert isinstance(one, TyperCommand)
                if not one.hidden:
                    parts.append(command_part(f"{within} {one.name}", one))
    return "\n\n".join(parts) + "\n"


def exit_codes() -> str:
    """Returns the exit codes, which the command line's own docstring lists."""
    said = sys.modules["p2pl.cli.app"].__doc__ or ""
    return " ".join(said.split("Exit codes: ")[1].split())


def command_part(name: str, command: TyperCommand) -> str:
    """Returns a command's help and its table of options."""
    arguments = [one for one in command.params if isinstance(one, TyperArgument)]
    options = [one for one in command.params if isinstance(one, TyperOption) and not one.hidden]
    usage = " ".join([name, *(argument_name(one) for one in arguments), "[OPTIONS]"])
    lines = ["| option | default | means |", "|---|---|---|"]
    for argument in arguments:
        lines.append(line(argument_name(argument), "required", getattr(argument, "help", "")))
    lines += [option_line(option) for option in options]
    help_text = inspect.cleandoc(command.help or "").replace("\f", "")
    return "\n\n".join([f"## `{name}`", f"```text\n{usage}\n```", help_text, "\n".join(lines)])


def argument_name(argument: TyperArgument) -> str:
    """Returns how an argument stands in a usage line."""
    name = (argument.name or "").upper().rstrip(".")
    return f"{name}…" if argument.nargs != 1 else name


def option_line(option: TyperOption) -> str:
    """Returns an option's line: names, default, and what it does."""
    text, _, told = (option.help or "").replace("  [", "\0").partition("\0")
    default = told.rstrip("]").removeprefix("default: ").split("]  [")[0]
    if not default:
        value = option.default() if callable(option.default) else option.default
        default = "required" if option.required else shown(value)
    names = ", ".join([*option.opts, *option.secondary_opts])
    repeat = " Repeatable." if option.multiple and "epeat" not in text else ""
    return line(names, default, text + repeat)


def shown(value: object) -> str:
    """Returns a default; nothing for a switch that is off."""
    if value is None or value is False or value == [] or type(value).__name__ == "Sentinel":
        return ""
    return str(getattr(value, "value", value))


def line(name: str, default: str, text: str | None) -> str:
    """Returns a line of a table of options."""
    cells = (f"`{name}`", default, text or "")
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "\\<") for cell in cells) + " |"


# --- kinds of attacks ----------------------------------------------------------------------------


def attacks_page() -> str:
    """Returns the page of every kind of attack."""
    head = "| kind | ARG, where none is given | allowed | what it does |\n|---|---|---|---|"
    parts = [
        MADE,
        "# Every kind of attack",
        "To test with: `--attack KIND:COUNT[:ARG]` of `p2pl simulate` makes the last COUNT peers "
        "bad. An attacker sees what the honest trained in this very round. What attacks cost: "
        "[trust](../results/trust.md), [attacks](../results/attacks.md).",
        "\n".join([head, *(attack_row(name, kind) for name, kind in KINDS.items())]),
    ]
    return "\n\n".join(parts) + "\n"


def attack_row(name: str, kind: Kind) -> str:
    """Returns one line of the table of attacks."""
    if kind.carries:
        argument, within = f"`{kind.carries}`", "another KIND"
    elif kind.default is None:
        argument, within = "there is none", ""
    else:
        low, high = kind.allowed
        argument, within = f"{kind.default:g}", f"{low:g} to {high:g}"
    return f"| `{name}` | {argument} | {within} | {kind.does} |"


# --- Python --------------------------------------------------------------------------------------


def python_page() -> str:
    """Returns the page of every public name, whose docstrings Sphinx fills in."""
    parts = [
        MADE,
        "# Every name in Python",
        "From the docstrings, which `help(p2pl.join)` shows too. [Examples](../api.md) of each "
        "are on a page of their own.",
    ]
    for name in sorted(p2pl.__all__, key=str.lower):
        found = getattr(p2pl, name)
        if inspect.ismodule(found):
            directive = f".. automodule:: {found.__name__}\n   :members:"
        elif inspect.isclass(found):
            directive = f".. autoclass:: p2pl.{name}\n   :members:"
        elif inspect.isfunction(found):
            directive = f".. autofunction:: p2pl.{name}"
        else:
            directive = f".. autodata:: p2pl.{name}"
        parts.append(f"## `{name}`\n\n```{{eval-rst}}\n{directive}\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
