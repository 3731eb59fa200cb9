"""Seeds of a simulation, each computed by one worker of a cluster: nothing is exchanged."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from p2pl.data.load import Data
from p2pl.errors import NetworkError
from p2pl.learning import models
from p2pl.learning.flower import Clients
from p2pl.learning.weights import flatten
from p2pl.simulation.engine import OnBegin, OnRound, Result
from p2pl.simulation.joined import ANSWER_DEADLINE_S, Handle, Ray, Ref, summary, translated
from p2pl.simulation.peers import peers_of
from p2pl.simulation.setup import RAY, Setup
from p2pl.simulation.worker import Array, Judged, scores_of, tensor_of

log = logging.getLogger(__name__)


class Seeds:
    """Seeds that are simulated by one worker each, as many at a time as there are workers.

    Args:
        ray: joined.
        workers: that have the data.
        setups: by seed.
        model: in the place of the session's; None: the session's own.
    """

    def __init__(
        self,
        ray: Ray,
        workers: Sequence[Handle],
        setups: Sequence[Setup],
        model: nn.Module | None,
    ) -> None:
        self._ray, self._model = ray, model
        self._idle = list(workers)
        self._waiting = list(reversed(setups))
        self._running: dict[Ref, tuple[Handle, Setup]] = {}
        self._done: dict[int, tuple[Result, list[Array], list[Judged]]] = {}

    def run(  # as `run` of the engine
        self,
        setup: Setup,
        data: Data | Clients,
        device: torch.device,
        on_round: OnRound | None = None,
        model: nn.Module | None = None,
        on_begin: OnBegin | None = None,
    ) -> Result:
        """Returns what came of one of the seeds; its rounds are told once they are all over."""
        while setup.seed not in self._done:
            self._go_on()
        result, vectors, scores = self._done.pop(setup.seed)
        space = models.build(setup.seeded_session) if model is None else copy.deepcopy(model)
        initial = flatten(space)
        learners = [one.beginning(initial) for one in peers_of(setup, data, device, space)]
        if on_begin is not None:
            on_begin(learners)
        for one in result.rounds:
            if on_round is not None:
                on_round(one)
        return replace(
            result,
            setup=setup,
            learners=tuple(learners),
            # Copies: the object store is gone once the cluster is left.
            vectors=tuple(tensor_of(one).clone() for one in vectors),
            scores=tuple(map(scores_of, scores)),
            engine=replace(result.engine, kind=RAY),
        )

    def _go_on(self) -> None:
        """Gives idle workers what waits, and takes the next answer."""
        while self._idle and self._waiting:
            worker, setup = self._idle.pop(), self._waiting.pop()
            alone = replace(setup, engine="auto")
            self._running[worker.simulate.remote(alone, self._model)] = (worker, setup)
        faults = self._ray.exceptions
        if not self._running:
            raise NetworkError("simulation: no worker is left; run it again")
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=ANSWER_DEADLINE_S)
        if not done:
            raise NetworkError(
                f"simulation: no seed was done within {ANSWER_DEADLINE_S / 3600:g} hours"
            )
        worker, setup = self._running.pop(done[0])
        try:
            self._done[setup.seed] = self._ray.get(done[0])
        except faults.RayActorError as fault:
            log.warning("a worker is lost (%s); its seed goes to another", summary(fault))
            self._waiting.append(setup)
        except faults.RayError as fault:
            raise translated(fault, "a worker was asked to simulate") from fault
        else:
            self._idle.append(worker)
