"""Who may listen, who may call, and when it is over: without a socket and without a clock."""

import itertools
from dataclasses import dataclass, field, replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pl.protocol import invitation, relay, ticket
from p2pl.protocol.relay import Accept, Joined, Listening, Ping, Refused, Ring, Said, Told
from p2pl.rendezvous.board import Board, Command, End, Finish, Join, Line, Policy, Send

SESSION = bytes(range(32))
OTHER_SESSION = bytes(32)
WALL_S = 1_700_000_000.0
ISSUER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ISSUERS = frozenset({ISSUER.public_key().public_bytes_raw()})
POLICY = Policy(issuers=ISSUERS)
ANN, BOB, CID = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3))


def id_of(key: Ed25519PrivateKey) -> bytes:
    return relay.listen(key, session=SESSION, time_s=0).peer


def ticket_of(key: Ed25519PrivateKey, *, life_s: int = 600, session: bytes = SESSION) -> bytes:
    until_s = int(WALL_S) + life_s
    return ticket.issue(ISSUER, session=session, peer=id_of(key), not_after_s=until_s)


def listen(key: Ed25519PrivateKey, *, skew_s: float = 0, paper: bytes | None = None) -> Said:
    shown = ticket_of(key) if paper is None else paper
    return relay.listen(key, session=SESSION, time_s=WALL_S + skew_s, ticket=shown)


def invited(
    key: Ed25519PrivateKey,
    *,
    author: Ed25519PrivateKey = CID,
    session: bytes = SESSION,
    until_s: int = 0,
) -> bytes:
    who = id_of(key).hex()
    return invitation.encode(
        invitation.invite(author, session_id=session.hex(), peer_id=who, not_after_s=until_s)
    )


def call(key: Ed25519PrivateKey, whom: Ed25519PrivateKey) -> Said:
    target = id_of(whom)
    return relay.call(key, session=SESSION, target=target, time_s=WALL_S, ticket=ticket_of(key))


@dataclass
class Table:
    """A board, and a clock that stands still until it is moved."""

    policy: Policy = POLICY
    now_s: float = 0.0
    done: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        numbers = itertools.count(1)
        self.board = Board(
            self.policy,
            now=lambda: self.now_s,
            wall=lambda: WALL_S + self.now_s,
            draw=lambda count: next(numbers).to_bytes(count, "big"),
        )

    def open(self, host: str = "192.0.2.1") -> Line:
        line, self.done = self.board.opened(host)
        return line

    def say(self, message: Said, host: str = "192.0.2.1") -> Line:
        """Returns a new line, over which this is said."""
        line = self.open(host)
        self.hear(line, message)
        return line

    def hear(self, line: Line, message: Said) -> None:
        self.done = self.board.heard(line, message)

    def told(self, line: Line) -> list[Told]:
        return [one.message for one in self.done if isinstance(one, Send) and one.line == line]

    def refusal(self, line: Line) -> str:
        (told,) = self.told(line)
        assert isinstance(told, Refused)
        assert End(line) in self.done
        return told.reason

    def joined(self) -> tuple[Line, Line, Line]:
        """Returns the lines of Bob, who listens, of Ann, who calls, and where Bob took the call."""
        bob = self.say(listen(BOB))
        ann = self.say(call(ANN, BOB), "192.0.2.2")
        (ring,) = self.told(bob)
        assert isinstance(ring, Ring)
        return bob, ann, self.say(Accept(ring.call))


def test_a_call_that_is_accepted_is_joined() -> None:
    table = Table()
    bob = table.say(listen(BOB))
    assert table.told(bob) == [Listening(POLICY.keepalive_s)]
    ann = table.say(call(ANN, BOB))
    (ring,) = table.told(bob)
    assert isinstance(ring, Ring)
    assert ring.caller == id_of(ANN)
    assert table.told(ann) == []
    taken = table.say(Accept(ring.call))
    assert table.done == [Send(ann, Joined()), Send(taken, Joined()), Join(ann, taken)]
    assert (table.board.lines, table.board.listeners, table.board.joints) == (3, 1, 1)


def test_a_call_is_taken_once() -> None:
    table = Table()
    table.joined()
    again = table.say(Accept((1).to_bytes(16, "big")))
    assert "nobody calls" in table.refusal(again)


