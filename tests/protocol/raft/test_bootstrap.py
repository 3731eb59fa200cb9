"""Strangers agree on who may vote: never two ways, and quickly where all are there."""

import random

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2pl.protocol.frame import MAX_TELL_BYTES
from p2pl.protocol.raft.bootstrap import (
    MAX_MEMBERS,
    MAX_REMEMBERED,
    Acceptance,
    Agreement,
    Configuration,
    Message,
    Refusal,
    Withdrawal,
    configuration_of,
    give_up,
    hear,
    propose,
    say,
    withdraw,
)

PEERS = tuple(bytes([number] * 32).hex() for number in range(1, 8))
A, B, C, D, *_ = PEERS


def test_the_lowest_ids_are_proposed_and_whoever_is_asked_joins() -> None:
    one = propose(Agreement(A), PEERS[:4], 3)
    assert one.accepted == configuration_of(1, [A, B, C])
    assert say(one) == (
        (B, Acceptance(one.accepted, valid=False)),
        (C, Acceptance(one.accepted, valid=False)),
    )
    two, answers = hear(Agreement(B), A, Acceptance(one.accepted, valid=False), 3)
    assert two.accepted == one.accepted
    assert {to for to, _ in answers} == {A, C}


def test_nobody_proposes_before_enough_are_there() -> None:
    assert propose(Agreement(A), [A, B], 3) == Agreement(A)


def test_a_configuration_is_valid_once_all_have_accepted_it() -> None:
    state = propose(Agreement(A), PEERS, 3)
    assert state.accepted is not None
    accepted = Acceptance(state.accepted, valid=False)
    state, _ = hear(state, B, accepted, 3)
    assert not state.valid
    state, answers = hear(state, C, accepted, 3)
    assert state.valid
    assert answers == ((C, Acceptance(state.accepted, valid=True)),)  # type: ignore[arg-type]


def test_who_has_accepted_one_refuses_the_others_for_ever() -> None:
    state = propose(Agreement(B), [B, C, D], 3)
    other = configuration_of(1, [A, B, C])
    state, answers = hear(state, A, Acceptance(other, valid=False), 3)
    assert answers == ((A, Refusal(other)),)
    assert state.accepted is not None
    state, _ = hear(state, C, Refusal(state.accepted), 3)
    assert state.accepted is None
    state, answers = hear(state, A, Acceptance(other, valid=False), 3)
    assert answers == ((A, Refusal(other)),)


def test_a_refused_peer_is_free_for_a_new_attempt_at_the_same_set() -> None:
    state = propose(Agreement(A), PEERS, 3)
    assert state.accepted is not None
    state, _ = hear(state, B, Refusal(state.accepted), 3)
    assert propose(state, PEERS, 3).accepted == configuration_of(2, [A, B, C])


def test_a_refusal_of_another_one_releases_nobody() -> None:
    state = propose(Agreement(A), PEERS, 3)
    after, _ = hear(state, B, Refusal(configuration_of(9, [A, B, D])), 3)
    assert after.accepted == state.accepted


@pytest.mark.parametrize(
    ("sender", "configuration"),
    [
        (D, configuration_of(1, [A, B, C])),  # not on it
        (B, configuration_of(1, [A, B])),  # of another size
        (
            B,
            Configuration(1, (bytes.fromhex(B), bytes.fromhex(A), bytes.fromhex(C))),
        ),  # not in order
        (B, Configuration(1, (bytes.fromhex(A), bytes.fromhex(B), bytes.fromhex(B)))),  # one twice
    ],
)
def test_what_is_no_configuration_is_ignored(sender: str, configuration: Configuration) -> None:
    assert hear(Agreement(A), sender, Acceptance(configuration, valid=True), 3) == (
        Agreement(A),
        (),
    )


