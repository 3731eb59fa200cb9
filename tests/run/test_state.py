"""What a peer saves after a round is what it goes on from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from p2pl.errors import RunDirError
from p2pl.mixing.trust.row import Record, Trust
from p2pl.run.state import FORMAT, STATE_FILE, Best, PeerState, load_state, save_state

SESSION = "ab" * 32


TRUST = Trust(
    records={"cd" * 32: Record(0.1, 0.01, 3)}, heard={"cd" * 32: b"\x93\x01\xff"}, rounds=4
)


def state() -> PeerState:
    """Returns a state with something in every field."""
    return PeerState(
        round=5,
        weights=torch.tensor([1.0, -2.0, 3.0]),
        optimizer={"0.weight/momentum_buffer": torch.tensor([0.5])},
        trust=TRUST,
        directory={"sequence": 7, "known": []},
        memory={"used": {"ef" * 32: 3}},
        personal=torch.tensor([4.0, 5.0, 6.0]),
        best=Best(4, 0.25),
    )


def test_a_state_reads_back_as_it_was_saved(tmp_path: Path) -> None:
    save_state(tmp_path, SESSION, state())
    read = load_state(tmp_path, SESSION, parameters=3, memory=Trust)
    assert read is not None
    assert (read.round, read.trust, read.directory) == (5, state().trust, state().directory)
    assert read.memory == state().memory
    assert read.best == Best(4, 0.25)
    assert read.personal is not None
    assert read.personal.tolist() == [4.0, 5.0, 6.0]
    assert torch.equal(read.weights, state().weights)
    assert torch.equal(read.optimizer["0.weight/momentum_buffer"], torch.tensor([0.5]))


def test_who_keeps_no_personal_model_has_none_afterwards(tmp_path: Path) -> None:
    save_state(tmp_path, SESSION, replace(state(), personal=None))
    read = load_state(tmp_path, SESSION, parameters=3, memory=Trust)
    assert read is not None
    assert read.personal is None
    assert set(read.optimizer) == {"0.weight/momentum_buffer"}


def test_a_new_run_has_no_state(tmp_path: Path) -> None:
    assert load_state(tmp_path, SESSION, parameters=3, memory=Trust) is None


def test_a_state_of_another_session_or_model_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, SESSION, state())
    with pytest.raises(RunDirError, match="another --run-dir"):
        load_state(tmp_path, "00" * 32, parameters=3, memory=Trust)
    with pytest.raises(RunDirError, match=r"\[3\]"):
        load_state(tmp_path, SESSION, parameters=4, memory=Trust)


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_a_damaged_state_is_refused_in_words(tmp_path: Path, cut: int) -> None:
    save_state(tmp_path, SESSION, state())
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(RunDirError, match="delete it to start"):
        load_state(tmp_path, SESSION, parameters=3, memory=Trust)


@pytest.mark.parametrize(
    "told",
    [
        '{"round": 1e999, "trust": {}, "directory": null}',
        '{"round": -1, "trust": {}, "directory": null}',
        '{"round": 1, "trust": {}, "directory": null, "charged": NaN}',
        '{"round": 1, "trust": {}, "directory": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"round": 1, "trust": {}, "directory": 7}',
        "7",
    ],
)
def test_a_state_that_says_what_none_can_is_refused_in_words(tmp_path: Path, told: str) -> None:
    metadata = {"format": FORMAT, "session": SESSION, "state": told}
    save_file({"weights": torch.zeros(3)}, tmp_path / STATE_FILE, metadata)
    with pytest.raises(RunDirError, match=r"damaged .* delete it to start"):
        load_state(tmp_path, SESSION, parameters=3, memory=Trust)
