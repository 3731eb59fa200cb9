"""Who pulls from whom, by the kind of exchange."""

from dataclasses import replace

import pytest
import torch
from support.simulations import digits, small_setup

from p2pl.attacks.kinds import parse
from p2pl.protocol.session import Gossip, changed
from p2pl.simulation.engine import run
from p2pl.simulation.numbers import numbers
from p2pl.simulation.pulling import sources
from p2pl.simulation.setup import Setup, draw_cohort

GOSSIP = ("exchange", "kind", "gossip")


def gossip(mode: str, keep_rounds: int = 1, peers: int = 6, cohort: int = 2) -> Setup:
    """Returns a simulation of gossip."""
    chosen = Gossip(mode=mode, keep_rounds=keep_rounds)  # type: ignore[arg-type]
    cohorts = ("exchange", "cohort", cohort)
    setup = small_setup(GOSSIP, ("exchange", "gossip", chosen), cohorts, peers=peers, rounds=2)
    return replace(setup, engine="stacked")  # `auto` takes what is faster just now


def test_in_a_cohort_and_in_a_pull_the_peers_drawn_are_those_pulled_from() -> None:
    cohort = small_setup(("exchange", "cohort", 2), peers=6)
    for setup in (cohort, gossip("pull")):
        assert sources(setup, 1) == [draw_cohort(setup, peer, 1) for peer in range(6)]


def test_the_place_of_a_peer_that_is_shunned_goes_to_another() -> None:
    setup = small_setup(("exchange", "cohort", 2), peers=6)
    drawn = draw_cohort(setup, 0, 1)
    bad = setup.ids[drawn[0]]
    shunning = sources(setup, 1, {0: {bad}})
    assert drawn[0] not in shunning[0]
    assert drawn[1] in shunning[0]
    assert len(shunning[0]) == 2
    assert shunning[1:] == sources(setup, 1)[1:]
    assert draw_cohort(setup, 0, 1, setup.ids) == ()


def test_liars_who_are_seen_through_are_pulled_from_no_more() -> None:
    attack = parse("sign-flip:2:-3")
    setup = small_setup(("exchange", "cohort", 4), peers=6, rounds=6)
    result = run(replace(setup, attack=attack[0], bad=attack[1]), digits(), torch.device("cpu"))
    liars = set(setup.ids[4:])
    asked = [
        {who for entry in one.entries[:4] for who in entry.cohort} & liars for one in result.rounds
    ]
    assert asked[0] == liars
    assert asked[-1] == set()


def test_in_a_push_a_peer_pulls_from_those_who_drew_it() -> None:
    pulled, pushed = sources(gossip("pull"), 1), sources(gossip("push"), 1)
    pairs = {(me, other) for me, others in enumerate(pulled) for other in others}
    assert {(other, me) for me, others in enumerate(pushed) for other in others} == pairs


def test_a_push_pull_is_both_and_nobody_twice() -> None:
    pulled, pushed = sources(gossip("pull"), 1), sources(gossip("push"), 1)
    for mine, theirs, both in zip(pulled, pushed, sources(gossip("push-pull"), 1), strict=True):
        assert set(both) == {*mine, *theirs}
        assert len(both) == len(set(both))


def test_neighbours_are_kept_as_long_as_the_session_says() -> None:
    kept = gossip("pull", keep_rounds=3)
    lists = [sources(kept, index) for index in range(1, 8)]
    assert lists[0] == lists[1] == lists[2] != lists[3]
    assert lists[3] == lists[5] != lists[6]


def test_the_form_of_gossip_changes_no_number() -> None:
    client = gossip("push-pull")
    hybrid = changed(client.session, ("exchange", "gossip", Gossip(form="hybrid")))
    both = [
        run(one, digits(), torch.device("cpu")) for one in (client, replace(client, session=hybrid))
    ]
    assert torch.equal(torch.stack(both[0].vectors), torch.stack(both[1].vectors))


def test_in_braintorrent_everybody_has_moved_in_every_round() -> None:
    setup = small_setup(("exchange", "kind", "braintorrent"), peers=5, rounds=1)
    assert [sorted(others) for others in sources(setup, 1)] == [
        [other for other in range(5) if other != me] for me in range(5)
    ]
    result = run(setup, digits(), torch.device("cpu"))
    assert numbers([result])["bytes_per_peer_round"] == 4 * result.payload_bytes


@pytest.mark.parametrize("kind", ["gossip", "braintorrent"])
def test_a_hundred_peers_run(kind: str) -> None:
    changes = (("exchange", "kind", kind), ("mixing", "rule", "uniform"))
    result = run(small_setup(*changes, peers=100, rounds=1), digits(), torch.device("cpu"))
    assert len(result.vectors) == 100
