"""Peers that are away, links that fail, models that come late."""

from dataclasses import replace

import pytest
import torch
from support.simulations import digits, small_setup

from p2pl.data.load import Data
from p2pl.errors import InputError
from p2pl.protocol.session import Change
from p2pl.simulation.engine import Result, run
from p2pl.simulation.numbers import numbers
from p2pl.simulation.reality import Past, Reality
from p2pl.simulation.setup import Setup, check

CPU = torch.device("cpu")
NAME = "ab" * 32
IDS = tuple(f"{number:064x}" for number in range(10))


@pytest.fixture(scope="module")
def data() -> Data:
    return digits()


def real(reality: Reality, *changes: Change, peers: int = 6, rounds: int = 4) -> Setup:
    """Returns a short simulation without trust, in a network that is not ideal."""
    setup = small_setup(("mixing", "rule", "uniform"), *changes, peers=peers, rounds=rounds)
    return replace(setup, engine="sequential", reality=reality)


def test_each_peer_takes_part_in_its_share_of_the_rounds_and_others_are_away_elsewhere() -> None:
    reality = Reality(participation=0.8)
    drawn = [reality.present(NAME, IDS, index) for index in range(1, 501)]
    for peer in range(10):
        assert 360 < sum(peer in there for there in drawn) < 440  # 400 expected
    assert drawn == [reality.present(NAME, IDS, index) for index in range(1, 501)]
    assert len(set(drawn)) > 100
    assert reality.present("cd" * 32, IDS, 1) != drawn[0]


def test_a_pull_fails_with_its_chance_and_always_of_a_peer_that_is_away() -> None:
    reality, cohort = Reality(lost_links=0.25), tuple(range(1, 9))
    came = [
        reality.delivered((NAME, IDS[0]), index, cohort, frozenset(range(8)))
        for index in range(1, 501)
    ]
    assert all(8 not in one for one in came)
    for peer in range(1, 8):
        assert 330 < sum(peer in one for one in came) < 420  # 375 expected
    assert Reality().delivered((NAME, IDS[0]), 1, cohort, frozenset(cohort)) == cohort


def test_every_delay_up_to_the_longest_is_equally_likely() -> None:
    reality = Reality(delay_rounds=3)
    drawn = [delay for i in range(1, 501) for delay in reality.delays((NAME, IDS[0]), i, 4)]
    assert [420 < drawn.count(delay) < 580 for delay in range(4)] == [True] * 4  # 500 expected
    assert set(drawn) == {0, 1, 2, 3}
    assert Reality().delays((NAME, IDS[0]), 1, 3) == [0, 0, 0]


def test_what_comes_late_is_what_was_trained_then_or_else_last_before_or_first_after() -> None:
    past: Past[str] = Past(2)
    for index, there in enumerate([{1, 2}, {1, 2}, {1}, {1, 2}], 1):
        past.add(index, {(peer, None): f"{peer} in {index}" for peer in there})
        if index < 4:
            past.forget(index)
    assert [past.served(1, 9, 4, delay) for delay in range(3)] == ["1 in 4", "1 in 3", "1 in 2"]
    assert [past.served(2, 9, 4, delay) for delay in range(3)] == ["2 in 4", "2 in 2", "2 in 2"]
    past.add(5, {(1, None): "to all", (1, 9): "to 9", (3, None): "new"})
    assert past.served(1, 9, 5, 0) == "to 9"
    assert past.served(1, 8, 5, 0) == "to all"
    assert past.served(3, 8, 5, 2) == "new"
    past.forget(4)
    assert past.served(2, 9, 5, 2) == "2 in 4"
    with pytest.raises(LookupError):
        past.served(7, 9, 5, 0)


def test_a_peer_that_is_away_keeps_its_model_and_neither_asks_nor_is_asked(data: Data) -> None:
    setup = real(Reality(participation=0.5))
    result = run(setup, data, CPU)
    away = 0
    for one in result.rounds:
        there = setup.reality.present(setup.name, setup.ids, one.index)
        assert one.present == len(there)
        for peer, entry in enumerate(one.entries):
            absent = {who for number, who in enumerate(setup.ids) if number not in there}
            assert not absent & set(entry.received)
            if peer not in there:
                away += 1
                assert (entry.samples, entry.train_loss, entry.cohort) == (0, None, ())
                assert entry.trust == {setup.ids[peer]: 1.0}
                assert entry.bytes_in == entry.bytes_out == 0
                assert entry.accuracy == entry.accuracy_before_mix
            else:
                assert entry.samples
                assert entry.train_loss is not None
    assert 0 < away < 24
    figures = numbers([result])
    assert figures["took_part"] == pytest.approx(100 * (24 - away) / 24)


