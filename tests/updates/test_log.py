"""A peer's own update log: on disk before anybody sees it, whatever kills the peer, and one story.

A kill is made at every write: of a record, all, a part or nothing reaches the file, and then the
process is gone. The peer that begins again has trained something else, as an honest one would.
"""

import contextlib
import itertools
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pl.errors import LogError, RunDirError
from p2pl.network.keys import Identity
from p2pl.protocol.updates.entry import Part, encode
from p2pl.protocol.updates.message import Question, read_commitment
from p2pl.updates.file import LOG_FILE, Kept, read
from p2pl.updates.keeper import Keeper, sha256
from p2pl.updates.log import UpdateLog, Version
from p2pl.updates.watch import Watch

SESSION = "5e" * 32
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()


def version(number: int, payload: bytes = b"") -> Version:
    """Returns the version of a round."""
    return Version("trained", number, sha256(payload or str(number).encode()), epsilon=0.5)


def kept_in(folder: Path) -> Kept:
    """Returns what stands in the log of a run directory."""
    kept = read(folder / LOG_FILE)
    assert kept is not None
    return kept


class Killed(BaseException):
    """The process is gone: nothing catches it."""


class Dying:
    """A file of a process that is killed after so many bytes more.

    Args:
        path: of the file.
        left: bytes that still reach the file.
    """

    def __init__(self, path: Path, left: int) -> None:
        self._file = path.open("ab", buffering=0)
        self._left = left

    def write(self, data: memoryview) -> int:
        written = self._file.write(data[: self._left])
        self._left -= written
        if written < len(data):
            raise Killed
        return written

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def test_what_was_appended_is_there_again(tmp_path: Path) -> None:
    log = UpdateLog.open(tmp_path, SESSION, KEY)
    log.append(version(0), 1.0)
    log.mixed(
        1, {log.peer_id: 0.25, "ab" * 32: 0.75, "ef" * 32: 0.0}, {}, {"cd" * 32: "late\n" * 99}
    )
    made = log.append(version(1), 2.0)
    assert log.append(version(1), 3.0) is made  # the same bytes once more
    log.close()
    again = UpdateLog.open(tmp_path, SESSION, KEY, least=2)
    assert [one.entry.round for one in again.entries] == [0, 1]
    assert again.head == log.head
    again.close()
    kept = kept_in(tmp_path)
    first, second = kept.records
    size = (tmp_path / LOG_FILE).stat().st_size
    assert (first.mix, kept.pending, kept.end) == (None, None, size)
    assert (kept.session_id, kept.owner.public_key) == (SESSION, PUBLIC)
    assert second.mix is not None
    assert Part(b"\xab" * 32, bytes(32), 750_000) in second.mix.parts
    assert len(second.mix.parts) == 2
    assert second.mix.rejected[0].reason.startswith("late?late")
    assert size < 1_024


def test_a_version_made_anew_is_said_to_be() -> None:
    log = UpdateLog(SESSION, KEY)
    rounds = [log.append(version(number, data), 1.0) for number, data in ((1, b"a"), (1, b"b"))]
    rounds += [log.append(version(number, data), 1.0) for number, data in ((2, b"c"), (1, b"d"))]
    assert [one.entry.again for one in rounds] == [0, 1, 1, 2]
    assert len({one.entry.place for one in rounds}) == 4


def test_a_hundred_kills_never_make_two_histories(tmp_path: Path) -> None:
    other, me = Identity.generate(), Identity.generate()
    seen = Watch(SESSION, other.private_key, lambda _: None, lambda: 1.0, lambda _: True)
    rng, path, index, whole, lives = random.Random(20), tmp_path / LOG_FILE, 0, 0, 0
    for lives in range(100):
        log = UpdateLog.open(tmp_path, SESSION, me.private_key, least=whole)
        log.close()
        log._medium = Dying(path, rng.randrange(1_500))
        keeper = Keeper(log, None, me, lambda: 1.0, lambda _: False)
        with contextlib.suppress(Killed):
            while True:
                log.mixed(index, {log.peer_id: 1.0}, {}, {"cd" * 32: "late"})
                index += rng.random() < 0.5  # else the round is made anew
                made = log.append(version(index, f"{lives} {index}".encode()), 1.0)
                whole = len(log)  # it is on disk, and others see it from here on
                question = seen.question(me.peer_id)
                came = keeper.answer_for(made)(other.peer_id, encode(question))
                seen.answered(me.peer_id, question, read_commitment(came), made.entry.digest)
        log.close()
    assert len(kept_in(tmp_path).records) >= whole > 100
    assert not seen.faults


def test_a_peer_whose_log_is_put_back_and_that_goes_on_is_found() -> None:
    """What the test above looks for is there where the log is not kept."""
    seen = Watch(SESSION, Ed25519PrivateKey.generate(), lambda _: None, lambda: 1.0, lambda _: True)
    me = Identity.generate()
    for life in (b"first", b"second"):
        keeper = Keeper(UpdateLog(SESSION, me.private_key), None, me, lambda: 1.0, lambda _: False)
        for number in range(3):
            made = keeper.log.append(version(number, life + bytes(number) if number else b"0"), 5.0)
            question = Question(seen.question(me.peer_id).known, None, (), ())
            came = read_commitment(keeper.answer_for(made)("ab" * 32, encode(question)))
            with contextlib.suppress(LogError):
                seen.answered(me.peer_id, question, came, made.entry.digest)
        assert len(seen.faults) == (life == b"second")
    assert "two versions of round 1" in str(seen.turned_down(me.peer_id))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:20] + b"\xff" + data[21:],  # a bit of an entry
        lambda data: b"\0" + data[1:],  # the kind of the first record
        lambda data: data[:4] + b"\xff" + data[5:],  # its length
        lambda data: data[300:],
        lambda data: data + b"what is this? It is no record at all",
    ],
)
def test_a_log_that_is_damaged_is_not_gone_on_with(
    spoil: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    log = UpdateLog.open(tmp_path, SESSION, KEY)
    for number in range(3):
        log.append(version(number), 1.0)
    log.close()
    path = tmp_path / LOG_FILE
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(RunDirError, match="damaged"):
        UpdateLog.open(tmp_path, SESSION, KEY)


def test_entries_that_the_state_knows_of_are_missed(tmp_path: Path) -> None:
    UpdateLog.open(tmp_path, SESSION, KEY).close()
    with pytest.raises(RunDirError, match="at least the 2 that the saved state knows of"):
        UpdateLog.open(tmp_path, SESSION, KEY, least=2)


def test_entries_in_another_order_are_refused(tmp_path: Path) -> None:
    log = UpdateLog.open(tmp_path, SESSION, KEY)
    path = tmp_path / LOG_FILE
    ends = [path.stat().st_size]
    for number in range(3):
        log.append(version(number), 1.0)
        ends.append(path.stat().st_size)
    log.close()
    data = path.read_bytes()
    records = [data[begin:end] for begin, end in itertools.pairwise(ends)]
    for wrong in ((0, 2, 1), (1, 2), (0, 0, 1)):
        path.write_bytes(b"".join([data[: ends[0]], *(records[at] for at in wrong)]))
        with pytest.raises(RunDirError, match="does not follow"):
            read(path)
    path.write_bytes(data.replace(bytes.fromhex(SESSION), bytes.fromhex("5f" * 32)))
    with pytest.raises(RunDirError, match="damaged"):
        read(path)
    path.write_bytes(data)
    for session, key in (("5f" * 32, KEY), (SESSION, Ed25519PrivateKey.generate())):
        with pytest.raises(RunDirError, match="of another peer or session"):
            UpdateLog.open(tmp_path, session, key)
