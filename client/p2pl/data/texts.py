"""Texts as rows of tokens: plain files, or a column of a table; as bytes, or by a tokenizer.

Each file, or each row, is one text. One behind the other, each followed by the token that ends a
text, they are cut into rows of the session's length; what a row is to be answered with is the same
row moved on by one. What is left behind the last whole row is a row too, and asks for nothing where
there is no token any more.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from p2pl import regular
from p2pl.data.frames import SUFFIXES, Faults, open_table
from p2pl.data.names import train_and_test
from p2pl.data.partition import Indices
from p2pl.data.source import Source, Split, in_memory
from p2pl.errors import DataError, wrong
from p2pl.extras import install
from p2pl.protocol.session import Task, Text

PLAIN = (".txt", ".text", ".md")  # in a folder; a file that is named itself may end as it likes
END = 256  # of a text, where tokens are bytes
IGNORED = -100  # a target that nobody asks for, as torch has it
MAX_TOKENIZER_BYTES = 64 << 20  # chosen: the largest in use have a tenth of it

Encode: TypeAlias = Callable[[bytes], Sequence[int] | Indices]


@dataclass(frozen=True, slots=True)
class Texts:
    """What a session says of texts, with the tokenizer that it names."""

    text: Text
    encode: Encode  # a text in UTF-8 -> its tokens, and the one that ends it
    tokens: int  # how many there are
    end: int  # what fills up the last row


def texts_of(text: Text, tokenizer: Path | None) -> Texts:
    """Returns what reads texts as a session says.

    Args:
        text: of the session.
        tokenizer: the file that it names by its hash; None: it names none.

    Raises:
        DataError: the file is missing, or another one.
    """
    if not text.tokenizer:
        if tokenizer is not None:
            raise DataError("--tokenizer: not allowed with this session, whose tokens are bytes")
        return Texts(text, _bytes, END + 1, END)
    if tokenizer is None:
        got = f"nothing, and the session is for the file with SHA-256 {text.tokenizer}"
        raise DataError(f"--tokenizer: got {got}, allowed FILE, as its author has it")
    raw = read_tokenizer(tokenizer)
    if hash_of(raw) != text.tokenizer:
        allowed = f"SHA-256 {text.tokenizer}, as the session says"
        raise DataError(wrong(f"--tokenizer {tokenizer}", got=hash_of(raw), allowed=allowed))
    return _tokenized(raw, text, str(tokenizer))


def with_tokenizer(raw: Mapping[str, Any], tokenizer: Path) -> dict[str, Any]:
    """Returns a spec's tables with the hash of a tokenizer, and how many tokens it has.

    Args:
        raw: of the spec, as TOML has them.
        tokenizer: a file of the library `tokenizers`.

    Raises:
        DataError: it is none.
    """
    task, text = raw.get("task"), raw.get("text")
    if not isinstance(task, Mapping) or not isinstance(text, Mapping):
        raise DataError("--tokenizer: allowed only with a [task] and a [text] in the TOML file")
    held = read_tokenizer(tokenizer)
    shown = Text(length=1, end=str(text.get("end", "")))
    tokens = _tokenized(held, shown, str(tokenizer)).tokens
    return {
        **raw,
        "task": {"classes": tokens, **task},
        "text": {**text, "tokenizer": hash_of(held)},
    }


def read_tokenizer(path: Path) -> bytes:
    """Returns the bytes of a tokenizer's file.

    Raises:
        DataError: it cannot be read, or is far too large.
    """
    try:
        with regular.opened(path) as file:
            raw = file.read(MAX_TOKENIZER_BYTES + 1)
    except OSError as fault:
        raise DataError(f"--tokenizer {path}: cannot be read: {fault.strerror}") from fault
    if len(raw) > MAX_TOKENIZER_BYTES:
        allowed = f"at most {MAX_TOKENIZER_BYTES} bytes"
        raise DataError(wrong(f"--tokenizer {path}", got="a larger file", allowed=allowed))
    return raw


def hash_of(raw: bytes) -> str:
    """Returns the SHA-256 of a tokenizer's file, 64 hex digits."""
    return hashlib.sha256(raw).hexdigest()


