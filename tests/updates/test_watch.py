"""What a peer makes of what it hears about others' logs: lies, strangers, and its own lost log."""

import asyncio
from pathlib import Path

import pytest

from p2pl.errors import FrameError, LogError, RunDirError
from p2pl.network.keys import Identity
from p2pl.protocol.updates.entry import encode
from p2pl.protocol.updates.fault import TwoHeads
from p2pl.protocol.updates.head import sign_head
from p2pl.protocol.updates.message import Heard, Question
from p2pl.updates.keeper import Keeper, sha256
from p2pl.updates.log import UpdateLog, Version
from p2pl.updates.watch import proof_file, saved_in

SESSION = "5e" * 32
AUTHOR, ME = Identity.generate(), Identity.generate()


def keeper(one: Identity, known: bool = True) -> Keeper:
    """Returns the keeper of an empty log; it knows everybody, or nobody."""
    log = UpdateLog(SESSION, one.private_key)
    return Keeper(log, None, one, lambda: 1_700_000_000.0, lambda _: known)


def logged(one: Keeper, *payloads: str) -> None:
    """Adds versions to a log."""
    for payload in payloads:
        number = len(one.log)
        one.log.append(Version("trained", number, sha256(payload.encode())), 1_700_000_000.0)


def pull(asker: Keeper, other: Keeper) -> None:
    """Pulls the newest version of another peer."""
    made = other.log.entries[-1]
    asked = asker.question(other.log.peer_id)
    came = other.answer_for(made)(asker.log.peer_id, asked.data)
    asker.take(other.log.peer_id, asked, came, made.entry.digest)


def hear(asker: Keeper, other: Keeper) -> None:
    """Tells a peer of the newest head of another one's log."""
    asker.watch.take_others([Heard(other.log.public_key, other.log.head)], ())


def test_logs_of_different_lengths_that_do_not_fit_are_turned_down() -> None:
    me, shown, hidden = keeper(ME), keeper(AUTHOR), keeper(AUTHOR)
    logged(shown, "0", "a")
    logged(hidden, "0", "b", "c")
    pull(me, shown)
    hear(me, hidden)  # of another size: no proof
    assert not me.watch.faults
    logged(shown, "d", "e")
    for _ in range(2):
        with pytest.raises(FrameError, match="does not begin with the 3 entries"):
            pull(me, shown)
    assert not me.watch.faults


def test_an_older_head_of_the_same_log_is_no_reason_to_doubt() -> None:
    me, author = keeper(ME), keeper(AUTHOR)
    for payload in "abcdef":
        logged(author, payload)
        hear(me, author)
    pull(me, author)
    pull(me, author)
    assert me.question(AUTHOR.peer_id).question.known == (6, 3, 4)  # 1 and 2 were shown to fit
    pull(me, author)
    assert not me.watch.faults


def test_a_log_that_has_got_shorter_is_turned_down() -> None:
    me, author, older = keeper(ME), keeper(AUTHOR), keeper(AUTHOR)
    logged(author, "a", "b", "c")
    logged(older, "a", "b")
    pull(me, author)
    with pytest.raises(FrameError, match="has 2 entries, and had 3 before"):
        pull(me, older)


def test_a_peer_whose_log_is_lost_is_told_so_before_it_signs_another_one() -> None:
    other, before, again = keeper(ME), keeper(AUTHOR), keeper(AUTHOR)
    logged(before, "0", "a")
    pull(other, before)
    logged(again, "0")  # the same first entry, whenever it begins
    logged(other, "0")
    pull(again, other)
    with pytest.raises(RunDirError, match="a log of 2 entries in this session"):
        asyncio.run(again.commit(Version("trained", 1, sha256(b"b"))))


def test_nobody_else_can_make_a_peer_believe_that_its_log_is_lost() -> None:
    me, other = keeper(ME), keeper(AUTHOR)
    logged(me, "0")
    forged = sign_head(AUTHOR.private_key, SESSION, 9, bytes(32))
    question = Question((), None, (Heard(ME.public_key, forged),), ())
    with pytest.raises(FrameError, match="not signed by the author"):
        me.answer_for(me.log.entries[0])(other.log.peer_id, encode(question))


