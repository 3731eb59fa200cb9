"""RPEL's pull: as many bad models are allowed for as random cohorts may hold."""

from itertools import combinations

import msgspec
import pytest
import torch
from support import rules

from p2pl.errors import InputError
from p2pl.mixing.base import Mixed, rule_of
from p2pl.mixing.rpel import Rpel, most_bad
from p2pl.protocol.session import Mixing, Session


def chance_of_more(swarm: tuple[int, int], drawn: int, k: int) -> float:
    """Returns how likely more than k of a cohort are bad, counted one cohort after another."""
    peers, bad = swarm
    cohorts = list(combinations(range(peers - 1), drawn))  # the first ones are bad
    return sum(sum(who < bad for who in one) > k for one in cohorts) / len(cohorts)


@pytest.mark.parametrize("draws", [1, 10, 1_000])
@pytest.mark.parametrize("swarm", [(10, 2), (9, 3), (8, 0)])
def test_it_is_the_least_number_that_is_hardly_ever_exceeded(
    swarm: tuple[int, int], draws: int
) -> None:
    k = most_bad(swarm, 4, draws)
    assert draws * chance_of_more(swarm, 4, k) <= 0.01
    assert k == 0 or draws * chance_of_more(swarm, 4, k - 1) > 0.01


def test_more_rounds_and_a_larger_swarm_make_rare_cohorts_likelier() -> None:
    assert [most_bad((100, 10), 15, 90 * rounds) for rounds in (1, 30, 200)] == [6, 7, 8]
    assert most_bad((100, 0), 15, 1_000) == 0
    assert most_bad((10, 4), 9, 1) == 4  # everybody is drawn


CROWD = {"a": [1.0, 1.0], "b": [1.2, 0.8], "c": [0.8, 1.1], "d": [1.1, 1.2]}
LIARS = {"y": [-30.0, 40.0], "z": [-31.0, 40.0]}


def session(**arguments: int) -> Session:
    """Returns a session of peers that pull from six others, in three rounds."""
    made = rules.session_of(Mixing(rule="rpel", arguments=dict(arguments)))
    exchange = msgspec.structs.replace(made.exchange, cohort=6)
    return msgspec.structs.replace(made, exchange=exchange)


def test_it_mixes_as_nearest_neighbours_and_a_trimmed_mean_do_with_that_number() -> None:
    made = session(peers=12, bad=2)
    mixer = rule_of(made)(made, rules.ME)
    assert isinstance(mixer, Rpel)
    assert mixer.settings.byzantine == most_bad((12, 2), 6, 10 * 3) == 2
    own, others = rules.own_of(torch.tensor([1.0, 1.1])), rules.models_of(CROWD | LIARS)
    found = mixer.mix(own, others, mixer.Memory())
    same = Mixing(rule="nnm-trimmed-mean", byzantine=2)
    expected: Mixed = rules.mix(same, [1.0, 1.1], CROWD | LIARS)
    assert found.vector.tolist() == expected.vector.tolist()
    assert 0.8 < found.vector.min() < found.vector.max() < 1.2


def test_who_counts_on_nobody_bad_takes_the_mean() -> None:
    made = session(peers=12, bad=0)
    mixer = rule_of(made)(made, rules.ME)
    own = rules.own_of(torch.tensor([0.0, 0.0]))
    found = mixer.mix(own, rules.models_of(CROWD), mixer.Memory())
    assert found.vector.tolist() == pytest.approx([4.1 / 5, 4.1 / 5])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "no bad"),
        ({"bad": 1}, "no peers"),
        ({"peers": 10, "bad": 5}, "mixing.arguments.bad: got 5"),
        ({"peers": 1, "bad": 0}, "mixing.arguments.peers: got 1"),
        ({"peers": 10, "bad": 1, "worse": 1}, "got 'worse'|got worse"),
    ],
)
def test_it_must_be_told_how_large_the_swarm_is_and_how_many_lie(
    arguments: dict[str, int], said: str
) -> None:
    made = session(**arguments)
    with pytest.raises(InputError, match=said):
        rule_of(made)(made, rules.ME)
