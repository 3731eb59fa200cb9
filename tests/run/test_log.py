"""The run directory survives crashes, belongs to one run, and has one writer."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes import PATIENCE_S

from p2pl.errors import InputError, RunDirError
from p2pl.events import Merged, into
from p2pl.run.log import (
    LOCK_FILE,
    MARKER_FILE,
    ROUNDS_FILE,
    SUMMARY_FILE,
    Marker,
    RoundEntry,
    RunLog,
    Summary,
    read_run,
)

ALICE, BOB, CAROL = "a" * 64, "b" * 64, "c" * 64
MARKER = Marker(session_id="5" * 64, peer_id=ALICE, name="digits")

# Opens the directory it is given, says so, and appends rounds as they are asked for on its input.
WRITER = """
import sys
from pathlib import Path
from p2pl.events import Merged, into
from p2pl.run.log import Marker, RoundEntry, RunLog
log = RunLog(Path(sys.argv[1]), Marker(session_id="5" * 64, peer_id="a" * 64, name="digits"))
print("open", flush=True)
for number in sys.stdin:
    log.append(RoundEntry(round=int(number)))
    print("written", flush=True)
"""


def write_rounds(directory: Path, *rounds: int) -> None:
    with RunLog(directory, MARKER) as log:
        for number in rounds:
            log.append(RoundEntry(round=number))


def rounds_in(directory: Path) -> list[int]:
    return [found.round for found in read_run(directory).rounds]


def start_writer(directory: Path) -> subprocess.Popen[str]:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "open\n"
    return writer


def test_a_round_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = RoundEntry(
        round=1,
        train_loss=0.5,
        validation_loss=0.25,
        accuracy=91.5,
        accuracy_before_mix=88.0,
        trust={ALICE: 0.75, BOB: 0.25},
        cohort=(BOB, CAROL),
        received=(BOB,),
        rejected={CAROL: "no answer within 30 s"},
        bytes_in=1000,
        bytes_out=500,
        bytes_by_peer={BOB: (1000, 500)},
        tracker_bytes=64,
        tracker_seconds=0.5,
        seconds=1.5,
        samples=100,
        time=1_700_000_000.0,
        epsilon=2.0,
    )
    with RunLog(tmp_path, MARKER) as log:
        log.append(written)
    run = read_run(tmp_path)
    assert run.rounds == (written,)
    assert (run.session_id, run.peer_id, run.name) == ("5" * 64, ALICE, "digits")
    assert run.state == "unfinished"


def test_a_line_holds_the_fields_that_others_rely_on(tmp_path: Path) -> None:
    with RunLog(tmp_path, MARKER) as log:
        log.append(RoundEntry(round=1, accuracy=50.0))
    line = json.loads((tmp_path / ROUNDS_FILE).read_text())
    promised = {"round", "train_loss", "accuracy", "trust", "cohort", "received", "rejected"}
    promised |= {"bytes_in", "bytes_out", "seconds", "epsilon"}
    assert promised <= line.keys()
    assert line["epsilon"] is None


def test_numbers_that_json_cannot_hold_become_null(tmp_path: Path) -> None:
    with RunLog(tmp_path, MARKER) as log:
        log.append(RoundEntry(round=1, train_loss=math.nan, trust={ALICE: 1.0, BOB: math.inf}))
        log.finish(Summary(accuracy=math.nan))
    run = read_run(tmp_path)
    assert run.rounds[0].train_loss is None
    assert run.rounds[0].trust == {ALICE: 1.0}
    assert run.summary == Summary(accuracy=None)
    assert "NaN" not in (tmp_path / ROUNDS_FILE).read_text()


def test_a_reopened_log_goes_on_after_the_last_round(tmp_path: Path) -> None:
    write_rounds(tmp_path, 1, 2)
    with RunLog(tmp_path, MARKER) as log:
        assert log.last is not None
        assert log.last.round == 2
        log.append(RoundEntry(round=3))
    assert rounds_in(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("torn", ['{"round": 3, "train_l', "{", '{"round": 3}', "\0\0\0\0\n"])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: str) -> None:
    write_rounds(tmp_path, 1, 2)
    whole = (tmp_path / ROUNDS_FILE).read_bytes()
    (tmp_path / ROUNDS_FILE).write_bytes(whole + torn.encode())
    assert rounds_in(tmp_path) == [1, 2]
    assert (tmp_path / ROUNDS_FILE).read_bytes() == whole + torn.encode(), "reading changes nothing"
    write_rounds(tmp_path, 3)
    assert rounds_in(tmp_path) == [1, 2, 3]


@given(cut=st.integers(min_value=0, max_value=10_000))
@settings(max_examples=50)
def test_wherever_a_crash_cuts_the_file_the_whole_lines_stay(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    directory = tmp_path_factory.mktemp("run")
    write_rounds(directory, 1, 2, 3)
    raw = (directory / ROUNDS_FILE).read_bytes()
    kept = raw[: cut % (len(raw) + 1)]
    (directory / ROUNDS_FILE).write_bytes(kept)
    with RunLog(directory, MARKER) as log:
        assert log.totals.rounds == kept.count(b"\n")
    assert (directory / ROUNDS_FILE).read_bytes() == kept[: kept.rfind(b"\n") + 1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"round": 1}\ngarbage\n{"round": 2}\n', "line 2"),
        ('{"round": "one"}\n', "line 1"),
        ('{"round": 1, "accuracy": 120.0}\n', "line 1"),
        ('{"round": 1, "bytes_in": -1}\n', "line 1"),
        ("[]\n", "line 1"),
        ('{"round": 2}\n{"round": 2}\n', "line 2"),
        (b'{"round": 1, "rejected": {"a": "\xff"}}\n{"round": 2}\n', "line 1"),
        ('{"round": 1, "x": ' + "[" * 3_000 + "\n", "line 1"),
    ],
)
def test_a_damaged_log_is_refused_and_left_alone(
    tmp_path: Path, text: str | bytes, told: str
) -> None:
    write_rounds(tmp_path)
    raw = text.encode() if isinstance(text, str) else text
    (tmp_path / ROUNDS_FILE).write_bytes(raw)
    with pytest.raises(RunDirError, match=told):
        read_run(tmp_path)
    with pytest.raises(RunDirError, match=told):
        RunLog(tmp_path, MARKER)
    assert (tmp_path / ROUNDS_FILE).read_bytes() == raw


def test_fields_of_another_version_are_ignored(tmp_path: Path) -> None:
    write_rounds(tmp_path)
    (tmp_path / ROUNDS_FILE).write_text('{"round": 1, "accuracy": 90, "humidity": 0.4}\n')
    (tmp_path / SUMMARY_FILE).write_text('{"accuracy": 90, "rounds": 1, "mood": "good"}')
    run = read_run(tmp_path)
    assert run.rounds == (RoundEntry(round=1, accuracy=90.0),)
    assert run.summary == Summary(accuracy=90.0, rounds=1)


def test_rounds_later_than_the_saved_weights_are_dropped(tmp_path: Path) -> None:
    with RunLog(tmp_path, MARKER) as log:
        for number in (1, 2, 3, 4):
            log.append(RoundEntry(round=number, bytes_in=10))
        log.drop_after(2)
        assert log.last == RoundEntry(round=2, bytes_in=10)
        assert log.totals.bytes_in == 20
        log.append(RoundEntry(round=3))
    assert rounds_in(tmp_path) == [1, 2, 3]


def test_all_rounds_can_be_dropped(tmp_path: Path) -> None:
    with RunLog(tmp_path, MARKER) as log:
        log.append(RoundEntry(round=1))
        log.drop_after(0)
        assert log.last is None
        assert log.totals.rounds == 0
    assert (tmp_path / ROUNDS_FILE).read_bytes() == b""


def test_totals_include_the_rounds_before_a_restart(tmp_path: Path) -> None:
    with RunLog(tmp_path, MARKER) as log:
        log.append(RoundEntry(round=1, bytes_in=10, bytes_out=1, seconds=0.5, received=(BOB,)))
    with RunLog(tmp_path, MARKER) as log:
        log.append(
            RoundEntry(round=2, bytes_in=20, bytes_out=2, seconds=1.0, received=(BOB, CAROL))
        )
        totals = log.totals
    assert (totals.rounds, totals.bytes_in, totals.bytes_out) == (2, 30, 3)
    assert totals.seconds == 1.5
    assert totals.peers_met == {BOB, CAROL}


def test_who_was_merged_beside_the_rounds_was_met_before_and_after_a_restart(
    tmp_path: Path,
) -> None:
    with RunLog(tmp_path, MARKER) as log:
        log.append(RoundEntry(round=1, received=(BOB,)))
        into(log)(Merged((CAROL, CAROL), "merged"))
        assert log.totals.peers_met == {BOB, CAROL}
        into(log)(Merged((), "nothing of use"))
    with RunLog(tmp_path, MARKER) as log:
        assert log.totals.peers_met == {BOB, CAROL}
        log.drop_after(0)
        assert log.totals.peers_met == {CAROL}


def test_a_round_cannot_be_logged_twice(tmp_path: Path) -> None:
    with RunLog(tmp_path, MARKER) as log:
        log.append(RoundEntry(round=2))
        for number in (1, 2):
            with pytest.raises(ValueError, match="after round 2"):
                log.append(RoundEntry(round=number))
    assert rounds_in(tmp_path) == [2]


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    with RunLog(tmp_path, MARKER) as log:
        with pytest.raises(msgspec.ValidationError):
            log.append(RoundEntry(round=1, accuracy=101.0))
        with pytest.raises(msgspec.ValidationError):
            log.finish(Summary(rounds=-1))
    assert (tmp_path / ROUNDS_FILE).read_bytes() == b""
    assert not (tmp_path / SUMMARY_FILE).exists()


def test_the_summary_says_how_the_run_ended(tmp_path: Path) -> None:
    summary = Summary(
        accuracy=75.0,
        rounds=1,
        peer_id=ALICE,
        state="interrupted",
        session_id="5" * 64,
        labels=("cat", "dog"),
        confusion=((2, 1), (0, 1)),
    )
    with RunLog(tmp_path, MARKER) as log:
        log.append(RoundEntry(round=1))
        log.finish(summary)
    run = read_run(tmp_path)
    assert '\n  "confusion": [[2,1],[0,1]],\n' in (tmp_path / SUMMARY_FILE).read_text()
    assert run.summary == summary
    assert run.state == "interrupted"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [LOCK_FILE, MARKER_FILE, ROUNDS_FILE, SUMMARY_FILE]
    )


def test_a_run_that_goes_on_has_no_summary(tmp_path: Path) -> None:
    with RunLog(tmp_path, MARKER) as log:
        log.append(RoundEntry(round=1))
        log.finish(Summary(rounds=1, state="interrupted"))
    with RunLog(tmp_path, MARKER) as log:
        log.append(RoundEntry(round=2))
    assert read_run(tmp_path).summary is None


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (Marker(session_id="6" * 64, peer_id=ALICE), f"session {'5' * 64}"),
        (Marker(session_id="5" * 64, peer_id=BOB), f"peer {ALICE}"),
    ],
)
def test_a_run_directory_belongs_to_one_peer_in_one_session(
    tmp_path: Path, other: Marker, told: str
) -> None:
    write_rounds(tmp_path, 1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunDirError, match=told) as refused:
        RunLog(tmp_path, other)
    assert "give another --run-dir" in str(refused.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("alone", [True, False])
def test_what_was_learned_alone_enters_no_swarm_and_the_other_way_round(
    tmp_path: Path, alone: bool
) -> None:
    first, second = (msgspec.structs.replace(MARKER, alone=value) for value in (alone, not alone))
    RunLog(tmp_path, first).close()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunDirError, match="--alone") as refused:
        RunLog(tmp_path, second)
    assert "give another --run-dir" in str(refused.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    RunLog(tmp_path, first).close()


OLD_MARKER = {"session_id": MARKER.session_id, "peer_id": ALICE, "name": "digits"}
NOT_TOLD = {
    "metrics": [],
    "loss_unit": "nats",
    "data_mark": "",
    "merged": [],
    "reach": "",
    "rounds": 0,
    "epsilon_budget": None,
    "attack": "",
}  # of what is measured, as long as nobody has said it
COMPANY = [
    {"cohort": (BOB,)},
    {"received": (BOB,)},
    {"bytes_in": 5},
    {"bytes_out": 5},
    {"tracker_bytes": 5},
]


def write_old(directory: Path, *rounds: RoundEntry) -> None:
    """Writes a run directory whose marker does not say whether the run was alone."""
    with RunLog(directory, MARKER) as log:
        for entry in rounds:
            log.append(entry)
    (directory / MARKER_FILE).write_text(json.dumps(OLD_MARKER))


def as_told(alone: bool) -> Marker:
    return msgspec.structs.replace(MARKER, alone=alone)


def test_an_old_run_without_others_goes_on_alone_and_enters_no_swarm(tmp_path: Path) -> None:
    write_old(tmp_path, RoundEntry(round=1), RoundEntry(round=2))
    with pytest.raises(RunDirError, match=r"nobody else took part.*a run with others"):
        RunLog(tmp_path, as_told(alone=False))
    assert json.loads((tmp_path / MARKER_FILE).read_text()) == OLD_MARKER
    RunLog(tmp_path, as_told(alone=True)).close()
    assert rounds_in(tmp_path) == [1, 2]
    assert json.loads((tmp_path / MARKER_FILE).read_text()) == {
        **OLD_MARKER,
        **NOT_TOLD,
        "alone": True,
    }


@pytest.mark.parametrize("told", COMPANY, ids=lambda told: next(iter(told)))
def test_an_old_run_with_others_goes_on_with_them_and_not_alone(
    tmp_path: Path, told: dict[str, Any]
) -> None:
    write_old(tmp_path, RoundEntry(round=1), RoundEntry(round=2, **told), RoundEntry(round=3))
    with pytest.raises(RunDirError, match=r"got .a run with others.*a run with --alone"):
        RunLog(tmp_path, as_told(alone=True))
    RunLog(tmp_path, as_told(alone=False)).close()
    assert rounds_in(tmp_path) == [1, 2, 3]
    assert json.loads((tmp_path / MARKER_FILE).read_text()) == {
        **OLD_MARKER,
        **NOT_TOLD,
        "alone": False,
    }


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("has_log", [True, False])
def test_an_old_run_before_its_first_round_may_go_on_either_way(
    tmp_path: Path, alone: bool, has_log: bool
) -> None:
    write_old(tmp_path)
    if not has_log:
        (tmp_path / ROUNDS_FILE).unlink()
    RunLog(tmp_path, as_told(alone=alone)).close()
    with pytest.raises(RunDirError, match="--alone"):
        RunLog(tmp_path, as_told(alone=not alone))


def test_rounds_of_nobody_are_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / ROUNDS_FILE).write_text('{"round": 1}\n')
    with pytest.raises(RunDirError, match=MARKER_FILE):
        RunLog(tmp_path, MARKER)
    assert [path.name for path in tmp_path.iterdir()] == [ROUNDS_FILE]


def test_a_damaged_marker_is_refused(tmp_path: Path) -> None:
    (tmp_path / MARKER_FILE).write_text('{"session_id": 5}')
    with pytest.raises(RunDirError, match=MARKER_FILE):
        RunLog(tmp_path, MARKER)


def test_two_processes_cannot_use_one_run_directory(tmp_path: Path) -> None:
    with start_writer(tmp_path) as writer:
        with pytest.raises(RunDirError, match=f"in use by process {writer.pid}"):
            RunLog(tmp_path, MARKER)
        assert rounds_in(tmp_path) == [], "reading needs no lock"
        writer.kill()
        writer.wait(timeout=10)
    with RunLog(tmp_path, MARKER):
        pass  # a killed process holds nothing


def test_one_process_cannot_open_a_run_directory_twice(tmp_path: Path) -> None:
    with RunLog(tmp_path, MARKER), pytest.raises(RunDirError, match=f"process {os.getpid()}"):
        RunLog(tmp_path, MARKER)


def test_a_killed_process_loses_no_round_that_it_logged(tmp_path: Path) -> None:
    with start_writer(tmp_path) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        for number in (1, 2, 3):
            writer.stdin.write(f"{number}\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == "written\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait(timeout=10)
    assert rounds_in(tmp_path) == [1, 2, 3]


def test_a_directory_that_was_refused_is_free_again(tmp_path: Path) -> None:
    write_rounds(tmp_path, 1)
    whole = (tmp_path / ROUNDS_FILE).read_bytes()
    (tmp_path / ROUNDS_FILE).write_bytes(b"garbage\n" + whole)
    with pytest.raises(RunDirError):
        RunLog(tmp_path, MARKER)
    (tmp_path / ROUNDS_FILE).write_bytes(whole)
    write_rounds(tmp_path, 2)
    assert rounds_in(tmp_path) == [1, 2]


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    with pytest.raises(RunDirError, match="Not a directory"):
        RunLog(tmp_path / "file", MARKER)
    with pytest.raises(RunDirError, match=ROUNDS_FILE):
        read_run(tmp_path / "file")


def test_a_file_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / ROUNDS_FILE).mkdir()
    (tmp_path / MARKER_FILE).write_bytes(msgspec.json.encode(MARKER))
    with pytest.raises(RunDirError, match="Is a directory"):
        RunLog(tmp_path, MARKER)
    (tmp_path / ROUNDS_FILE).rmdir()
    write_rounds(tmp_path, 1)
    (tmp_path / SUMMARY_FILE).mkdir()
    with pytest.raises(RunDirError, match="Is a directory"):
        read_run(tmp_path)
    with RunLog(tmp_path, MARKER) as log:
        with pytest.raises(RunDirError):
            log.append(RoundEntry(round=2))
        with pytest.raises(InputError, match=SUMMARY_FILE):
            log.finish(Summary())


def test_a_directory_that_cannot_be_claimed_is_let_go(tmp_path: Path) -> None:
    (tmp_path / MARKER_FILE).symlink_to("nowhere")
    for _ in range(2):  # the second time would say "in use" if the lock were still held
        with RunLog(tmp_path, MARKER):
            pass
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").mkdir()
    with pytest.raises(RunDirError, match="Is a directory"):
        RunLog(tmp_path, MARKER)


def test_a_directory_that_is_no_run_directory_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RunDirError, match=ROUNDS_FILE):
            read_run(path)


# A file size limit stands in for a full disk: writes are cut short in the same way.
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from p2pl.errors import RunDirError
from p2pl.events import Merged, into
from p2pl.run.log import Marker, RoundEntry, RunLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
directory = Path(sys.argv[1])
with RunLog(directory, Marker(session_id="5", peer_id="a")) as log:
    log.append(RoundEntry(round=1))
    size = (directory / "rounds.jsonl").stat().st_size
    for room in (10, 0):  # a part of the line fits, then nothing
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))
        try:
            log.append(RoundEntry(round=2))
        except RunDirError as fault:
            print(fault)
        print((directory / "rounds.jsonl").stat().st_size - size)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    log.append(RoundEntry(round=2))
"""


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    first, first_rest, second, second_rest = done.stdout.splitlines()
    assert "full disk at round 2" in first
    assert "File too large" in second
    assert (first_rest, second_rest) == ("0", "0")
    assert rounds_in(tmp_path) == [1, 2]


def test_a_directory_that_names_nobody_goes_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "peer-3").mkdir()
    (tmp_path / "peer-3" / ROUNDS_FILE).write_text('{"round": 1}\n')
    run = read_run(tmp_path / "peer-3")
    assert (run.peer_id, run.session_id, run.summary) == ("peer-3", "", None)