def test_made_up_configurations_do_not_fill_the_memory() -> None:
    state = propose(Agreement(A), PEERS, 3)
    for number in range(2 * MAX_REMEMBERED):
        state, _ = hear(
            state, D, Acceptance(configuration_of(number + 2, [A, C, D]), valid=False), 3
        )
    assert len(state.heard) + len(state.dead) <= 2 * MAX_REMEMBERED


def test_the_largest_configuration_fits_a_short_message() -> None:
    ids = tuple(bytes([number] * 32) for number in range(MAX_MEMBERS))
    assert (
        len(msgspec.msgpack.encode(Acceptance(Configuration((1 << 53) - 1, ids), valid=True)))
        < MAX_TELL_BYTES
    )


def test_who_waits_for_long_is_free_once_those_who_are_left_are_no_majority() -> None:
    e = PEERS[4]
    states = {name: propose(Agreement(name), PEERS[:5], 5) for name in PEERS[1:5]}  # A says nothing
    configuration = states[B].accepted
    assert configuration is not None
    accepted = Acceptance(configuration, valid=False)
    for name in states:
        for other in states.keys() - {name}:
            states[name], _ = hear(states[name], other, accepted, 5)
    assert states[B].silent == {A}
    waiting, answers = withdraw(states[B])
    assert set(answers) == {(other, Withdrawal(configuration)) for other in (A, C, D, e)}
    assert say(waiting) == answers
    waiting, _ = hear(waiting, A, accepted, 5)
    assert not waiting.valid  # it is too late
    waiting, _ = hear(waiting, C, Withdrawal(configuration), 5)
    assert waiting.accepted == configuration  # A, D and E are a majority
    free, _ = hear(waiting, D, Withdrawal(configuration), 5)
    assert free.accepted is None
    again = propose(free, PEERS[:6], 5, {A: 1})
    assert again.accepted is not None
    assert again.accepted.members == {B, C, D, e, PEERS[5]}


def test_who_had_withdrawn_comes_back_where_a_majority_says_that_it_is_valid() -> None:
    state, _ = withdraw(propose(Agreement(A), PEERS[:3], 3))
    configuration = state.accepted
    assert configuration is not None
    state, answers = hear(state, B, Acceptance(configuration, valid=True), 3)
    assert (state.valid, answers) == (False, ())
    state, _ = hear(state, C, Acceptance(configuration, valid=True), 3)
    assert (state.valid, state.withdrew) == (True, False)


def test_nobody_withdraws_from_what_all_have_accepted() -> None:
    state = propose(Agreement(A), PEERS[:3], 3)
    assert state.accepted is not None
    for other in (B, C):
        state, _ = hear(state, other, Acceptance(state.accepted, valid=False), 3)
    assert withdraw(state) == (state, ())
    assert give_up(state) == state


def test_who_is_free_again_refuses_what_it_had_accepted() -> None:
    state = give_up(propose(Agreement(A), PEERS[:3], 3))
    old = configuration_of(1, [A, B, C])
    for message in (Acceptance(old, valid=False), Withdrawal(old)):
        state, answers = hear(state, B, message, 3)
        assert answers == ((B, Refusal(old)),)


def test_nobody_accepts_what_names_peers_that_were_never_heard_of() -> None:
    made_up = Acceptance(configuration_of(1, [A, B, C]), valid=False)
    state, answers = hear(Agreement(A), B, made_up, 3, present=[D])
    assert (state.accepted, answers) == (None, ())
    state, _ = hear(state, B, made_up, 3, present=[C, D])
    assert state.accepted == made_up.configuration


def test_what_one_peer_makes_up_keeps_nobody_from_being_heard() -> None:
    state = Agreement(A)
    for number in range(2 * MAX_REMEMBERED):
        for kind in (Acceptance(configuration_of(number + 2, [A, C, D]), valid=False),):
            state, _ = hear(state, D, kind, 3, present=[])
    assert len(state.heard) <= 16
    good = configuration_of(1, [A, B, C])
    state, _ = hear(state, B, Acceptance(good, valid=False), 3, present=[B, C])
    assert state.accepted == good