def _bytes(text: bytes) -> Indices:
    return np.append(np.frombuffer(text, dtype=np.uint8), np.int64(END))


def _tokenized(raw: bytes, text: Text, name: str) -> Texts:
    """Returns what reads texts by a tokenizer of the library `tokenizers`: data, and no code."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as fault:
        raise DataError(f"--tokenizer: needs {fault.name}: {install('text')}") from fault
    try:
        made = Tokenizer.from_str(raw.decode())
    except Exception as fault:  # the library raises no class of its own
        allowed = "a file of the library tokenizers, tokenizer.json"
        raise DataError(wrong(f"--tokenizer {name}", got=str(fault), allowed=allowed)) from fault
    made.no_padding()
    made.no_truncation()
    end = made.token_to_id(text.end) if text.end else None
    if text.end and end is None:
        raise DataError(wrong("text.end", got=text.end, allowed=f"a token of {name}"))

    def encode(one: bytes) -> list[int]:
        ids: list[int] = made.encode(one.decode(errors="replace"), add_special_tokens=False).ids
        return ids if end is None else [*ids, end]

    return Texts(text, encode, made.get_vocab_size(), end or 0)


def text_source(path: Path, task: Task, texts: Texts) -> Source:
    """Returns the rows of tokens in a file of text, in a CSV or parquet file, or in a folder.

    Args:
        path: a file, all of it training data; or a folder, where `train` and `test` are told by
            name or folder, and files that bear neither name are all training data.
        task: the session's.
        texts: what reads them.

    Raises:
        DataError: there is no text, or the tokenizer has other tokens than the session.
    """
    if texts.tokens > task.classes:
        allowed = f"at most {task.classes}, the session's task.classes"
        raise DataError(wrong("tokens of the tokenizer", got=texts.tokens, allowed=allowed))
    train, test = [path], list[Path]()
    if path.is_dir():
        train, test = train_and_test(path, (*PLAIN, *SUFFIXES), "text")
    return Source(_split(train, texts), _split(test, texts) if test else None, ())


def _split(paths: Sequence[Path], texts: Texts) -> Split:
    tokens = [texts.encode(one) for path in paths for one in _texts_in(path, texts.text.column)]
    x, y = rows_of(tokens, texts.text.length, texts.end)
    if not len(x):
        names = ", ".join(path.name for path in paths)
        raise DataError(wrong(f"--data {names}"[:200], got="no text", allowed="two tokens or more"))
    return in_memory(x, y)


def _texts_in(path: Path, column: str) -> Iterator[bytes]:
    """Yields the texts of a file."""
    if path.suffix.lower() not in SUFFIXES:
        try:
            yield regular.read(path)
        except OSError as fault:
            raise DataError(f"--data {path}: cannot be read: {fault.strerror}") from fault
        return
    opened = open_table(path)
    faults = Faults(opened.named)
    if column not in opened.header:
        faults.add(f"column {column!r}", f"missing; the file has {', '.join(opened.header)}"[:300])
    faults.check()
    for piece in opened.pieces((column,), faults):
        cells = piece.columns[column]
        if isinstance(cells, np.ndarray):
            faults.add(f"column {column!r}", "numbers; allowed: text")
            cells = []
        yield from (cell.encode() for cell in cells if cell)
    faults.check()


def rows_of(
    texts: Iterable[Sequence[int] | Indices], length: int, end: int
) -> tuple[Indices, Indices]:
    """Returns inputs and targets, [N, length] int64 each, of the tokens of all texts in a row.

    Args:
        texts: tokens of one text each.
        length: of a row.
        end: fills up the last input; the targets there are -100.
    """
    parts = [np.asarray(one, dtype=np.int64) for one in texts]
    tokens = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    rows = max(0, -(-(len(tokens) - 1) // length))
    missing = rows * length + 1 - len(tokens)
    x = np.append(tokens, np.full(missing, end))[: rows * length].reshape(rows, length)
    y = np.append(tokens, np.full(missing, IGNORED))[1 : rows * length + 1].reshape(rows, length)
    return x, y
