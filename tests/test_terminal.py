"""What a person sees is right, fits the screen, and cannot be abused by strangers."""

import io
import math
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text
from support.processes import PATIENCE_S

from p2pl.errors import visible
from p2pl.metric import Metric, figure
from p2pl.run.log import LeftOut, RoundEntry, Summary
from p2pl.terminal import (
    Header,
    LiveView,
    PlainView,
    bar,
    cohort_table,
    duration,
    left_out_lines,
    open_view,
    percent,
    score_of,
    short_id,
    sparkline,
    summary_line,
)

ME, BOB, CAROL, DAVE = "a1" * 32, "b2" * 32, "c3" * 32, "d4" * 32
HEADER = Header(
    name="mnist-iid",
    session_id="5e" * 32,
    peer_id=ME,
    rounds=20,
    model="logreg",
    data="mnist iid 1/6",
)
ROUND = RoundEntry(
    round=7,
    train_loss=0.3123,
    accuracy=91.77,
    trust={ME: 0.5, BOB: 0.3, CAROL: 0.2},
    cohort=(BOB, CAROL, DAVE),
    received=(BOB, CAROL),
    rejected={DAVE: "no answer within 30 s"},
    bytes_in=125_600,
    bytes_out=94_200,
    tracker_bytes=1_300,
    tracker_seconds=0.012,
    seconds=1.4,
)
SUMMARY = Summary(
    accuracy=92.4, rounds=20, peers_met=(BOB, CAROL), bytes_in=2_500_000, seconds=28.2
)


def terminal(width: int = 100, height: int = 40) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=True)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def screen_of(view: LiveView, console: Console) -> list[str]:
    """Returns the lines of the view's screen, without colours."""
    with console.capture() as captured:
        console.print(view.screen())
    return [line.rstrip() for line in Text.from_ansi(captured.get()).plain.split("\n")[:-1]]


def plain_lines(*rounds: RoundEntry) -> list[str]:
    file = io.StringIO()
    with PlainView(HEADER, Console(file=file, width=40)) as view:
        for entry in rounds:
            view.round(entry)
    return file.getvalue().splitlines()[1:]


def test_a_plain_view_writes_one_line_a_round() -> None:
    file = io.StringIO()
    with open_view(HEADER, Console(file=file, width=40)) as view:
        view.message("waiting for peers: 3 of 6")
        view.message("waiting for peers: 3 of 6")
        view.training(7, 1, 10, 2.3)
        view.round(ROUND)
        view.finish(SUMMARY)
    assert file.getvalue().splitlines() == [
        "session mnist-iid 5e5e5e5e  peer a1a1a1a1  model logreg  data mnist iid 1/6  rounds 20",
        "waiting for peers: 3 of 6",
        "round 7/20  loss 0.312  accuracy 91.8 %  "
        "cohort 3 (rejected 1: d4d4d4d4 no answer within 30 s)  "
        "in 125.6 kB out 94.2 kB  1.4 s  ETA 18 s",
        "finished after round 20  accuracy 92.4 %  in 2.5 MB out 0 bytes  28 s  peers met 2",
    ]


def test_a_plain_view_says_what_is_not_known_and_what_privacy_cost() -> None:
    (line,) = plain_lines(RoundEntry(round=1, cohort=(BOB,), epsilon=2.5))
    assert line == (
        "round 1/20  loss -  accuracy -  epsilon 2.500  cohort 1 (rejected 0)  "
        "in 0 bytes out 0 bytes  0 s  ETA 0 s"
    )


def test_a_message_is_written_again_after_a_round() -> None:
    file = io.StringIO()
    with PlainView(HEADER, Console(file=file)) as view:
        view.message("waiting")
        view.round(ROUND)
        view.message("waiting")
    assert file.getvalue().count("waiting\n") == 2


def test_the_eta_is_the_rounds_left_at_the_pace_of_the_last_ten() -> None:
    slow = [RoundEntry(round=1, seconds=1_000.0)]
    fast = [RoundEntry(round=number, seconds=2.0) for number in range(2, 12)]
    lines = plain_lines(*slow, *fast)
    assert lines[0].endswith("ETA 5 h 16 min")  # 19 rounds of 1,000 s
    assert lines[-1].endswith("ETA 18 s")  # 9 rounds of 2 s


