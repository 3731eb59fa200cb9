"""Whatever is lost, late, twice or dead: one leader a term, nothing decided lost, work shared."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.elections import Electorate, World, members, rules_of

from p2pl.protocol.raft.election import (
    MAX_TERM_STEP,
    Ballot,
    Heartbeat,
    HeartbeatReply,
    Holds,
    Message,
    MessageReceived,
    ModelId,
    Moves,
    Save,
    Send,
    State,
    Tick,
    VoteReply,
    VoteRequest,
    begin,
    committed,
    step,
)

A, B, C = members(3)
RULES = rules_of(A, (A, B, C))
DRAW = 0.5


def started(ballot: Ballot | None = None, held: ModelId | None = None) -> State:
    """Returns the state of member A, just started at time 0."""
    return begin(RULES, ballot or Ballot(), held or ModelId(), 0.0, DRAW)


def hears(state: State, sender: str, message: Message, now_s: float = 0.0) -> State:
    """Returns the state after a message, whatever it makes A do."""
    return step(RULES, state, MessageReceived(sender, message), now_s, DRAW)[0]


def leading() -> State:
    """Returns the state of A after it has won term 1, at time 1."""
    state, _ = step(RULES, started(), Tick(), 1.0, DRAW)
    state = hears(state, B, VoteReply(1, granted=True, pre=True), 1.0)
    return hears(state, B, VoteReply(1, granted=True, pre=False), 1.0)


def test_a_model_that_moves_is_a_sign_of_life_of_the_leader() -> None:
    following = hears(started(), B, Heartbeat(1, ModelId()), 0.0)
    alive, actions = step(RULES, following, Moves(B), 0.4, DRAW)
    assert (alive.leader, alive.heard_s, actions) == (B, 0.4, ())
    assert alive.until_s == following.until_s + 0.4
    assert step(RULES, following, Moves(C), 0.4, DRAW) == (following, ())  # it does not lead
    nobodys = replace(following, leader=None)  # it has resigned: it is there, and leads no more
    assert step(RULES, nobodys, Moves(B), 0.4, DRAW) == (nobodys, ())


def test_a_leader_whose_models_are_taken_goes_on_without_an_answer() -> None:
    state = leading()
    held = state.acks[B][1]
    moving, actions = step(RULES, state, Moves(B), 1.9, DRAW)
    assert (moving.acks[B], actions) == ((1.9, held), ())  # what it holds is as it said last
    assert step(RULES, moving, Tick(), 2.5, DRAW)[0].role == "leader"
    assert step(RULES, state, Tick(), 2.5, DRAW)[0].role == "follower"
    assert step(RULES, state, Moves(C), 1.9, DRAW)[0].acks.keys() == {B}  # no vote, no word


def test_a_member_out_of_patience_asks_before_it_stands() -> None:
    state, actions = step(RULES, started(), Tick(), 0.75, DRAW)
    assert (state.role, state.term) == ("pre-candidate", 0)
    question = VoteRequest(1, ModelId(), pre=True)
    assert actions == (Send(B, question), Send(C, question))


def test_nothing_happens_before_patience_ends() -> None:
    before = started()
    assert step(RULES, before, Tick(), 0.74, DRAW) == (before, ())


def test_who_would_win_stands_and_saves_its_own_vote_before_it_asks() -> None:
    state, _ = step(RULES, started(), Tick(), 1.0, DRAW)
    yes = MessageReceived(C, VoteReply(1, granted=True, pre=True))
    state, actions = step(RULES, state, yes, 1.0, DRAW)
    question = VoteRequest(1, ModelId(), pre=False)
    assert actions == (Save(Ballot(1, A)), Send(B, question), Send(C, question))
    assert state.role == "candidate"


def test_who_wins_tells_everybody_at_once() -> None:
    state, _ = step(RULES, started(), Tick(), 1.0, DRAW)
    state = hears(state, C, VoteReply(1, granted=True, pre=True))
    yes = MessageReceived(C, VoteReply(1, granted=True, pre=False))
    state, actions = step(RULES, state, yes, 1.0, DRAW)
    assert (state.role, state.leader) == ("leader", A)
    beat = Heartbeat(1, ModelId())
    assert actions[1:] == (Send(B, beat), Send(C, beat))


def test_a_vote_is_saved_before_it_is_given_and_given_once() -> None:
    state, actions = step(
        RULES, started(), MessageReceived(B, VoteRequest(1, ModelId(), pre=False)), 0.0, DRAW
    )
    assert actions == (Save(Ballot(1, B)), Send(B, VoteReply(1, granted=True, pre=False)))
    _, actions = step(
        RULES, state, MessageReceived(C, VoteRequest(1, ModelId(), pre=False)), 0.0, DRAW
    )
    assert actions == (Send(C, VoteReply(1, granted=False, pre=False)),)
    _, actions = step(
        RULES, state, MessageReceived(B, VoteRequest(1, ModelId(), pre=False)), 0.0, DRAW
    )
    assert actions == (Send(B, VoteReply(1, granted=True, pre=False)),)


def test_a_restarted_member_remembers_its_vote() -> None:
    state = started(Ballot(1, B))
    _, actions = step(
        RULES, state, MessageReceived(C, VoteRequest(1, ModelId(), pre=False)), 0.0, DRAW
    )
    assert actions == (Send(C, VoteReply(1, granted=False, pre=False)),)


@pytest.mark.parametrize("pre", [True, False])
def test_who_holds_an_older_model_gets_no_vote(pre: bool) -> None:
    state = started(held=ModelId(1, 7))
    request = VoteRequest(2, ModelId(1, 6), pre=pre)
    _, actions = step(RULES, state, MessageReceived(B, request), 0.0, DRAW)
    replies = [action.message for action in actions if isinstance(action, Send)]
    assert [reply.granted for reply in replies if isinstance(reply, VoteReply)] == [False]


def test_nobody_unseats_a_leader_that_is_heard() -> None:
    state = hears(started(), B, Heartbeat(1, ModelId()), 1.0)
    request = MessageReceived(C, VoteRequest(2, ModelId(), pre=True))
    after, actions = step(RULES, state, request, 1.4, DRAW)
    assert actions == (Send(C, VoteReply(1, granted=False, pre=True)),)
    assert after.leader == B
    _, actions = step(RULES, state, request, 1.6, DRAW)
    assert actions == (Send(C, VoteReply(2, granted=True, pre=True)),)


def test_a_leader_steps_down_for_a_later_term() -> None:
    state = hears(leading(), C, HeartbeatReply(5, ModelId()), 1.1)
    assert (state.role, state.term, state.leader) == ("follower", 5, None)


def test_a_leader_that_no_majority_answers_steps_down() -> None:
    state = leading()
    state, actions = step(RULES, state, Tick(), 1.9, DRAW)
    assert (state.role, len(actions)) == ("leader", 2)
    state, actions = step(RULES, state, Tick(), 2.1, DRAW)
    assert (state.role, actions) == ("follower", ())


def test_a_leader_resigns_after_its_term_and_another_goes_first() -> None:
    rules = replace(RULES, term_s=5.0)
    state = replace(leading(), until_s=6.0)
    for tenth in range(11, 60):
        state = step(
            rules, state, MessageReceived(B, HeartbeatReply(1, ModelId())), tenth / 10, DRAW
        )[0]
    state, actions = step(rules, state, Tick(), 6.0, DRAW)
    farewell = Heartbeat(1, ModelId(), resigned=True)
    assert state.role == "follower"
    assert actions == (Send(B, farewell), Send(C, farewell))
    other = hears(hears(started(), B, Heartbeat(1, ModelId()), 6.0), B, farewell, 6.0)
    assert other.leader is None
    assert other.wake_s < state.wake_s


def test_a_model_is_decided_once_a_majority_holds_one_of_this_term() -> None:
    state = hears(leading(), B, HeartbeatReply(1, ModelId(0, 3)))
    assert committed(RULES, state) is None
    state, _ = step(RULES, state, Holds(ModelId(1, 4)), 1.0, DRAW)
    assert committed(RULES, state) is None
    state = hears(state, B, HeartbeatReply(1, ModelId(1, 4)))
    assert committed(RULES, state) == ModelId(1, 4)


def test_strangers_and_absurd_terms_change_nothing() -> None:
    state = started()
    for sender, term in (("stranger", 1), (A, 1), (B, MAX_TERM_STEP + 1)):
        event = MessageReceived(sender, VoteRequest(term, ModelId(), pre=False))
        assert step(RULES, state, event, 0.0, DRAW) == (state, ())


def test_a_member_alone_leads_at_once() -> None:
    rules = rules_of(A, (A,))
    state, actions = step(rules, begin(rules, Ballot(), ModelId(), 0, DRAW), Tick(), 1.0, DRAW)
    assert (state.role, state.term) == ("leader", 1)
    assert actions == (Save(Ballot(1, A, {A: 1}, counted=1)),)


@pytest.mark.parametrize(
    ("message", "golden"),
    [
        (VoteRequest(3, ModelId(2, 1), pre=True), "9401039202 01c3"),
        (VoteReply(3, granted=True, pre=False), "940203c3c2"),
        (Heartbeat(3, ModelId(2, 1)), "9403039202 01c2"),
        (HeartbeatReply(3, ModelId(2, 1)), "9304039202 01"),
    ],
)
def test_the_bytes_of_a_message_never_change(message: Message, golden: str) -> None:
    data = msgspec.msgpack.encode(message)
    assert data == bytes.fromhex(golden)
    assert msgspec.msgpack.decode(data, type=Message) == message


GROUPS = st.sets(st.integers(0, 4), min_size=1)


class AnyOrder(RuleBasedStateMachine):
    """Messages in any order, lost, or twice; timers at any moment; crashes between any two actions.

    Models are made and fetched meanwhile, as an exchange would. `History` says what must hold.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flying: list[tuple[str, str, Message]] = []
        self.offers: list[tuple[int, ModelId]] = []  # (term, what its leader served)
        self.now_s = 0.0
        self.chance = 0.0

    @initialize(count=st.sampled_from([2, 3, 3, 5]))
    def start(self, count: int) -> None:
        self.names = members(count)
        self.people = Electorate(
            self.names,
            lambda *message: self.flying.append(message),
            lambda: self.chance,
            lambda name: self.now_s,
        )

    def _somebody(self, pick: int) -> str:
        return self.names[pick % len(self.names)]

    @rule(
        pick=st.integers(0, 4),
        chance=st.floats(0, 0.999),
        crash=st.sampled_from([None] * 9 + [0, 1, 2]),
    )
    def somebody_is_woken(self, pick: int, chance: float, crash: int | None) -> None:
        name = self._somebody(pick)
        self.chance = chance
        self.now_s = max(self.now_s, self.people.by_name[name].state.wake_s)
        self.people.happens(name, Tick(), crash_after=crash)

    @precondition(lambda self: self.flying)
    @rule(
        pick=st.integers(0, 1 << 16),
        keep=st.booleans(),
        crash=st.sampled_from([None] * 9 + [0, 1, 2]),
    )
    def a_message_arrives(self, pick: int, keep: bool, crash: int | None) -> None:
        at = pick % len(self.flying)
        sender, to, message = self.flying[at] if keep else self.flying.pop(at)
        self.people.happens(to, MessageReceived(sender, message), crash_after=crash)

    @precondition(lambda self: self.flying)
    @rule()
    def all_that_flies_arrives(self) -> None:
        flying, self.flying = self.flying, []
        for sender, to, message in flying:
            self.people.happens(to, MessageReceived(sender, message))

    @rule(pick=st.integers(0, 4), there=GROUPS)
    def somebody_stands_before_a_few(self, pick: int, there: set[int]) -> None:
        self._talk(self._somebody(pick), there)

    @precondition(lambda self: self.people.leads())
    @rule(pick=st.integers(0, 4), there=GROUPS)
    def a_leader_gives_a_few_what_it_holds(self, pick: int, there: set[int]) -> None:
        leaders = self.people.leads()
        leader = leaders[pick % len(leaders)]
        self.offers.append((leader.state.term, leader.state.held))
        for number in there:
            self._fetch(number, len(self.offers) - 1)
        self._talk(leader.name, there)

    def _talk(self, name: str, there: set[int]) -> None:
        """Wakes somebody: all that it says reaches a few and nobody else, and so on."""
        group = {self._somebody(number) for number in there} | {name}
        self.flying.clear()
        self.now_s = max(self.now_s, self.people.by_name[name].state.wake_s)
        self.people.happens(name, Tick())
        while self.flying:
            sender, to, message = self.flying.pop(0)
            if to in group:
                self.people.happens(to, MessageReceived(sender, message))

    @precondition(lambda self: len(self.flying) > 20)
    @rule()
    def much_is_lost(self) -> None:
        del self.flying[::2]

    @rule(pick=st.integers(0, 4))
    def somebody_restarts(self, pick: int) -> None:
        self.people.restart(self._somebody(pick))

    @precondition(lambda self: self.people.leads())
    @rule(pick=st.integers(0, 4))
    def a_leader_makes_a_model(self, pick: int) -> None:
        leaders = self.people.leads()
        leader = leaders[pick % len(leaders)]
        made = ModelId(leader.state.term, leader.state.held.round + 1)
        self.people.happens(leader.name, Holds(made))
        self.offers.append((leader.state.term, made))

    @precondition(lambda self: self.offers)
    @rule(pick=st.integers(0, 4), which=st.integers(0, 1 << 16))
    def somebody_fetches_what_was_offered(self, pick: int, which: int) -> None:
        self._fetch(pick, which)

    def _fetch(self, pick: int, which: int) -> None:
        name = self._somebody(pick)
        state = self.people.by_name[name].state
        term, model_id = self.offers[which % len(self.offers)]
        if term == state.term and (state.held.term < term or state.held < model_id):
            self.people.happens(name, Holds(model_id))

    @invariant()
    def nobody_lives_in_two_terms(self) -> None:
        for member in getattr(self, "people", Electorate((), print, float, float)).by_name.values():
            assert not member.alive or member.state.ballot == member.ballot