def test_whoever_is_not_here_cannot_be_called() -> None:
    table = Table()
    assert "not here" in table.refusal(table.say(call(ANN, BOB)))


def test_peers_of_another_session_are_not_found() -> None:
    table = Table()
    table.say(listen(BOB))
    paper = ticket_of(ANN, session=OTHER_SESSION)
    other = relay.call(ANN, session=OTHER_SESSION, target=id_of(BOB), time_s=WALL_S, ticket=paper)
    assert "not here" in table.refusal(table.say(other))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (listen(BOB, paper=b""), "its tracker gives one"),
        (listen(BOB, paper=b"no ticket"), "ticket: "),
        (listen(BOB, paper=ticket_of(ANN)), "another peer's"),
        (listen(BOB, paper=ticket_of(BOB, session=OTHER_SESSION)), "another session"),
        (listen(BOB, paper=ticket_of(BOB, life_s=-1)), "good for -1 s"),
        (listen(BOB, paper=ticket_of(BOB, life_s=8 * 86_400)), "good for 691200 s"),
        (
            listen(
                BOB,
                paper=ticket.issue(
                    CID, session=SESSION, peer=id_of(BOB), not_after_s=int(WALL_S) + 5
                ),
            ),
            "issuer",
        ),
        (listen(BOB, skew_s=301), r"set this machine's clock"),
        (listen(BOB, skew_s=-301), r"set this machine's clock"),
    ],
)
def test_a_peer_shows_a_ticket_of_its_own(message: Said, reason: str) -> None:
    table = Table()
    assert reason in table.refusal(table.say(message))
    assert table.board.listeners == 0


@pytest.mark.parametrize(
    ("paper", "reason"),
    [
        (invited(BOB), ""),
        (invited(BOB, until_s=int(WALL_S) + 60), ""),
        (invited(BOB, until_s=int(WALL_S) - 1), "the invitation ended at"),
        (invited(BOB, author=ANN), "of no author that this relay was told of"),
        (invited(ANN), "the invitation is another peer's"),
        (invited(BOB, session=OTHER_SESSION), "the invitation is for another session"),
        (invited(BOB)[:-1], "ticket: invitation: "),
        (b"", "allowed an invitation"),
        (ticket_of(BOB), "issuer"),
    ],
)
def test_an_invitation_is_a_ticket_where_its_author_is_known(paper: bytes, reason: str) -> None:
    authors = {CID.public_key().public_bytes_raw()}
    if "another session" not in reason and "ended" not in reason:
        authors.add(bytes(32))
    table = Table(Policy(authors=frozenset(authors)))
    line = table.say(listen(BOB, paper=paper))
    if reason:
        assert reason in table.refusal(line)
    assert table.board.listeners == (not reason)


def test_an_invitation_is_no_ticket_where_no_author_is_known() -> None:
    table = Table()
    assert "no author" in table.refusal(table.say(listen(BOB, paper=invited(BOB))))


def test_a_ticket_that_was_changed_is_nobodys() -> None:
    paper = ticket.decode(ticket_of(BOB))
    longer = (paper.session, paper.peer, paper.not_after_s + 1, paper.issuer, paper.signature)
    forged = ticket._ENCODER.encode(longer)
    assert "signature" in (table := Table()).refusal(table.say(listen(BOB, paper=forged)))


def test_nobody_speaks_for_another_peer() -> None:
    said = listen(BOB)
    assert isinstance(said, relay.Listen)
    forged = relay.Listen(
        said.session,
        said.target,
        said.public_key,
        said.time_s,
        bytes(16),
        said.ticket,
        said.signature,
    )
    assert "signature" in (table := Table()).refusal(table.say(forged))


def test_a_call_is_no_listen_and_the_other_way_round() -> None:
    told = call(BOB, BOB)
    assert isinstance(told, relay.Call)
    forged = relay.Listen(
        told.session,
        told.target,
        told.public_key,
        told.time_s,
        told.nonce,
        told.ticket,
        told.signature,
    )
    assert "listen signature" in (table := Table()).refusal(table.say(forged))


