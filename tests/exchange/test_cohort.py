"""The decisions of a round, on numbers small enough to check by hand."""

import torch

from p2pl.exchange.cohort import in_step, middle, swarm_round
from p2pl.exchange.swap import Pulls
from p2pl.mixing.base import PeerModel


def models(*rounds: int) -> dict[str, PeerModel]:
    """Returns one model of each round."""
    return {str(at): PeerModel(value, 10, torch.zeros(1)) for at, value in enumerate(rounds)}


def test_a_peer_alone_counts_its_own_rounds() -> None:
    assert swarm_round(7, {}) == 7


def test_two_rounds_ahead_are_no_reason_to_skip_any() -> None:
    assert swarm_round(7, models(9, 9, 9)) == 7
    assert swarm_round(7, models(10, 10, 10)) == 10


def test_a_peer_that_is_far_behind_moves_on_with_its_cohort() -> None:
    assert swarm_round(7, models(12, 13, 14)) == 13


def test_less_than_half_of_a_cohort_cannot_move_a_peer() -> None:
    assert swarm_round(7, models(7, 7, 10**6)) == 7
    assert swarm_round(7, models(7, 10**6)) == 7


def test_a_peer_never_goes_back() -> None:
    assert swarm_round(7, models(1, 2, 3)) == 7


def test_in_step_only_models_of_my_very_round_are_mixed() -> None:
    pulls = in_step(Pulls(("0", "1", "2", "3"), models(7, 6, 8), {"3": "late"}), 7)
    assert list(pulls.models) == ["0"]
    assert pulls.rejected == {
        "1": "out of step: of round 6, this peer is at 7",
        "2": "out of step: of round 8, this peer is at 7",
        "3": "late",
    }


def test_one_liar_of_three_does_not_move_the_model_that_a_late_peer_takes() -> None:
    honest, other, liar = torch.ones(2), torch.ones(2) * 2, torch.full((2,), -1e9)
    assert torch.equal(middle([honest, other, liar]), torch.ones(2))


def test_two_models_are_averaged() -> None:
    assert torch.equal(middle([torch.zeros(2), torch.ones(2)]), torch.full((2,), 0.5))