def test_more_rounds_than_the_session_has_leave_nothing_to_wait_for() -> None:
    (line,) = plain_lines(RoundEntry(round=25, seconds=3.0))
    assert line.endswith("ETA 0 s")


def test_a_plain_view_survives_an_encoding_without_the_letters() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    with open_view(HEADER, Console(file=file, force_terminal=True)) as view:
        assert isinstance(view, PlainView)
        view.message("später …")
    file.flush()
    assert raw.getvalue().endswith(b"sp?ter ?\n")


def test_a_terminal_gets_the_live_view() -> None:
    assert isinstance(open_view(HEADER, terminal()), LiveView)
    assert isinstance(open_view(HEADER, Console(file=io.StringIO())), PlainView)


def test_the_live_view_shows_the_round() -> None:
    console = terminal()
    view = LiveView(HEADER, console, now=lambda: 0.0)
    view.round(ROUND)
    view.training(8, 30, 100, 0.25)
    lines = screen_of(view, console)
    assert lines[0].startswith("p2pl · mnist-iid · session 5e5e5e5e · me a1a1a1a1")
    assert lines[1] == "logreg · mnist iid 1/6"
    assert lines[2].startswith("round 7/20  ETA 18 s")
    assert lines[3:5] == ["accuracy  91.8 %  ▁", "loss      0.312   ▁"]
    assert [line.split() for line in lines[6:11]] == [
        ["peer", "trust", "weight", "in", "round", "7"],
        ["me", "█" * 16, "0.500"],
        ["b2b2b2b2", "█" * 9 + "▋", "0.300", "received"],
        ["c3c3c3c3", "█" * 6 + "▍", "0.200", "received"],
        ["d4d4d4d4", "-", "rejected:", "no", "answer", "within", "30", "s"],
    ]
    assert lines[12:] == [
        "traffic  in 125.6 kB (+125.6 kB)  out 94.2 kB (+94.2 kB)",
        "tracker  answered in 12 ms, 1.3 kB",
        "round 8: training, step 30/100, loss 0.250",
    ]


def test_the_live_view_shows_a_metric_in_its_unit_and_which_way_is_better() -> None:
    console = terminal()
    metrics = (Metric("RMSE", "mm\x1b[2J", higher_is_better=False), Metric("R2"))
    view = LiveView(replace(HEADER, metrics=metrics), console, now=lambda: 0.0)
    for number, value in ((1, 20.0), (2, 12.5)):
        view.round(RoundEntry(round=number, metrics={"RMSE": value, "R2": 0.5}))
    lines = screen_of(view, console)
    assert "RMSE (lower is better)  12.500 mm?[2J  █▁" in lines
    assert "accuracy" not in "\n".join(lines)
    lost = RoundEntry(round=3, metrics={"RMSE": math.nan, "R2": 0.5})
    assert score_of(lost, metrics) == "RMSE -"


def test_what_nobody_declared_is_shown_by_its_name() -> None:
    (line,) = plain_lines(RoundEntry(round=1, metrics={"MAE": 0.25, "other": 3.0}))
    assert "  MAE 0.250  " in line


def test_the_live_view_adds_up_and_tells_when_the_tracker_is_silent() -> None:
    console = terminal()
    view = LiveView(HEADER, console)
    view.round(RoundEntry(round=1, bytes_in=100, tracker_seconds=0.5, accuracy=10.0))
    view.round(RoundEntry(round=2, bytes_in=50, accuracy=90.0, epsilon=1.5, cohort=(BOB,)))
    lines = screen_of(view, console)
    assert "accuracy  90.0 %  ▁█" in lines
    assert "traffic  in 150 bytes (+50 bytes)  out 0 bytes (+0 bytes)" in lines
    assert "tracker  no answer this round, going on with known peers" in lines
    assert "privacy  epsilon 1.500 spent" in lines
    assert any(line.startswith("b2b2b2b2") and "nothing received" in line for line in lines)


