"""Raft on a virtual clock: one leader a round, terms that end, and everybody with its mix."""

from collections import Counter

import msgspec
import pytest
import torch
from support.processes import ROOT

from p2pl.attacks.kinds import parse_kind
from p2pl.data.load import load
from p2pl.protocol.session import Mixing, Raft, Session, read_spec
from p2pl.simulation.engine import Result, run
from p2pl.simulation.raft import VirtualElection, leads, sources
from p2pl.simulation.setup import Setup

SPEC = (ROOT / "torrentfiles" / "digits.toml").read_text()
MEMBERS = tuple(f"member-{number}" for number in range(5))


def session(rounds: int = 4, **settings: float) -> Session:
    """Returns the digits session with a leader."""
    digits = read_spec(SPEC).session()
    exchange = msgspec.structs.replace(
        digits.exchange,
        kind="raft",
        rounds=rounds,
        min_peers=5,
        raft=Raft(**settings),  # type: ignore[arg-type]
    )
    return msgspec.structs.replace(digits, exchange=exchange, mixing=Mixing(rule="samples"))


def setup_of(wanted: Session, **options: object) -> Setup:
    return Setup(wanted, "ab" * 32, peers=6, partition="iid", **options)  # type: ignore[arg-type]


def simulated(setup: Setup) -> Result:
    return run(setup, load("digits", setup.session.task), torch.device("cpu"))


def test_everybody_holds_the_leaders_mix_and_it_is_good() -> None:
    result = simulated(setup_of(session(rounds=6)))
    assert all(torch.equal(vector, result.vectors[0]) for vector in result.vectors)
    assert min(scores.accuracy for scores in result.scores) > 85


def test_the_leader_gets_five_models_and_each_other_peer_one() -> None:
    setup = setup_of(session())
    leader = leads(setup)[0].peer
    bytes_in = [entry.bytes_in for entry in simulated(setup).rounds[0].entries]
    others = [count for peer, count in enumerate(bytes_in) if peer != leader]
    assert len(set(others)) == 1
    assert bytes_in[leader] == 5 * others[0]


def test_a_term_ends_on_the_virtual_clock_and_leadership_goes_round() -> None:
    found = leads(setup_of(session(rounds=70, term_s=10.0)))
    by_term = {lead.term: lead.peer for lead in found}
    assert len(by_term) >= 6
    assert max(Counter(list(by_term.values())[:7]).values()) <= 3
    assert all(lead.at_s < index + 3 for index, lead in enumerate(found, 1))
    assert {lead.peer for lead in found} <= set(range(5))  # the sixth has no vote


def test_the_same_seed_elects_the_same_and_another_another() -> None:
    wanted = session(rounds=40, term_s=3.0)
    assert leads(setup_of(wanted)) == leads(setup_of(wanted))
    assert leads(setup_of(wanted)) != leads(setup_of(wanted, seed=1))


def test_two_may_stand_in_one_election_and_one_leads() -> None:
    together = 0
    for seed in range(30):
        virtual = VirtualElection(MEMBERS, Raft(longest_timeout_s=0.65), str(seed))
        virtual.wait_for_leader()
        virtual.run_until(virtual.now_s + 1)
        stood = [change.term for change in virtual.changes if change.role == "candidate"]
        together += len(stood) > len(set(stood))
        leaders = [change for change in virtual.changes if change.role == "leader"]
        assert len({change.term for change in leaders}) == len(leaders)
    assert together


def test_nobody_gets_anything_from_a_peer_that_is_absent() -> None:
    setup = setup_of(session(), attack=parse_kind("absent"), bad=1)
    assert all(5 not in drawn for drawn in sources(setup, 1))


@pytest.mark.parametrize(("bad", "ruined"), [(1, False), (5, True)])
def test_a_leader_that_lies_ruins_the_model_and_a_participant_does_not(
    bad: int, ruined: bool
) -> None:
    wanted = msgspec.structs.replace(session(rounds=6), mixing=Mixing(rule="median"))
    setup = setup_of(wanted, attack=parse_kind("sign-flip:-3"), bad=bad)
    lead_by_the_bad = any(lead.peer >= setup.honest for lead in leads(setup))
    assert lead_by_the_bad == ruined
    accuracy = simulated(setup).scores[0].accuracy
    assert (accuracy < 75) == ruined


def test_a_follower_trusts_its_leader_as_in_a_network_and_the_leader_those_it_mixed() -> None:
    setup = setup_of(session())
    leader = setup.ids[leads(setup)[0].peer]
    for entry, peer in zip(simulated(setup).rounds[0].entries, setup.ids, strict=True):
        assert len(entry.trust) == (6 if peer == leader else 1)
        assert peer == leader or entry.trust == {leader: 1.0}


def test_what_bad_peers_have_in_a_leaders_model_counts_for_all_who_hold_it() -> None:
    setup = setup_of(session(), attack=parse_kind("sign-flip:-1"), bad=1)
    assert all(lead.peer < setup.honest for lead in leads(setup))
    one = simulated(setup).rounds[0]
    assert one.liars is not None
    leader = one.entries[leads(setup)[0].peer]
    assert one.liars.weight == pytest.approx(leader.trust[setup.ids[5]])
    assert one.liars.weight > 0.1


def test_a_follower_trusts_its_leader_alone_and_bad_peers_count_by_the_leaders_row() -> None:
    wanted = msgspec.structs.replace(session(rounds=2), mixing=Mixing(rule="uniform"))
    setup = setup_of(wanted, attack=parse_kind("sign-flip:-3"), bad=1)
    one = simulated(setup).rounds[0]
    leader = leads(setup)[0].peer
    assert leader < setup.honest
    for peer, entry in enumerate(one.entries):
        if peer != leader:
            assert entry.trust == {setup.ids[leader]: 1.0}
    assert set(one.entries[leader].trust) == set(setup.ids)
    assert one.liars is not None
    assert one.liars.weight == pytest.approx(1 / 6)
