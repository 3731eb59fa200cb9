"""A mixing rule or a task that a person brought, and that gives what is none: said, and by whom."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from support.modules import SPEC
from torch import Tensor

import p2pl
from p2pl.errors import ClientError, InputError
from p2pl.learning.task import TASKS
from p2pl.metric import Metric
from p2pl.mixing.base import MIXERS, Mixed, Mixer, Own, PeerModel
from p2pl.protocol.session import Task as TaskSettings

DATA = (torch.rand(40, 1, 8, 8), torch.arange(40) % 10)
Made = Callable[[str, Own], Any]


def sure(peer_id: str, own: Own) -> dict[str, float]:
    return {peer_id: 1.0}


def raised(peer_id: str, own: Own) -> Mixed:
    raise KeyError("nobody")


MADE: list[tuple[Made, str]] = [
    (lambda me, own: None, "got 'NoneType', allowed p2pl.Mixed"),
    (lambda me, own: Mixed(own.vector * torch.nan, {me: 1.0}), "mixed vector: got 'NaN or inf"),
    (lambda me, own: Mixed(own.vector[:3], {me: 1.0}), r"mixed vector: got '\[3\] float32"),
    (lambda me, own: Mixed(own.vector.double(), {me: 1.0}), "mixed vector: got .*float64"),
    (lambda me, own: Mixed(own.vector, [1.0]), r"its row: got \[1.0\]"),  # type: ignore[arg-type]
    (lambda me, own: Mixed(own.vector, {me: float("nan")}), "its row, of .*: got nan"),
    (lambda me, own: Mixed(own.vector, {me: 2.0}), "its row, of .*: got 2.0"),
    (lambda me, own: Mixed(own.vector, {me: 0.5}), "sum of its row: got 0.5"),
    (lambda me, own: Mixed(own.vector, {"who": 1.0}), "its row: got 'who'"),
    (raised, r"its mix failed at test_own_code.py, line \d+: KeyError"),
]


@pytest.mark.parametrize(("made", "told"), MADE)
def test_a_rule_that_gives_no_mix_is_told_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: Made, told: str
) -> None:
    class Broken(Mixer):
        def mix(self, own: Own, received: Mapping[str, PeerModel], memory: msgspec.Struct) -> Mixed:
            mixed: Mixed = made(self.peer_id, own)
            return mixed

    monkeypatch.setitem(MIXERS._registered, "broken", Broken)
    spec = SPEC | {"model": {"name": "logreg"}, "mixing": {"rule": "broken"}}
    session = p2pl.create(spec, tmp_path / "s.torrent")
    with pytest.raises(ClientError, match=f"mixing.rule broken.*{told}"):
        p2pl.simulate(session, (DATA, DATA), 3)


class Squares(p2pl.Task):
    """Squared errors, spoilt as a test asks for."""

    metrics = (Metric("error", higher_is_better=False),)

    def __init__(self, spoil: Callable[[Tensor], Tensor]) -> None:
        self.spoil = spoil

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = torch.nn.functional.one_hot(targets, outputs.shape[1]).float()
        return self.spoil((outputs - wanted).square().mean(1))

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.losses(outputs, targets).sum()[None]

    def metrics_of(self, tally: Tensor, examples: int) -> Mapping[str, float]:
        return {"error": float(tally[0]) / examples}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda losses: losses * torch.nan, "its loss: got 'NaN or infinity'"),
        (lambda losses: losses[:, None], r"its losses: got '\[2, 1\] float32"),
        (lambda losses: losses.mean(), r"its losses: got '\[\] float32"),
    ],
)
def test_a_task_that_gives_no_losses_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    spoil: Callable[[Tensor], Tensor],
    told: str,
) -> None:
    def made(settings: TaskSettings) -> Squares:
        return Squares(spoil)

    monkeypatch.setitem(TASKS._registered, "squares", made)
    spec: dict[str, Any] = {
        **SPEC,
        "task": {"kind": "squares", "input": [1, 8, 8], "classes": 10},
        "model": {"name": "logreg"},
    }
    session = p2pl.create(spec, tmp_path / "s.torrent")
    with pytest.raises(InputError, match=f"task Squares: {told}"):
        p2pl.join(session, data=DATA, alone=True, run_dir=tmp_path / "run")