def test_a_run_alone_does_not_miss_a_tracker() -> None:
    console = terminal()
    view = LiveView(HEADER, console)
    view.round(RoundEntry(round=1, trust={ME: 1.0}))
    view.training(2, 1, 10, math.nan)
    lines = screen_of(view, console)
    assert not any(line.startswith("tracker") for line in lines)
    assert lines[-1] == "round 2: training, step 1/10"


def test_the_live_eta_counts_down_during_a_round_and_waits_when_it_is_late() -> None:
    clock = [0.0]
    console = terminal()
    view = LiveView(HEADER, console, now=lambda: clock[0])
    assert "ETA -" in screen_of(view, console)[2]
    view.round(RoundEntry(round=18, seconds=10.0))
    for passed_s, eta in ((0.0, "ETA 20 s"), (4.0, "ETA 16 s"), (60.0, "ETA 10 s")):
        clock[0] = passed_s
        assert eta in screen_of(view, console)[2]
    view.round(RoundEntry(round=20, seconds=10.0))
    assert "ETA 0 s" in screen_of(view, console)[2]


def test_the_live_view_leaves_its_last_screen_behind() -> None:
    console = terminal()
    with LiveView(HEADER, console) as view:
        view.message("waiting for peers: 3 of 6")
        view.round(ROUND)
        view.finish(SUMMARY)
    assert "finished after round 20" in written(console)
    assert not any("ETA" in line for line in screen_of(view, console))
    assert written(console).endswith("\x1b[?25h"), "the cursor is shown again"


def test_how_a_run_ended_is_cut_off_nowhere() -> None:
    view, console = LiveView(HEADER, terminal(width=60)), terminal(width=60)
    why = "harm: got 0.038 by all opinions, allowed about 0.02; own 0.041 over 7 rounds"
    view.finish(Summary(left_out={"a" * 64: LeftOut(rounds=(2, 3), times=2, why=why)}))
    shown = " ".join(" ".join(screen_of(view, console)).split())
    assert "…" not in shown
    assert "worse on examples that this peer holds back to test it (harm: got 0.038" in shown
    assert shown.endswith(" ".join(summary_line(Summary(), HEADER.metrics)[-1:]))


def test_a_large_cohort_fits_the_screen() -> None:
    console = terminal(height=20)
    view = LiveView(HEADER, console)
    peers = tuple(f"{number:064x}" for number in range(100))
    view.round(RoundEntry(round=1, cohort=peers, received=peers, trust={ME: 1.0}))
    lines = screen_of(view, console)
    assert len(lines) <= 20
    assert "and 95 more" in lines


@pytest.mark.parametrize("width", [1, 2, 5, 10, 20, 30, 40, 59, 60, 80, 200])
def test_no_terminal_is_too_narrow(width: int) -> None:
    console = terminal(width=width, height=1)
    view = LiveView(HEADER, console)
    view.message("waiting")
    assert max(len(line) for line in screen_of(view, console)) <= width
    view.round(ROUND)
    assert max(len(line) for line in screen_of(view, console)) <= width
    view.finish(SUMMARY)
    assert max(len(line) for line in screen_of(view, console)) <= width


@pytest.mark.parametrize("width", [30, 50])
def test_a_narrow_terminal_still_tells_who_is_trusted(width: int) -> None:
    console = terminal(width=width)
    view = LiveView(HEADER, console)
    view.round(ROUND)
    assert any(line.startswith("b2b2b2b2   0.300  received") for line in screen_of(view, console))


@given(text=st.text(max_size=80))
@settings(max_examples=40, deadline=None)
def test_what_strangers_write_cannot_break_the_screen(text: str) -> None:
    entry = RoundEntry(
        round=1,
        trust={text: 0.5},
        cohort=(text,),
        rejected={text: text, BOB: "[red]x[/red]\x1b[2J"},
    )
    header = Header(name=text, session_id=text, peer_id=ME, rounds=1, model=text, data=text)
    console = Console(file=io.StringIO(), width=60, height=40)
    live = LiveView(header, console)
    live.message(text)
    live.round(entry)
    with PlainView(header, console) as plain:
        plain.message(text)
        plain.round(entry)
    console.print(live.screen())
    shown = written(console)
    assert "\x1b" not in shown
    assert "[red]x[/red]?[2J" in shown
    assert all(char.isprintable() or char == "\n" for char in shown)


