"""A peer's learner: whose models are too old to be mixed."""

from contextlib import closing
from pathlib import Path

import pytest
from support.nodes import node, session_file

from p2pl.events import Event
from p2pl.learner import present_of
from p2pl.learning import models
from p2pl.learning.weights import flatten
from p2pl.mixing.base import PeerModel
from p2pl.network.in_memory import MemoryNetwork


@pytest.mark.parametrize(
    ("rounds", "left_out"),
    [
        ((200, 199, 193), {193}),
        ((181, 180, 199), set()),  # this peer is ahead, and one other
        ((181, 180, 174), {174}),  # a straggler is one, wherever this peer is
        ((181, 180), {180, 181}),  # two are no company
        ((10**9, 10**9, 196), set()),  # what others say moves it back, and never on
    ],
)
def test_a_model_is_too_old_beside_those_of_the_others(
    rounds: tuple[int, ...], left_out: set[int], tmp_path: Path
) -> None:
    told: list[Event] = []
    one = node(session_file("cohort"), MemoryNetwork(), tmp_path, 0, told)
    own = flatten(models.build(one.session))
    received = {f"{n:064x}": PeerModel(at, 100, own + 0.01 * n) for n, at in enumerate(rounds, 1)}
    with closing(one.worker):
        mixed = one.learner.mix(own, received, 200)
    stale = {who for who, why in mixed.rejected.items() if why.startswith("stale")}
    assert {received[who].round for who in stale} == left_out


def test_a_peer_that_is_ahead_is_told_where_the_others_are(tmp_path: Path) -> None:
    told: list[Event] = []
    one = node(session_file("cohort"), MemoryNetwork(), tmp_path, 0, told)
    own = flatten(models.build(one.session))
    received = {f"{n:064x}": PeerModel(at, 100, own) for n, at in enumerate((9, 181, 180), 1)}
    with closing(one.worker):
        mixed = one.learner.mix(own, received, 200)
    assert mixed.rejected[f"{1:064x}"] == "stale: of round 9, most are of 180"
    assert present_of(200, received) == 180
