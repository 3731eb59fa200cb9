"""A run directory is read as it grows: each line once, and only what is whole."""

import os
from pathlib import Path

import msgspec
import pytest

from p2pl.run.log import ROUNDS_FILE, Marker, RoundEntry, RunLog, Summary
from p2pl.watch.follow import ALL, Follower

MARKER = Marker(session_id="ab" * 32, peer_id="cd" * 32, name="digits", rounds=9)


def entry(index: int, loss: float = 1.0) -> RoundEntry:
    """Returns a round with some loss."""
    return RoundEntry(round=index, train_loss=loss)


def rounds(follower: Follower) -> list[int]:
    """Returns the rounds that are new to a follower."""
    return [one.round for one in follower.look().rounds]


def append(path: Path, raw: bytes) -> None:
    """Writes bytes behind those of a file."""
    with path.open("ab") as file:
        file.write(raw)


def test_a_directory_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "run")
    assert follower.look().rounds == ()
    assert (follower.marker, follower.trouble) == (None, "")
    with RunLog(tmp_path / "run", MARKER) as log:
        log.append(entry(1))
        news = follower.look()
        assert [one.round for one in news.rounds] == [1]
        assert news.has_changed
        assert follower.marker == MARKER
        assert follower.is_alive
        assert follower.look().has_changed is False


def test_each_round_is_read_once_and_the_end_is_noticed(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    with RunLog(tmp_path, MARKER) as log:
        for index in (1, 2):
            log.append(entry(index))
        assert rounds(follower) == [1, 2]
        assert rounds(follower) == []
        log.append(entry(3))
        log.say("waiting for peers", 12.0)
        log.say("waiting for peers", 13.0)
        news = follower.look()
        assert [one.round for one in news.rounds] == [3]
        assert [(one.time, one.text) for one in news.messages] == [(12.0, "waiting for peers")]
        log.finish(Summary(rounds=3))
    assert follower.look().has_changed
    assert follower.summary is not None
    assert follower.summary.state == "finished"


def test_a_torn_last_line_is_left_until_the_rest_of_it_is_there(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    RunLog(tmp_path, MARKER).close()
    line = msgspec.json.encode(entry(1)) + b"\n"
    append(tmp_path / ROUNDS_FILE, line[:20])
    assert rounds(follower) == []
    assert follower.trouble == ""
    append(tmp_path / ROUNDS_FILE, line[20:])
    assert rounds(follower) == [1]


def test_rounds_that_are_taken_back_are_cut(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    with RunLog(tmp_path, MARKER) as log:
        for index in range(1, 6):
            log.append(entry(index))
        follower.look()
        log.drop_after(3)
        news = follower.look()
        assert (news.cut, news.rounds) == (3, ())
        log.append(entry(4, loss=0.5))
        news = follower.look()
        assert (news.cut, [one.train_loss for one in news.rounds]) == (None, [0.5])


def test_a_log_that_was_cut_and_has_grown_again_between_two_looks_is_read_anew(
    tmp_path: Path,
) -> None:
    follower = Follower(tmp_path)
    with RunLog(tmp_path, MARKER) as log:
        for index in range(1, 4):
            log.append(entry(index))
        follower.look()
        log.drop_after(1)
        for index in range(2, 6):
            log.append(entry(index, loss=0.25))
        news = follower.look()
    assert news.cut == ALL
    assert [one.round for one in news.rounds] == [1, 2, 3, 4, 5]
    assert news.rounds[1].train_loss == 0.25


def test_a_line_that_is_none_of_a_log_is_told_and_those_before_it_are_shown(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    with RunLog(tmp_path, MARKER) as log:
        log.append(entry(1))
    append(tmp_path / ROUNDS_FILE, b'{"round": "\x1b[2J"}\n')
    assert rounds(follower) == [1]
    assert follower.trouble.startswith("rounds.jsonl is damaged")
    assert "\x1b" not in follower.trouble
    assert rounds(follower) == []
    assert not follower.look().is_behind


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / ROUNDS_FILE).mkdir()
    follower = Follower(tmp_path)
    follower.look()
    assert follower.trouble == "rounds.jsonl cannot be read: Is a directory"


def test_a_run_that_begins_anew_in_the_same_folder_is_read_from_its_beginning(
    tmp_path: Path,
) -> None:
    follower = Follower(tmp_path)
    with RunLog(tmp_path, MARKER) as log:
        for index in range(1, 4):
            log.append(entry(index))
    follower.look()
    (tmp_path / ROUNDS_FILE).unlink()
    assert follower.look().cut == ALL
    with RunLog(tmp_path, MARKER) as log:
        log.append(entry(1))
    assert rounds(follower) == [1]


def test_a_long_log_comes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pl.watch.follow.BLOCK_BYTES", 2_000)
    follower = Follower(tmp_path)
    follower._rounds.wanted = 100  # less than a line: it is read in ever larger parts
    with RunLog(tmp_path, MARKER) as log:
        for index in range(1, 21):
            log.append(entry(index))
    found: list[int] = []
    looks = 0
    while True:
        news = follower.look()
        found += [one.round for one in news.rounds]
        looks += 1
        if not news.is_behind:
            break
    assert found == list(range(1, 21))
    assert looks > 5


def test_a_file_that_has_not_changed_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = Follower(tmp_path)
    with RunLog(tmp_path, MARKER) as log:
        log.append(entry(1))
    follower.look()

    def refuse(*_: object) -> int:
        raise AssertionError("opened again")

    monkeypatch.setattr(os, "open", refuse)
    assert follower.look().rounds == ()


def test_a_process_that_has_ended_is_not_alive(tmp_path: Path) -> None:
    RunLog(tmp_path, MARKER).close()
    (tmp_path / "lock").write_text("4194999\n")  # beyond the largest number of a process
    assert not Follower(tmp_path).is_alive
    (tmp_path / "lock").write_text("nonsense")
    assert not Follower(tmp_path).is_alive