def test_what_was_said_once_is_not_heard_again() -> None:
    table = Table()
    said = listen(BOB)
    first = table.say(said)
    assert "said before" in table.refusal(table.say(said))
    assert table.board.listens((SESSION, id_of(BOB)))
    assert table.told(first) == []


def test_an_open_relay_wants_no_ticket_and_still_a_signature() -> None:
    table = Table(Policy(is_open=True))
    assert table.told(table.say(listen(BOB, paper=b""))) == [Listening(20.0)]
    said = listen(ANN, paper=b"")
    assert isinstance(said, relay.Listen)
    forged = relay.Listen(
        said.session, id_of(BOB), said.public_key, said.time_s, bytes(16), b"", said.signature
    )
    assert "for itself alone" in table.refusal(table.say(forged))


def test_a_peer_that_comes_back_takes_the_place_of_its_former_line() -> None:
    table = Table()
    before = table.say(listen(BOB))
    after = table.say(listen(BOB))
    assert End(before) in table.done
    assert table.told(after) == [Listening(20.0)]
    table.board.lost(before)
    assert table.board.listens((SESSION, id_of(BOB)))


def test_lines_that_say_nothing_end() -> None:
    table = Table()
    line = table.open()
    table.now_s = POLICY.hello_s
    assert table.board.sweep() == []
    table.now_s += 0.1
    table.done = table.board.sweep()
    assert "said nothing" in table.refusal(line)
    assert table.board.sweep() == []  # once


def test_a_call_that_nobody_takes_ends() -> None:
    table = Table()
    table.say(listen(BOB))
    ann = table.say(call(ANN, BOB))
    (ring,) = [one.message for one in table.done if isinstance(one, Send)]
    assert isinstance(ring, Ring)
    table.now_s = POLICY.ring_s + 0.1
    table.done = table.board.sweep()
    assert "does not answer" in table.refusal(ann)
    assert "nobody calls" in table.refusal(table.say(Accept(ring.call)))


def test_a_listener_lives_as_long_as_it_says_so() -> None:
    table = Table()
    bob = table.say(listen(BOB))
    for _ in range(10):
        table.now_s += 2 * POLICY.keepalive_s
        assert table.board.sweep() == []
        table.hear(bob, Ping())
        assert table.told(bob) == [Ping()]
    table.now_s += 3 * POLICY.keepalive_s
    table.done = table.board.sweep()
    assert "no sign of life" in table.refusal(bob)
    assert not table.board.listens((SESSION, id_of(BOB)))


def test_joined_lines_end_when_nothing_moves() -> None:
    table = Table()
    _, ann, taken = table.joined()
    for _ in range(5):
        table.now_s += POLICY.idle_s
        table.board.copied(taken, 1)
        assert set(table.board.sweep()) & {End(ann), End(taken)} == set()
    table.now_s += POLICY.idle_s + 1
    assert {End(ann), End(taken)} <= set(table.board.sweep())


@pytest.mark.parametrize("policy", [replace(POLICY, total_s=50), replace(POLICY, total_bytes=50)])
def test_joined_lines_end_when_they_have_had_enough(policy: Policy) -> None:
    table = Table(policy)
    _, ann, taken = table.joined()
    for _ in range(50):
        table.board.copied(ann, 1)
        table.now_s += 1.0
    assert End(ann) not in table.board.sweep()
    table.now_s += 0.5
    table.board.copied(taken, 1)
    assert {End(ann), End(taken)} <= set(table.board.sweep())


def test_when_one_side_ends_the_other_may_still_speak_for_a_moment() -> None:
    table = Table()
    _, ann, taken = table.joined()
    assert table.board.ended(ann) == [Finish(taken)]
    table.now_s = 4.0
    table.board.copied(taken, 10)
    table.now_s = 8.0
    assert table.board.sweep() == []
    table.now_s = 9.5
    assert {End(ann), End(taken)} <= set(table.board.sweep())


def test_when_both_sides_have_ended_it_is_over() -> None:
    table = Table()
    _, ann, taken = table.joined()
    table.board.ended(ann)
    assert table.board.ended(taken) == [End(taken), End(ann)]


