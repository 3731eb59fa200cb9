"""Datasets of the Hugging Face Hub: of one on loopback, asked over HTTP by its own libraries."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from support.hubs import TOKEN, Dataset, Hub, serving
from support.image_sets import GREY, NAMES, png, small
from support.processes import PATIENCE_S

from p2pl.data import hub as module
from p2pl.data.load import load
from p2pl.errors import DataError

LOAD = f"""
import sys
from p2pl.data.load import load
from p2pl.errors import DataError
from p2pl.protocol.session import Task

try:
    data = load(sys.argv[1], Task(input={GREY.input}, classes={GREY.classes}))
except DataError as fault:
    sys.exit(str(fault))
print(data.train.y.tolist(), data.test.y.tolist())
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has a public, a private and a gated dataset, and whose user has no token."""
    folder = small(tmp_path / "published")
    files = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")
    } | {"README.md": b"---\nlicense: mit\n---\n"}
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    published = {
        "me/tiny": Dataset(files),
        "me/private": Dataset(files, private=True),
        "me/gated": Dataset(files, gated=True),
    }
    with serving(Hub(published)) as running:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.url)
        yield running


def load_elsewhere(hub: Hub, ref: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Loads a dataset in another process: the libraries read the environment as they are loaded."""
    return subprocess.run(
        [sys.executable, "-c", LOAD, ref],
        env={**os.environ, "HF_ENDPOINT": hub.url, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_a_public_dataset_is_downloaded_once_and_then_read_offline(hub: Hub) -> None:
    first = load_elsewhere(hub, "me/tiny")
    assert first.stdout == "[0, 2, 1] [2]\n", first.stderr
    hub.asked.clear()
    again = load_elsewhere(hub, "me/tiny", HF_HUB_OFFLINE="1")
    assert again.stdout == "[0, 2, 1] [2]\n", again.stderr
    assert hub.asked == []


def test_offline_a_dataset_that_was_never_downloaded_is_refused(hub: Hub) -> None:
    done = load_elsewhere(hub, "me/tiny", HF_HUB_OFFLINE="1")
    assert (done.returncode, hub.asked) == (1, [])
    assert "not downloaded here before, and HF_HUB_OFFLINE is set" in done.stderr


@pytest.mark.parametrize("ref", ["me/private", "me/gated"])
def test_whoever_has_the_token_reads_what_is_not_public(hub: Hub, ref: str) -> None:
    done = load_elsewhere(hub, ref, HF_TOKEN=TOKEN)
    assert done.stdout == "[0, 2, 1] [2]\n", done.stderr


def test_a_token_that_was_saved_by_logging_in_counts_as_well(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(TOKEN)
    done = load_elsewhere(hub, "me/private")
    assert done.stdout == "[0, 2, 1] [2]\n", done.stderr


def test_without_a_token_a_gated_dataset_is_refused_with_where_to_ask(hub: Hub) -> None:
    done = load_elsewhere(hub, "me/gated")
    assert f"ask for it at {hub.url}/datasets/me/gated" in done.stderr
    assert "hf auth login" in done.stderr


@pytest.mark.parametrize("ref", ["me/private", "me/none"])
def test_without_a_token_what_is_private_or_not_there_is_refused_alike(hub: Hub, ref: str) -> None:
    with pytest.raises(DataError, match=f"got '{ref}'.*or it is private: run `hf auth login`"):
        load(ref, GREY)
    assert f"/api/datasets/{ref}" in hub.asked


@pytest.mark.parametrize(("ref", "token"), [("me/none", TOKEN), ("me/private", "hf_" + "b" * 34)])
def test_a_token_that_opens_nothing_is_named(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, ref: str, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(DataError, match=f"got '{ref}'.*none of this name that the token in use"):
        load(ref, GREY)


@pytest.mark.parametrize(("status", "hint"), [(403, "hf auth login"), (503, "503")])
def test_what_the_hub_answers_instead_is_said(hub: Hub, status: int, hint: str) -> None:
    hub.fault = status
    with pytest.raises(DataError, match=f"(?s)hub answered {status}: .*{hint}"):
        load("me/tiny", GREY)


@pytest.mark.usefixtures("hub")
def test_an_id_that_no_dataset_can_have_is_refused() -> None:
    with pytest.raises(DataError, match="got 'me/a--b', allowed a dataset id"):
        load("me/a--b", GREY)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("data_dir", [None, Path("/the/data")])
def test_without_a_network_one_is_told_where_to_put_the_files(
    monkeypatch: pytest.MonkeyPatch, data_dir: Path | None
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(module, "DEADLINE_S", 1.0)
    place = "/the/data/me/tiny" if data_dir else "P2PL_DATA_DIR=DIR"
    with pytest.raises(DataError, match=f"cannot be reached.*{place}"):
        load("me/tiny", GREY, data_dir=data_dir)


def in_memory(split: dict[str, list[int]]) -> datasets.DatasetDict:
    """Returns what the `datasets` library returns."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES))
    return datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                {
                    "image": [{"bytes": png(51 * label), "path": None} for label in labels],
                    "label": labels,
                },
                features=features,
            )
            for name, labels in split.items()
        }
    )


@pytest.mark.usefixtures("hub")
def test_a_hub_dataset_is_read_as_its_parquet_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(ref: str) -> datasets.DatasetDict:
        assert ref == "me/tiny"
        return in_memory({"train": [2, 0], "test": [1]})

    monkeypatch.setattr(datasets, "load_dataset", found)
    read = load("me/tiny", GREY)
    assert read.train.y.tolist() == [2, 0]
    assert read.train.x[:, 0, 0, 0].tolist() == pytest.approx([0.4, 0])
    assert read.test is not None
    assert read.test.y.tolist() == [1]


@pytest.mark.usefixtures("hub")
def test_a_hub_dataset_without_a_training_split_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda ref: in_memory({"test": [1]}))
    with pytest.raises(DataError, match=r"\['test'\], allowed a split called train"):
        load("me/tiny", GREY)


@pytest.mark.usefixtures("hub")
def test_what_the_datasets_library_refuses_is_an_error_of_the_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(ref: str) -> datasets.DatasetDict:
        raise ValueError("Config name is missing")

    monkeypatch.setattr(datasets, "load_dataset", failing)
    with pytest.raises(DataError, match="Config name is missing"):
        load("me/tiny", GREY)