def test_nobody_at_all_may_be_there(data: Data) -> None:
    nobody = Reality(participation=1e-9)
    result = run(real(nobody, rounds=2), data, CPU)
    assert [one.present for one in result.rounds] == [0, 0]
    assert all(torch.equal(vector, result.vectors[0]) for vector in result.vectors)
    assert numbers([result])["pulls_failed"] is None


def test_a_peer_mixes_what_came_over_the_links_that_held(data: Data) -> None:
    setup = real(Reality(lost_links=0.5))
    result = run(setup, data, CPU)
    asked = sum(one.asked for one in result.rounds)
    came = sum(len(entry.received) for one in result.rounds for entry in one.entries)
    assert asked == 4 * 6 * 2
    assert sum(one.came for one in result.rounds) == came
    assert 10 < came < 38  # 24 expected
    assert numbers([result])["pulls_failed"] == pytest.approx(100 * (1 - came / asked))
    for one in result.rounds:
        for entry in one.entries:
            even = 1 / (1 + len(entry.received))
            assert list(entry.trust.values()) == pytest.approx([even] * (1 + len(entry.received)))


def served_late(data: Data, delay_rounds: int) -> Result:
    """Returns two peers that pull from each other for three rounds."""
    setup = real(Reality(delay_rounds=delay_rounds), ("exchange", "cohort", 1), peers=2, rounds=3)
    return run(setup, data, CPU)


def test_what_is_pulled_late_changes_the_mix_and_what_is_on_time_does_not(data: Data) -> None:
    one, other = served_late(data, 0).vectors
    torch.testing.assert_close(one, other)  # both hold the mean
    one, other = served_late(data, 2).vectors
    assert float((one - other).norm()) > 1e-3


def test_two_rules_see_the_same_peers_away_and_the_same_links_fail(data: Data) -> None:
    reality = Reality(0.7, 0.2, 1)
    even = run(real(reality), data, CPU)
    alone = run(even.setup.changed(("mixing", "rule", "none")), data, CPU)
    for one, other in zip(even.rounds, alone.rounds, strict=True):
        assert [entry.cohort for entry in one.entries] == [entry.cohort for entry in other.entries]


@pytest.mark.parametrize(
    ("reality", "changes", "said"),
    [
        (Reality(participation=0.0), (), "--participation: got 0.0"),
        (Reality(participation=1.1), (), "--participation: got 1.1"),
        (Reality(participation=float("nan")), (), "--participation: got nan"),
        (Reality(lost_links=1.0), (), "--lost-links: got 1.0"),
        (Reality(lost_links=-0.1), (), "--lost-links: got -0.1"),
        (Reality(delay_rounds=101), (), "--delay-rounds: got 101"),
        (Reality(0.8), (("exchange", "kind", "raft"),), "exchange.kind raft"),
        (
            Reality(delay_rounds=1),
            (("exchange", "kind", "braintorrent"),),
            "exchange.kind braintorrent",
        ),
        (Reality(delay_rounds=1), (("exchange", "lockstep", True),), "exchange.lockstep"),
    ],
)
def test_what_is_out_of_range_or_has_no_meaning_is_refused(
    reality: Reality, changes: tuple[Change, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        check(real(reality, *changes))


def test_peers_that_exchange_nothing_have_no_links() -> None:
    with pytest.raises(InputError, match="--baseline isolated"):
        check(replace(real(Reality(lost_links=0.1)), baseline="isolated"))


@pytest.mark.parametrize("kind", ["cohort", "gossip", "braintorrent"])
def test_the_other_kinds_of_exchange_go_on_without_those_who_are_away(
    kind: str, data: Data
) -> None:
    setup = real(Reality(0.8, 0.1), ("exchange", "kind", kind), rounds=2)
    assert len(run(setup, data, CPU).rounds) == 2