def test_the_view_may_be_told_things_while_it_draws() -> None:
    console = terminal()
    view = LiveView(HEADER, console)
    stop = threading.Event()

    def train() -> None:
        step = 0
        while not stop.is_set():
            step += 1
            view.training(1, step, step, 0.5)
            view.round(RoundEntry(round=step, accuracy=50.0, seconds=1.0))

    worker = threading.Thread(target=train)
    worker.start()
    try:
        for _ in range(20):
            screen_of(view, console)
    finally:
        stop.set()
        worker.join(timeout=10)
    assert not worker.is_alive()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (0.0004, "0 s"),
        (0.012, "12 ms"),
        (0.0994, "99 ms"),
        (0.0996, "0.1 s"),
        (1.4, "1.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (125.0, "2 min 5 s"),
        (3_599.6, "1 h 0 min"),
        (90_000.0, "25 h 0 min"),
    ],
)
def test_times_are_shown_in_the_unit_that_suits_them(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0, "0.000"), (0.3123, "0.312"), (-2.0, "-2.000"), (1.2e-5, "1.2e-05")],
)
def test_numbers_are_shown_with_three_digits(value: float | None, shown: str) -> None:
    assert figure(value) == shown


def test_accuracies_are_shown_in_percent() -> None:
    assert (percent(91.77), percent(None)) == ("91.8 %", "-")


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, ""), (0.5, "██"), (0.53125, "██▏"), (1.0, "████"), (7.0, "████"), (-1.0, "")],
)
def test_a_bar_is_drawn_in_eighths(share: float, shown: str) -> None:
    assert bar(share, 4) == shown


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([], ""),
        ([5.0], "▁"),
        ([1.0, 1.0], "▁▁"),
        ([0.0, 3.5, 7.0], "▁▅█"),
        ([0.0, None, 7.0], "▁ █"),
        ([None, None], "  "),
        ([9.0, 0.0, 9.0, 7.0, 9.0, 7.0], "▁██"),  # each column is the last of its pair
    ],
)
def test_a_sparkline_spans_lowest_to_highest(values: list[float | None], shown: str) -> None:
    assert sparkline(values, 3) == shown


def test_ids_are_cut_and_made_visible() -> None:
    assert short_id("ab" * 32) == "abababab"
    assert visible("a\x1b[31m\nb") == "a?[31m?b"


def test_the_view_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import p2pl.terminal, p2pl.run.log"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)


def test_a_run_ends_with_who_was_left_out_of_which_rounds_and_why() -> None:
    late = "late: 12 of 20 MiB after 30 s, and going on"
    summary = Summary(
        left_out={
            "b" * 64: LeftOut(rounds=(7,), times=1, why="stale\x1b[2J"),
            "a" * 64: LeftOut(rounds=(3, 5), times=2, why=late),
            **{str(one) * 64: LeftOut(rounds=(1,), times=1, why="gone") for one in range(5)},
        }
    )
    lines = left_out_lines(summary)
    assert "honest peers" in lines[0]  # what it means, before the first of them
    why = f"its model did not arrive in time ({late})"
    assert lines[1] == f"peer aaaaaaaa left out of rounds 3, 5, the last time: {why}"
    assert lines[2] == "peer 00000000 left out of round 1: gone"
    assert lines[-1] == "and 2 more peers: see summary.json"
    often = Summary(left_out={"b" * 64: LeftOut(rounds=(7, 8), times=30, why="stale\x1b[2J")})
    line = left_out_lines(often)[-1]
    assert line.startswith(
        "peer bbbbbbbb left out of rounds 7, 8 and 28 more, the last time: its model is of a round "
    )
    assert "\x1b" not in line
    assert left_out_lines(Summary()) == []


def test_who_is_left_alone_stands_in_the_table_of_the_round() -> None:
    entry = RoundEntry(round=3, resting={"c" * 64: "unreachable: no connection"})
    console = Console(width=100, file=io.StringIO())
    console.print(cohort_table(entry, "a" * 64, 9, narrow=False))
    assert "left alone for now: unreachable: no connection" in console.file.getvalue()  # type: ignore[attr-defined]
