"""Modules as people bring them: with BatchNorm, frozen layers, shared weights; their sessions."""

from torch import Tensor, nn

from p2pl.learning.checkpoint import build
from p2pl.protocol import session as sessions
from p2pl.protocol.session import SessionFile
from p2pl.protocol.session import Task as TaskSettings

SPEC = {
    "name": "own",
    "task": {"input": [1, 8, 8], "classes": 10},
    "training": {"learning_rate": 0.1, "momentum": 0.9, "batch_size": 32},
    "exchange": {
        "rounds": 3,
        "cohort": 2,
        "min_peers": 3,
        "wait_s": 60.0,
        "lockstep": True,
    },
    "mixing": {"rule": "uniform"},
}


class Tied(nn.Module):
    """One layer that is used twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(64, 64, bias=False)
        self.b = nn.Linear(64, 64, bias=False)
        self.b.weight = self.a.weight
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.b(self.a(x.flatten(1)).relu()).relu())
        return found


def batchnorm(task: TaskSettings, *, width: int = 8) -> nn.Module:
    """Returns a network with BatchNorm."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 10)
    )


def frozen(task: TaskSettings) -> nn.Module:
    """Returns a network whose first layer is frozen, and of half precision."""
    body, head = nn.Linear(64, 32).half(), nn.Linear(32, 10)
    body.requires_grad_(requires_grad=False)
    return nn.Sequential(nn.Flatten(), ToHalf(), body, ToFloat(), nn.ReLU(), head)


def tied(task: TaskSettings) -> nn.Module:
    """Returns a network with shared weights."""
    return Tied()


class ToHalf(nn.Module):
    """Makes its input float16."""

    def forward(self, x: Tensor) -> Tensor:
        return x.half()


class ToFloat(nn.Module):
    """Makes its input float32."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class TwoInputs(nn.Module):
    """Takes an image and whole numbers beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(64, 16)
        self.kind = nn.Embedding(4, 16)
        self.out = nn.Linear(16, 10)

    def forward(self, image: Tensor, kind: Tensor) -> Tensor:
        found: Tensor = self.out(self.image(image.flatten(1)).relu() + self.kind(kind))
        return found


def two_inputs(task: TaskSettings) -> nn.Module:
    """Returns a network of two inputs."""
    return TwoInputs()


MODULES = {
    "own-batchnorm": batchnorm,
    "own-frozen": frozen,
    "own-tied": tied,
    "own-inputs": two_inputs,
}


def session_of(model: str, *changes: tuple[str, object]) -> SessionFile:
    """Returns a short session of three peers for one of these models."""
    session = sessions.spec_of({**SPEC, "model": {"name": model}}).session()
    session = sessions.changed(session, *changes)
    return SessionFile("own", session, build(session)[1], trackers=())
