"""Whole runs of `join` in this process: a session file, a view that listens, one peer's run."""

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec
import torch
from rich.console import Console
from support.processes import PATIENCE_S, ROOT, Swarm

from p2pl.api.trainer import Computing, trainer_for
from p2pl.data.load import Data, Shard, load
from p2pl.events import Ended, Event, Sink, Step
from p2pl.exchange.join import Options, join
from p2pl.learning.checkpoint import build
from p2pl.protocol import session
from p2pl.protocol.session import SessionFile
from p2pl.run.log import Summary
from p2pl.terminal import Header, PlainView, tell

SPEC = (ROOT / "torrentfiles" / "digits.toml").read_text()


def session_file(swarm: Swarm, **exchange: object) -> SessionFile:
    """Returns a short session for two peers."""
    wanted = session.read_spec(SPEC).session()
    changes = {"rounds": 4, "cohort": 1, "min_peers": 2, **exchange}
    wanted = msgspec.structs.replace(
        wanted, exchange=msgspec.structs.replace(wanted.exchange, **changes)
    )
    _, promised = build(wanted)
    return SessionFile("digits", wanted, promised, trackers=((swarm.url,),))


class Watching(PlainView):
    """A view that keeps what it was told."""

    def __init__(self) -> None:
        self.text = io.StringIO()
        header = Header(name="digits", session_id="ab" * 32, peer_id="", rounds=4)
        super().__init__(header, Console(file=self.text, width=200))


@dataclass
class Abreast:
    """Keeps the rounds of some runs abreast, so that nothing depends on who computes faster.

    Nobody ends its training of a round before all have done so much, or are further, or have ended.

    Attributes:
        count: how many runs.
    """

    count: int
    _reached: dict[int, float] = field(default_factory=dict)
    _moved: threading.Condition = field(default_factory=threading.Condition)

    def sink(self, number: int) -> Sink:
        """Returns the sink of one of the runs, 0 .. count - 1."""

        def wait(event: Event) -> None:
            if isinstance(event, Ended):
                self._reach(number, float("inf"))
            if isinstance(event, Step) and event.step == event.steps:  # in the training's thread
                self._reach(number, event.round)
                with self._moved:
                    assert self._moved.wait_for(partial(self._all_are_at, event.round), PATIENCE_S)

        return wait

    def _reach(self, number: int, round_index: float) -> None:
        with self._moved:
            self._reached[number] = round_index
            self._moved.notify_all()

    def _all_are_at(self, round_index: int) -> bool:
        return len(self._reached) == self.count and min(self._reached.values()) >= round_index


async def run(
    swarm: Swarm, file: SessionFile, name: str, *, view: PlainView | None = None, **options: object
) -> Summary:
    """Returns the summary of one peer's run; its shard is the digit at the end of its name."""
    run_dir = swarm.folder / name
    run_dir.mkdir(exist_ok=True)
    data = load("digits", file.session.task, shard=Shard(int(name[-1]), 3, "iid"))
    return await run_with(file, run_dir, data, view, **options)


async def run_with(
    file: SessionFile, run_dir: Path, data: Data, view: PlainView | None = None, **options: object
) -> Summary:
    """Returns the summary of one peer's run with these data."""
    on_signals = bool(options.pop("on_signals", True))
    precision = str(options.pop("precision", "float32"))
    sinks: Sequence[Sink] = options.pop("sinks", ())  # type: ignore[assignment]
    chosen = Options(
        run_dir=run_dir,
        identity=run_dir / "identity.pem",
        beside=run_dir.parent,
        listen="127.0.0.1:0",
    )
    chosen = replace(chosen, **options)  # type: ignore[arg-type]
    computing = Computing(torch.device("cpu"), precision, attack=chosen.attack)
    trainer = trainer_for(file, None, data, computing)
    shown = partial(tell, view or Watching())
    return await join(file, chosen, trainer, [shown, *sinks], on_signals=on_signals)
