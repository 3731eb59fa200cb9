"""A simulation as whoever logs it is told: means over the honest peers, round by round."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from p2pl.data.load import Data
from p2pl.events import Started
from p2pl.learner import Learner
from p2pl.protocol.session import settings_of
from p2pl.simulation.engine import Result, SimulatedRound
from p2pl.simulation.setup import Setup
from p2pl.sinks import Log
from p2pl.sinks.base import figures_of, named


class Told:
    """Passes one seed's rounds on to logs.

    Args:
        setup: of the seed.
        name: of the session.
        logs: to pass them on to.
    """

    def __init__(self, setup: Setup, name: str, logs: Sequence[Log]) -> None:
        self._setup, self._name, self._logs = setup, name, logs
        self._runs: tuple[Started, ...] = ()  # by peer: whose figures they are

    def begin(self, learners: Sequence[Learner]) -> None:
        """Tells what is simulated, before the first round."""
        setup, trainer = self._setup, learners[0].trainer
        own = {"peers": setup.peers, "partition": setup.partition, "baseline": setup.baseline}
        attack = {"attack": setup.attack.kind, "bad": setup.bad} if setup.attack else {}
        about = Started(
            self._name,
            setup.name,
            f"seed-{setup.seed}",
            0,
            setup.session.exchange.rounds,
            trainer.metrics,
            trainer.loss_unit,
            setup.privacy.epsilon if setup.privacy else None,
            {**settings_of(setup.session), **own, **attack},
        )
        honest = learners[: len(learners) - setup.bad]
        self._runs = tuple(replace(about, peer_id=one.peer_id) for one in honest)
        for log in self._logs:
            log.begin(about)

    def round(self, one: SimulatedRound) -> None:
        """Tells the means of a round, and how far the models are from each other."""
        pairs = zip(one.entries, self._runs, strict=False)  # the last ones are bad
        by_peer = [figures_of(entry, run) for entry, run in pairs]
        names = dict.fromkeys(name for figures in by_peer for name in figures)
        means = {
            name: fmean(figures[name] for figures in by_peer if name in figures) for name in names
        }
        for log in self._logs:
            log.round(one.index, means | {"consensus_distance": one.consensus_distance})

    def finish(self, result: Result, data: Data | None) -> None:
        """Tells the means of the final models.

        Args:
            result: of the seed.
            data: that the peers share; nobody is told of them.
        """
        scores = [result.scores[peer].metrics for peer in result.honest]
        final = {
            f"final_{named(metric.name, metric.unit)}": fmean(one[metric.name] for one in scores)
            for metric in self._runs[0].metrics
            if all(metric.name in one for one in scores)
        }
        for log in self._logs:
            log.end("finished", final)
