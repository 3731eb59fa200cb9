"""Texts as rows of tokens: files and columns, bytes and tokenizers."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from torch import Tensor, nn

import p2pl
from p2pl.data.load import form_of, load
from p2pl.data.texts import IGNORED, rows_of
from p2pl.errors import DataError, SessionFileError
from p2pl.protocol.session import Session, decode, spec_of

SPEC: dict[str, Any] = {
    "name": "words",
    "task": {"kind": "language"},
    "text": {"length": 4},
    "model": {"name": "arrays"},
    "training": {"learning_rate": 0.5, "batch_size": 8},
    "exchange": {"rounds": 8, "cohort": 1},
}
BYTES = spec_of(SPEC).session()


def read(path: Path, session: Session = BYTES, tokenizer: Path | None = None) -> p2pl.Data:
    """Returns the texts at a path."""
    return load(str(path), session.task, form=form_of(session, tokenizer))


def test_a_text_is_cut_into_rows_and_targets_are_moved_on_by_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("aé\nbc".encode())
    data = read(tmp_path / "a.txt")
    assert data.train.x.tolist() == [[97, 0xC3, 0xA9, 10], [98, 99, 256, 256]]
    assert data.train.y.tolist() == [[0xC3, 0xA9, 10, 98], [99, 256, IGNORED, IGNORED]]
    assert data.train.x.dtype == torch.int64


@pytest.mark.parametrize(("tokens", "rows"), [(2, 1), (5, 1), (6, 2), (9, 2), (10, 3)])
def test_no_token_is_lost_and_none_is_asked_for_twice(tokens: int, rows: int) -> None:
    x, y = rows_of([list(range(tokens))], 4, 256)
    assert x.shape == y.shape == (rows, 4)
    assert y[y != IGNORED].tolist() == list(range(1, tokens))
    assert x[y != IGNORED].tolist() == list(range(tokens - 1))


def test_columns_are_texts_and_a_folder_has_a_test_split(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": ["ab", None, "c"]}), tmp_path / "train.parquet")
    (tmp_path / "test.csv").write_text('text,n\n"d,e",1\n')
    data = read(tmp_path)
    assert data.train.x.tolist() == [[97, 98, 256, 99]]
    assert data.train.y.tolist() == [[98, 256, 99, 256]]
    assert data.test is not None
    assert data.test.x[0].tolist() == [100, 44, 101, 256]
    assert data.test.y[0].tolist() == [44, 101, 256, IGNORED]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.txt", "", "got 'no text', allowed two tokens or more"),
        ("a.csv", "words\nab\n", "column 'text': missing; the file has words"),
        ("sub/readme.rst", "ab", "got 'no text', allowed files .txt"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, name: str, content: str, told: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(DataError) as fault:
        read(path.parent if "/" in name else path)
    assert told in str(fault.value)
    parquet.write_table(pyarrow.table({"text": [1.5]}), tmp_path / "n.parquet")
    with pytest.raises(DataError, match="column 'text': numbers; allowed: text"):
        read(tmp_path / "n.parquet")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """Returns the file of a tokenizer that knows three words."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {"the": 0, "cat": 1, "sat": 2, "?": 3, "<end>": 4}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_a_tokenizer_is_one_whose_hash_is_in_the_session(tokenizer: Path, tmp_path: Path) -> None:
    spec = {**SPEC, "text": {"length": 4, "end": "<end>"}}
    file = p2pl.create(spec, tmp_path / "s.torrent", tokenizer=tokenizer, model=Bigrams(5))
    session = decode(file.encode()).session
    assert (session.task.classes, session.task.input) == (5, (4,))
    (tmp_path / "a.txt").write_text("the cat sat\ndown")
    data = read(tmp_path / "a.txt", session, tokenizer)
    assert data.train.x.tolist() == [[0, 1, 2, 3]]
    assert data.train.y.tolist() == [[1, 2, 3, 4]]
    with pytest.raises(DataError, match="--tokenizer: got nothing, and the session is for"):
        read(tmp_path / "a.txt", session)
    other = tmp_path / "other.json"
    other.write_bytes(tokenizer.read_bytes() + b"\n")
    with pytest.raises(DataError, match="allowed SHA-256"):
        read(tmp_path / "a.txt", session, other)
    with pytest.raises(DataError, match="whose tokens are bytes"):
        read(tmp_path / "a.txt", BYTES, tokenizer)
    other.write_text("{}")
    with pytest.raises(DataError, match=r"allowed a file of the library tokenizers"):
        p2pl.create(spec, tmp_path / "s.torrent", tokenizer=other, model=Bigrams(5))
    wrong = {**SPEC, "text": {"length": 4, "end": "</s>"}}
    with pytest.raises(DataError, match=r"text\.end: got '</s>', allowed a token of"):
        p2pl.create(wrong, tmp_path / "s.torrent", tokenizer=tokenizer, model=Bigrams(5))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"text": {"length": 0}}, r"text\.length"),
        ({"text": {"length": 4, "tokenizer": "abc"}}, r"text\.tokenizer"),
        ({"text": {"length": 4, "end": "x"}}, "where tokens are bytes"),
        ({"task": {"kind": "language", "classes": 256}}, "where tokens are bytes"),
        ({"task": {"kind": "language", "input": [8]}}, r"task\.input, with text"),
        ({"task": {"kind": "classification", "classes": 2}}, r"task\.kind, with text"),
        ({"table": {"target": "a", "columns": [{"name": "b"}]}}, "text: not allowed with a table"),
    ],
)
def test_a_text_that_contradicts_the_session_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(SessionFileError, match=told):
        spec_of({**SPEC, **changes})


class Bigrams(nn.Module):
    """Knows of each token what follows it."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.follows = nn.Parameter(torch.zeros(tokens, tokens))

    def forward(self, x: Tensor) -> Tensor:
        return self.follows[x]


def test_a_model_learns_what_follows_what(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcd" * 200)
    file = p2pl.create(SPEC, tmp_path / "s.torrent", model=Bigrams(257))
    assert decode(file.encode()).session.text == BYTES.text
    run = p2pl.join(
        tmp_path / "s.torrent",
        Bigrams(257),
        tmp_path / "a.txt",
        test_share=0.2,
        alone=True,
        run_dir=tmp_path / "run",
    )
    assert run.summary is not None
    assert run.summary.metrics["tokens right"] > 95
    assert 1 <= run.summary.metrics["perplexity"] < 250
    assert np.isfinite(run.rounds[-1].train_loss or np.nan)
