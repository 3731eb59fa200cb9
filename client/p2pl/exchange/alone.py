"""No exchange at all: what a peer would reach on its own data, with the same budget of training.

Nothing is sent and nobody is asked. It answers the first question of whoever is invited: is joining
worth it for me?
"""

import asyncio
import threading
import time
from functools import partial

from p2pl.exchange.node import stepper
from p2pl.learning.learner import Learner
from p2pl.learning.train import Start
from p2pl.run.log import RoundEntry, RunLog
from p2pl.run.state import PeerState, save_state
from p2pl.terminal import View


async def run(
    learner: Learner,
    log: RunLog,
    view: View,
    state: PeerState,
    rounds: int,
    stopping: threading.Event,
) -> PeerState:
    """Returns the state after `rounds` rounds of training alone."""
    while state.round < rounds:
        begun = time.monotonic()
        index = state.round + 1
        start = Start(state.weights, state.optimizer)
        on_step = stepper(view, index, stopping)
        trained = await asyncio.to_thread(partial(learner.train, start, index, on_step))
        scored = await asyncio.to_thread(partial(learner.score, trained.vector, trained.vector))
        state = PeerState(
            round=index,
            weights=trained.vector,
            optimizer=learner.follow(start, trained, trained.vector, index),
            trust=state.trust,
            charged=learner.charged,
        )
        save_state(log.directory, learner.session_id, state)
        entry = RoundEntry(
            round=index,
            train_loss=trained.loss,
            validation_loss=scored.validation.loss,
            accuracy=scored.after.accuracy,
            accuracy_before_mix=scored.before.accuracy,
            trust={learner.peer_id: 1.0},
            seconds=time.monotonic() - begun,
            samples=trained.samples,
            epsilon=learner.epsilon,
            time=time.time(),
        )
        log.append(entry)
        view.round(entry)
    return state
