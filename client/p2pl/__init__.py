"""Peer-to-peer federated learning, joined the way you join a torrent.

What is named here is public; everything else may change. Importing this package imports nothing
else: the tracker and `p2pl --help` stay light, and each name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from p2pl import events
    from p2pl.api.check import Preflight, check
    from p2pl.api.export import export
    from p2pl.api.join import join, join_async
    from p2pl.api.private import invite, peer_id, revoke
    from p2pl.api.register import (
        register_exchange,
        register_mixing,
        register_model,
        register_task,
    )
    from p2pl.api.run import Run, load
    from p2pl.api.session import create, read_session
    from p2pl.api.simulate import Simulation, simulate
    from p2pl.api.use import evaluate, predict
    from p2pl.data.examples import Examples
    from p2pl.data.load import Data, Shard
    from p2pl.errors import P2PLError
    from p2pl.events import Stop
    from p2pl.exchange.base import Collected, Exchange
    from p2pl.learning.codec import Codec
    from p2pl.learning.judge import Judge
    from p2pl.learning.task import Metric, Scores, Task
    from p2pl.learning.train import Start, Trained
    from p2pl.learning.trainer import Round, Trainer
    from p2pl.learning.weights import Layout
    from p2pl.mixing.base import Mixed, Mixer, Own, PeerModel, weighted_mean
    from p2pl.network.in_memory import MemoryNetwork
    from p2pl.network.transport import Directory, Transport
    from p2pl.protocol.session import Session, SessionFile

_HOME = {
    "Codec": "p2pl.learning.codec",
    "Collected": "p2pl.exchange.base",
    "Data": "p2pl.data.load",
    "Directory": "p2pl.network.transport",
    "Examples": "p2pl.data.examples",
    "Exchange": "p2pl.exchange.base",
    "Judge": "p2pl.learning.judge",
    "Layout": "p2pl.learning.weights",
    "MemoryNetwork": "p2pl.network.in_memory",
    "Metric": "p2pl.learning.task",
    "Mixed": "p2pl.mixing.base",
    "Mixer": "p2pl.mixing.base",
    "Own": "p2pl.mixing.base",
    "P2PLError": "p2pl.errors",
    "PeerModel": "p2pl.mixing.base",
    "Preflight": "p2pl.api.check",
    "Round": "p2pl.learning.trainer",
    "Run": "p2pl.api.run",
    "Scores": "p2pl.learning.task",
    "Session": "p2pl.protocol.session",
    "SessionFile": "p2pl.protocol.session",
    "Shard": "p2pl.data.load",
    "Simulation": "p2pl.api.simulate",
    "Start": "p2pl.learning.train",
    "Stop": "p2pl.events",
    "Task": "p2pl.learning.task",
    "Trained": "p2pl.learning.train",
    "Trainer": "p2pl.learning.trainer",
    "Transport": "p2pl.network.transport",
    "check": "p2pl.api.check",
    "create": "p2pl.api.session",
    "evaluate": "p2pl.api.use",
    "export": "p2pl.api.export",
    "invite": "p2pl.api.private",
    "join": "p2pl.api.join",
    "join_async": "p2pl.api.join",
    "load": "p2pl.api.run",
    "peer_id": "p2pl.api.private",
    "predict": "p2pl.api.use",
    "read_session": "p2pl.api.session",
    "register_exchange": "p2pl.api.register",
    "register_mixing": "p2pl.api.register",
    "register_model": "p2pl.api.register",
    "register_task": "p2pl.api.register",
    "revoke": "p2pl.api.private",
    "simulate": "p2pl.api.simulate",
    "weighted_mean": "p2pl.mixing.base",
}
__all__ = [
    "Codec",
    "Collected",
    "Data",
    "Directory",
    "Examples",
    "Exchange",
    "Judge",
    "Layout",
    "MemoryNetwork",
    "Metric",
    "Mixed",
    "Mixer",
    "Own",
    "P2PLError",
    "PeerModel",
    "Preflight",
    "Round",
    "Run",
    "Scores",
    "Session",
    "SessionFile",
    "Shard",
    "Simulation",
    "Start",
    "Stop",
    "Task",
    "Trained",
    "Trainer",
    "Transport",
    "check",
    "create",
    "evaluate",
    "events",
    "export",
    "invite",
    "join",
    "join_async",
    "load",
    "peer_id",
    "predict",
    "read_session",
    "register_exchange",
    "register_mixing",
    "register_model",
    "register_task",
    "revoke",
    "simulate",
    "weighted_mean",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  # whatever is public by this name
    if name == "events":
        return importlib.import_module("p2pl.events")
    if name not in _HOME:
        raise AttributeError(f"module 'p2pl' has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