class AnyOrder(RuleBasedStateMachine):
    """Three of five found a session, with messages in any order, lost or twice, and crashes."""

    def __init__(self) -> None:
        super().__init__()
        self.peers = {name: Agreement(name) for name in PEERS[:5]}
        self.flying: list[tuple[str, str, Message]] = []
        self.valid: dict[Configuration, set[str]] = {}  # who has ever held it to be valid

    def _next(self, name: str, state: Agreement, answers: tuple[tuple[str, Message], ...]) -> None:
        self.peers[name] = state
        self.flying += [(name, to, message) for to, message in answers]
        if state.valid and state.accepted:
            self.valid.setdefault(state.accepted, set()).add(name)

    @rule(name=st.sampled_from(PEERS[:5]), present=st.sets(st.sampled_from(PEERS[:5])))
    def somebody_proposes(self, name: str, present: set[str]) -> None:
        state = propose(self.peers[name], present, 3)
        self._next(name, state, say(state))

    @precondition(lambda self: self.flying)
    @rule(pick=st.integers(0, 1 << 16), keep=st.booleans())
    def a_message_arrives(self, pick: int, keep: bool) -> None:
        at = pick % len(self.flying)
        sender, to, message = self.flying[at] if keep else self.flying.pop(at)
        self._next(to, *hear(self.peers[to], sender, message, 3))

    @precondition(lambda self: self.flying)
    @rule()
    def all_that_flies_arrives(self) -> None:
        flying, self.flying = self.flying, []
        for sender, to, message in flying:
            self._next(to, *hear(self.peers[to], sender, message, 3))

    @rule(
        name=st.sampled_from(PEERS[:5]),
        present=st.sets(st.sampled_from(PEERS[:5]), min_size=2),
        reached=st.sets(st.sampled_from(PEERS[:5])),
    )
    def a_few_talk_undisturbed(self, name: str, present: set[str], reached: set[str]) -> None:
        state = propose(self.peers[name], present, 3)
        self.flying.clear()
        self._next(name, state, say(state))
        while self.flying:
            sender, to, message = self.flying.pop(0)
            if to in reached | {name}:
                self._next(to, *hear(self.peers[to], sender, message, 3))

    @rule(name=st.sampled_from(PEERS[:5]))
    def somebody_has_waited_for_long(self, name: str) -> None:
        self._next(name, *withdraw(self.peers[name]))

    @rule(name=st.sampled_from(PEERS[:5]))
    def somebody_restarts(self, name: str) -> None:
        accepted, dead, valid = self.peers[name].saved
        self.peers[name] = Agreement(name, accepted, dead, valid)

    @invariant()
    def there_are_never_two_configurations_that_work(self) -> None:
        """A majority of its members hold what works to be valid; nobody can be elected else."""
        assert sum(len(holders) > 1 for holders in self.valid.values()) < 2


AnyOrder.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAnyOrder = AnyOrder.TestCase


def test_all_agree_soon_even_where_they_begin_with_different_views() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        peers = {name: Agreement(name) for name in PEERS[:5]}
        for turn in range(40):
            for name in rng.sample(PEERS[:5], 5):
                seen = PEERS[:5] if turn else rng.sample(PEERS[:5], rng.randint(1, 5))
                if name == min(seen) or rng.random() < 0.2:
                    peers[name] = propose(peers[name], seen, 5 if seed % 2 else 3)
                for to, message in say(peers[name]):
                    if rng.random() < 0.2:
                        continue  # lost
                    peers[to], answers = hear(peers[to], name, message, 5 if seed % 2 else 3)
                    for back, answer in answers:
                        peers[back], _ = hear(peers[back], to, answer, 5 if seed % 2 else 3)
        valid = {state.accepted for state in peers.values() if state.valid}
        assert len(valid) == 1
        assert sum(state.valid for state in peers.values()) == (5 if seed % 2 else 3)