def test_of_strangers_nothing_is_kept() -> None:
    me, author = keeper(ME, known=False), keeper(AUTHOR)
    logged(author, "a")
    hear(me, author)
    heads = [sign_head(AUTHOR.private_key, SESSION, 1, bytes([at] * 32)) for at in (0, 1)]
    proof = TwoHeads(bytes.fromhex(SESSION), AUTHOR.public_key, *heads)
    me.watch.take_others((), [encode(proof)])
    assert (me.watch.faults, me.question(AUTHOR.peer_id).question.known) == ({}, ())
    with pytest.raises(LogError, match="of another session"):
        me.watch.take_fault(TwoHeads(bytes(32), AUTHOR.public_key, *heads))


def test_a_proof_is_passed_on_once_and_its_author_is_not_asked_again() -> None:
    me, third = keeper(ME), Identity.generate()
    heads = [sign_head(AUTHOR.private_key, SESSION, 1, bytes([at] * 32)) for at in (0, 1)]
    me.watch.take_fault(TwoHeads(bytes.fromhex(SESSION), AUTHOR.public_key, *heads))
    logged(me, "0")
    listener = keeper(third)
    pull(listener, me)
    assert "two different logs of 1 entries" in (listener.turned_down(AUTHOR.peer_id) or "")
    assert [one.peer_id for one in listener.news()] == [AUTHOR.peer_id]
    assert me.watch.faults_for(third.peer_id) == ()
    assert listener.watch.faults_for(AUTHOR.peer_id) == ()


def test_a_version_counts_only_with_the_entry_that_commits_its_author_to_it() -> None:
    me, author, other = keeper(ME), keeper(AUTHOR), keeper(AUTHOR)
    logged(author, "a", "b")
    logged(other, "c", "d")
    made = author.log.entries[-1]
    asked = me.question(AUTHOR.peer_id)
    came = author.answer_for(made)(ME.peer_id, asked.data)
    foreign = author.answer_for(other.log.entries[-1])(ME.peer_id, asked.data)
    for commitment, digest, said in (
        (came, sha256(b"c"), "not the one that its author has committed to"),
        (foreign, other.log.entries[-1].entry.digest, "is not in its author's log"),
        (b"", made.entry.digest, "came without an entry"),
        (came[:-1], made.entry.digest, "commitment: "),
    ):
        with pytest.raises(FrameError, match=said):
            me.take(AUTHOR.peer_id, asked, commitment, digest)
    with pytest.raises(FrameError, match="of another peer's log"):
        me.take(ME.peer_id, asked, came, made.entry.digest)
    assert AUTHOR.peer_id not in me.digests
    me.take(AUTHOR.peer_id, asked, came, made.entry.digest)
    assert me.digests[AUTHOR.peer_id] == made.entry.digest


def test_a_log_is_cosigned_once_a_second_and_again_where_the_question_was_lost() -> None:
    clock = [1_700_000_000.0]
    log = UpdateLog(SESSION, ME.private_key)
    me, author = Keeper(log, None, ME, lambda: clock[0], lambda _: True), keeper(AUTHOR)
    for number in range(6):
        logged(author, str(number))
        pull(me, author)
        signed = [head.size for head, _ in author.watch.cosigned.values()]
        # The head that was proven last, when a second had passed; never one that was not.
        assert signed == [[], [1], [1], [1], [4], [4]][number]
        asked = [me.question(AUTHOR.peer_id).question for _ in range(2)]
        assert [one.cosignature is not None for one in asked] == [number == 0] * 2
        clock[0] += 0.4
    clock[0] -= 3_600
    assert me.question(AUTHOR.peer_id).question.cosignature is not None


def test_what_is_known_is_written_once_a_second_and_a_proof_at_once(tmp_path: Path) -> None:
    clock = [1_700_000_000.0]
    log = UpdateLog(SESSION, ME.private_key)
    me = Keeper(log, tmp_path, ME, lambda: clock[0], lambda _: True)
    shown, hidden = keeper(AUTHOR), keeper(AUTHOR)
    logged(shown, "0", "a")
    logged(hidden, "0", "b")

    def written() -> int:
        saved = saved_in(tmp_path)
        return len(saved.authors) if saved else -1

    me.save_sometimes()
    assert written() == 0
    pull(me, shown)
    me.save_sometimes()
    assert written() == 0
    clock[0] += 1
    me.save_sometimes()
    assert written() == 1
    hear(me, hidden)
    assert not list(tmp_path.glob(proof_file("*")))
    me.save_sometimes()
    assert list(tmp_path.glob(proof_file("*")))