def test_when_one_side_is_lost_the_other_ends() -> None:
    table = Table()
    bob, ann, taken = table.joined()
    assert table.board.lost(ann) == [End(taken)]
    assert table.board.lost(taken) == []
    assert table.board.lost(bob) == []
    assert (table.board.lines, table.board.listeners, table.board.joints) == (0, 0, 0)
    kept = (table.board._peers, table.board._sessions, table.board._groups, table.board._calls)
    assert [dict(one) for one in kept] == [{}, {}, {}, {}]


def test_connections_are_counted_in_all() -> None:
    table = Table(replace(POLICY, max_lines=2))
    table.open()
    table.open()
    assert "full" in table.refusal(table.open())


def test_connections_are_counted_by_address_and_by_network_of_ipv6() -> None:
    table = Table(replace(POLICY, max_per_address=1))
    table.open("2001:db8::1")
    assert "from this address" in table.refusal(table.open("2001:db8::ffff"))
    table.open("2001:db8:0:1::1")
    assert table.done == []
    table.open("192.0.2.1")
    assert "from this address" in table.refusal(table.open("::ffff:192.0.2.1"))


def test_an_address_that_connects_too_often_waits() -> None:
    table = Table(replace(POLICY, connects_per_s=1.0, connects_at_once=2))
    for _ in range(2):
        table.board.lost(table.open())
        assert table.done == []
    assert "from this address" in table.refusal(table.open())
    table.open("192.0.2.9")
    assert table.done == []


def test_a_peer_that_asks_too_often_waits() -> None:
    table = Table(replace(POLICY, asks_per_s=0.5, asks_at_once=2))
    table.say(listen(BOB))
    for _ in range(2):
        table.board.lost(table.say(call(ANN, BOB)))
    line = table.say(call(ANN, BOB))
    (told,) = table.told(line)
    assert isinstance(told, Refused)
    assert told.retry_in_s == 2.0


def test_a_peer_has_so_many_connections() -> None:
    table = Table(replace(POLICY, max_per_peer=2))
    table.say(listen(BOB))
    table.say(call(ANN, BOB))
    table.say(call(ANN, BOB))
    assert "of this peer" in table.refusal(table.say(call(ANN, BOB)))


def test_a_session_has_so_many_connections() -> None:
    table = Table(replace(POLICY, max_per_session=1))
    table.say(listen(BOB))
    assert "of this session" in table.refusal(table.say(call(ANN, BOB)))


def test_bytes_are_rationed_for_all_and_for_each() -> None:
    table = Table(replace(POLICY, bytes_per_s=1_000.0))
    _, ann, taken = table.joined()
    assert table.board.copied(ann, 1_000) == 0.0
    assert table.board.copied(taken, 500) == 0.5
    table.now_s = 1.5
    assert table.board.copied(ann, 1_000) == 0.0
    each = Table(replace(POLICY, bytes_per_s_per_peer=1_000.0))
    _, ann, taken = each.joined()
    assert each.board.copied(ann, 1_500) == 0.5
    assert each.board.counts.bytes == 1_500


def test_a_relay_that_drains_takes_no_call_and_ends_none() -> None:
    table = Table()
    bob, ann, taken = table.joined()
    cid = table.say(call(CID, BOB))
    table.done = table.board.drain()
    assert "about to stop" in table.refusal(bob)
    assert "about to stop" in table.refusal(cid)
    assert not {End(ann), End(taken)} & set(table.done)
    assert "about to stop" in table.refusal(table.say(listen(BOB)))
    assert table.board.joints == 1


def test_whoever_says_something_out_of_turn_is_ended() -> None:
    table = Table()
    bob = table.say(listen(BOB))
    table.hear(bob, listen(BOB))
    assert "not now" in table.refusal(bob)
    fresh = table.open()
    table.hear(fresh, Ping())
    assert "not now" in table.refusal(fresh)


def test_a_call_from_here_needs_no_ticket() -> None:
    table = Table()
    bob = table.say(listen(BOB))
    here, _ = table.board.opened("")
    table.done = table.board.call_from_here(here, SESSION, id_of(BOB))
    (ring,) = table.told(bob)
    assert isinstance(ring, Ring)
    taken = table.say(Accept(ring.call))
    assert Join(here, taken) in table.done
