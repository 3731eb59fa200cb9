"""What a peer must remember to go on after a crash: one file, replaced whole after every round."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from p2pl import pages
from p2pl.errors import RunDirError, wrong
from p2pl.run.files import write_parts_atomically
from p2pl.run.log import Count

STATE_FILE = "state.safetensors"
FORMAT = "p2pl state 1"
_WEIGHTS = "weights"
_OPTIMIZER = "optimizer."
_PERSONAL = "personal"
_TAGS = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Best(msgspec.Struct, frozen=True):
    """The round whose model did best on the peer's own validation examples, so far."""

    round: int
    validation_loss: float  # of its model, after mixing


class _Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a file says beside its tensors."""

    round: Count
    trust: Any
    directory: dict[str, Any] | None
    memory: dict[str, Any] = {}
    charged: Count = 0
    best: Best | None = None
    logged: Count = 0


@dataclass(frozen=True, slots=True)
class PeerState:
    """A peer between two rounds."""

    round: int  # the last round completed; 0 before the first
    weights: Tensor  # [P] float32, after mixing
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    trust: msgspec.Struct | None = None  # what the mixing rule remembers; None: nothing yet
    directory: Mapping[str, Any] | None = None  # of peers and trackers, in builtins
    memory: Mapping[str, Any] = field(default_factory=dict)  # of the kind of exchange, in builtins
    charged: int = 0  # steps of private training paid for by then; see accounts.py
    personal: Tensor | None = None  # [P] float32, the personal model; None: none is kept
    best: Best | None = None  # None: none is kept; its weights are in a file of their own
    logged: int = 0  # entries of the update log by then


def save_state(directory: Path, session_id: str, state: PeerState) -> None:
    """Replaces the state in a run directory; a crash leaves the old one or the new one.

    Args:
        directory: the run directory.
        session_id: of the session, 64 hex digits.
        state: of the peer.

    Raises:
        InputError: it cannot be written.
    """
    tensors = {_WEIGHTS: state.weights.detach().cpu().contiguous()}
    for name, tensor in state.optimizer.items():
        tensors[_OPTIMIZER + name] = tensor.detach().cpu().contiguous()
    if state.personal is not None:
        tensors[_PERSONAL] = state.personal.detach().cpu().contiguous()
    told = _Told(
        round=state.round,
        trust={} if state.trust is None else state.trust,
        directory=None if state.directory is None else dict(state.directory),
        memory=dict(state.memory),
        charged=state.charged,
        best=state.best,
        logged=state.logged,
    )
    metadata = {
        "format": FORMAT,
        "session": session_id,
        "state": json.dumps(msgspec.to_builtins(told)),
    }
    # By parts: put together, as `safetensors` does it, they would take the memory of another model.
    numbers = [one.reshape(-1).view(torch.uint8).numpy().data for one in tensors.values()]
    write_parts_atomically(directory / STATE_FILE, [_header(tensors, metadata), *numbers])


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Returns what safetensors writes before the numbers, which follow in the same order."""
    entries: dict[str, object] = {"__metadata__": metadata}
    begin = 0
    for name, one in tensors.items():
        span = [begin, begin := begin + one.nbytes]
        entries[name] = {"dtype": _TAGS[one.dtype], "shape": list(one.shape), "data_offsets": span}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def reopened(directory: Path, state: PeerState) -> PeerState:
    """Returns a state that was just saved, with large weights as they lie in the file.

    Args:
        directory: the run directory.
        state: as it was saved there.
    """
    weights = state.weights
    if weights.nbytes < pages.LEAST_BYTES or weights.device.type != "cpu":
        return state
    payload = pages.opened(directory / STATE_FILE)
    begin = 8 + int.from_bytes(payload[:8], "little")
    kept = torch.frombuffer(payload, dtype=weights.dtype, offset=begin, count=len(weights))
    pages.rest(payload)
    return replace(state, weights=kept)


def load_state(
    directory: Path, session_id: str, parameters: int, memory: type[msgspec.Struct]
) -> PeerState | None:
    """Returns the state saved in a run directory; None where there is none.

    Args:
        directory: the run directory.
        session_id: of the session being joined.
        parameters: P, how many numbers the session's model has.
        memory: the type of what the session's mixing rule remembers.

    Raises:
        RunDirError: the state is damaged, or of another session or model.
    """
    path = directory / STATE_FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        told = msgspec.convert(json.loads(metadata["state"]), _Told)
        if (metadata["format"], metadata["session"]) != (FORMAT, session_id):
            raise RunDirError(
                wrong(
                    str(path),
                    got=f"{metadata['format']} of session {metadata['session']}",
                    allowed=f"{FORMAT} of session {session_id}",
                    hint="use another --run-dir",
                )
            )
        weights, personal = tensors.pop(_WEIGHTS), tensors.pop(_PERSONAL, None)
        state = PeerState(
            round=told.round,
            weights=weights,
            optimizer={name.removeprefix(_OPTIMIZER): item for name, item in tensors.items()},
            trust=msgspec.convert(told.trust, memory),
            directory=told.directory,
            memory=told.memory,
            charged=told.charged,
            personal=personal,
            best=told.best,
            logged=told.logged,
        )
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as fault:
        raise RunDirError(
            f"{path}: damaged ({fault}); delete it to start this peer's run again"
        ) from fault
    for vector in (weights, personal):
        if vector is not None and vector.shape != (parameters,):
            got = f"weights of shape {list(vector.shape)}"
            raise RunDirError(wrong(str(path), got=got, allowed=f"[{parameters}]"))
    return state