AnyOrder.TestCase.settings = settings(
    max_examples=120, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAnyOrder = AnyOrder.TestCase

SETTLED_S = 12.0  # twelve rounds of patience


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 32), count=st.sampled_from([3, 4, 5, 7]))
def test_after_any_storm_there_is_a_leader_again_once_a_majority_talks(
    seed: int, count: int
) -> None:
    world = World(count, seed, term_s=20.0, skew=0.15)
    names = list(world.people.names)
    for _ in range(6):
        world.weather.loss = world.random.choice([0.0, 0.1, 0.5])
        world.weather.duplicates = world.random.choice([0.0, 0.3])
        world.weather.delay_s = (0.001, world.random.choice([0.01, 0.3, 2.0]))
        world.random.shuffle(names)
        half = world.random.randrange(count)
        world.split(tuple(names[:half]), tuple(names[half:]))
        victim = world.random.choice(names)
        world.crash(victim)
        world.run(world.random.uniform(0.1, 5.0))
        world.restart(victim)
    world.split()
    world.weather.loss, world.weather.duplicates, world.weather.delay_s = 0.01, 0.01, (0.001, 0.03)
    for name in names[: (count - 1) // 2]:
        world.crash(name)  # a majority is enough
    world.run(SETTLED_S, until=world.is_led)
    assert world.leader() is not None


def test_a_dead_leader_is_followed_by_another_within_two_patiences() -> None:
    times = []
    for seed in range(100):
        world = World(5, seed)
        world.run(10, until=world.is_led)
        world.run(1.0)
        dead = world.leader()
        assert dead is not None
        world.crash(dead)
        times.append(world.run(10, until=world.is_led))
    assert max(times) < 2.5
    assert sorted(times)[95] < 1.7


def test_a_minority_has_no_leader_for_long_and_the_healed_network_has_one() -> None:
    for seed in range(30):
        world = World(5, seed)
        world.run(10, until=world.is_led)
        old = world.leader()
        assert old is not None
        rest = [name for name in world.people.names if name != old]
        few, many = (old, rest[0]), tuple(rest[1:])
        world.split(few, many)
        world.run(4.0)
        assert world.leader() in many
        assert not [member for member in world.people.leads() if member.name in few]
        term = world.people.by_name[str(world.leader())].state.term
        world.split()
        world.run(3.0)
        assert [member.state.term for member in world.people.leads()] == [term]
        assert len({member.state.leader for member in world.people.by_name.values()}) == 1


def test_in_seven_terms_nobody_leads_more_than_three_times() -> None:
    for seed in range(20):
        world = World(5, seed, term_s=10.0)
        led = world.people.history.led
        world.run(75)
        terms = [leader for leader, _ in led.values()][:7]
        assert len(terms) == 7
        assert max(map(terms.count, terms)) <= 3, terms


def test_two_candidates_in_one_election_end_up_with_one_leader() -> None:
    stood_together = 0
    for seed in range(40):
        world = World(5, seed)
        world.weather.delay_s = (0.05, 0.15)
        world.run(20, until=world.is_led)
        candidates = [(term, name) for _, name, role, term in world.log if role == "candidate"]
        stood_together += len(candidates) > len({term for term, _ in candidates})
        assert len(world.people.leads()) == 1
    assert stood_together
