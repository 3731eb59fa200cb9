"""A report has the right numbers, pictures that open, and clear words for what it cannot show."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image
from rich.console import Console
from support.pictures import colours_in
from support.processes import PATIENCE_S

from p2pl.errors import InputError, RunDirError
from p2pl.report import plots
from p2pl.report.numbers import rejected_when_last_met, trust_when_last_met
from p2pl.report.run import Report, display_names, report_tables, write_report
from p2pl.run.log import ROUNDS_FILE, Marker, RoundEntry, RunLog, Summary

ALICE, BOB, CAROL = "a1" * 32, "b2" * 32, "c3" * 32
SESSION = "5e" * 32


def write_run(
    directory: Path,
    peer_id: str,
    rounds: list[RoundEntry],
    summary: Summary | None = None,
    session_id: str = SESSION,
) -> Path:
    marker = Marker(session_id=session_id, peer_id=peer_id, name="digits")
    with RunLog(directory, marker) as log:
        for entry in rounds:
            log.append(entry)
        if summary is not None:
            log.finish(summary)
    return directory


def two_runs(tmp_path: Path) -> list[Path]:
    """Returns Alice's finished run of 3 rounds, and Bob's of 2, who was killed."""
    alice = [
        RoundEntry(
            round=number,
            train_loss=1.0 / number,
            accuracy=accuracy,
            accuracy_before_mix=accuracy - 1,
            trust={ALICE: 0.6, BOB: 0.4},
            cohort=(BOB, CAROL),
            received=(BOB,),
            rejected={CAROL: f"late in round {number}"},
            bytes_in=100,
            bytes_out=50,
            bytes_by_peer={BOB: (100, 30), CAROL: (0, 20)},
            tracker_bytes=7,
            tracker_seconds=0.004,
            seconds=2.0,
        )
        for number, accuracy in ((1, 60.0), (2, 90.0), (3, 80.0))
    ]
    bob = [
        RoundEntry(round=number, train_loss=0.5, accuracy=70.0, trust={BOB: 1.0}, bytes_in=10)
        for number in (1, 2)
    ]
    finished = Summary(
        accuracy=80.0,
        rounds=3,
        peer_id=ALICE,
        samples=80,
        labels=("cat", "dog"),
        confusion=((8, 2), (1, 9)),
    )
    return [
        write_run(tmp_path / "alice", ALICE, alice, finished),
        write_run(tmp_path / "bob", BOB, bob),
    ]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Returns the report on `two_runs`, in `out` beside them; drawn once, for drawing is slow."""
    root = tmp_path_factory.mktemp("shown")
    return write_report(two_runs(root), root / "out")


def test_the_numbers_of_a_report_are_those_of_the_runs(shown: Report) -> None:
    numbers = json.loads(shown.numbers_file.read_text())
    assert numbers == msgspec.json.decode(msgspec.json.encode(shown.numbers))
    alice, bob = numbers["peers"]
    assert (numbers["session_id"], numbers["name"]) == (SESSION, "digits")
    assert alice == {
        "peer_id": ALICE,
        "directory": str(shown.page.parents[1] / "alice"),
        "state": "finished",
        "rounds": 3,
        "score": 80.0,
        "score_of_last_round": 80.0,
        "best_score": 90.0,
        "best_round": 2,
        "score_before_mix": 79.0,
        "metrics": {"accuracy": 80.0},
        "accuracy": 80.0,
        "accuracy_of_last_round": 80.0,
        "best_accuracy": 90.0,
        "accuracy_before_mix": 79.0,
        "train_loss": pytest.approx(1 / 3),
        "samples": 80,
        "epsilon": None,
        "bytes_in": 300,
        "bytes_out": 150,
        "tracker_bytes": 21,
        "tracker_seconds": pytest.approx(0.012),
        "seconds": 6.0,
    }
    assert (bob["state"], bob["rounds"], bob["accuracy"]) == ("unfinished", 2, 70.0)
    assert numbers["trust"] == {ALICE: {ALICE: 0.6, BOB: 0.4, CAROL: 0.0}, BOB: {BOB: 1.0}}
    assert numbers["rejections"] == [
        {
            "by": ALICE,
            "peer_id": CAROL,
            "rounds": 3,
            "last_round": 3,
            "last_reason": "late in round 3",
        }
    ]


def test_the_mean_is_over_those_that_finished(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)
    runs.append(
        write_run(
            tmp_path / "carol",
            CAROL,
            [RoundEntry(round=1, accuracy=60.0)],
            Summary(accuracy=60.0, rounds=1),
        )
    )
    spread = write_report(runs, tmp_path / "out").numbers.accuracy
    assert spread is not None
    assert (spread.peers, spread.mean, spread.std) == (2, 70.0, 10.0)
    assert (spread.worst, spread.best) == (60.0, 80.0)
    killed = write_report(runs[1:2], tmp_path / "out").numbers.accuracy
    assert killed is not None
    assert (killed.peers, killed.mean) == (1, 70.0)


def test_confusion_is_summed_and_scored_by_class(tmp_path: Path) -> None:
    one = [RoundEntry(round=1, accuracy=75.0)]
    runs = [
        write_run(tmp_path / "a", ALICE, one, Summary(confusion=((8, 2), (1, 9)))),
        write_run(
            tmp_path / "b", BOB, one, Summary(labels=("cat", "dog"), confusion=((6, 4), (3, 7)))
        ),
    ]
    numbers = write_report(runs, tmp_path / "out").numbers
    assert numbers.labels == ("cat", "dog")
    assert numbers.confusion == ((14, 6), (4, 16))
    cat, dog = numbers.classes
    assert (cat.label, cat.support) == ("cat", 20)
    assert cat.precision == pytest.approx(14 / 18)
    assert cat.recall == pytest.approx(14 / 20)
    assert cat.f1 == pytest.approx(28 / 38)
    assert (dog.precision, dog.recall) == pytest.approx((16 / 22, 16 / 20))
    assert dog.f1 == pytest.approx(32 / 42)
    assert numbers.macro is not None
    assert numbers.macro.f1 == pytest.approx((28 / 38 + 32 / 42) / 2)
    assert numbers.macro.support == 40


def test_every_picture_opens_and_is_on_the_page(shown: Report) -> None:
    assert set(shown.pictures) == {"accuracy", "loss", "trust", "confusion", "bytes"}
    page = shown.page.read_text()
    for kind, path in shown.pictures.items():
        assert len(colours_in(path)) > 2
        assert f"![{kind}]({path.name})" in page
    assert sorted(path.name for path in shown.page.parent.iterdir()) == sorted(
        [*(path.name for path in shown.pictures.values()), "report.json", "report.md"]
    )


def test_the_page_tells_what_happened(shown: Report) -> None:
    page = shown.page.read_text().splitlines()
    assert page[0] == "# digits"
    assert (
        "**Accuracy 80.0 %**, the mean over 1 peer "
        "(standard deviation 0.0, worst 80.0 %, best 80.0 %)." in page
    )
    assert (
        "| a1a1a1a1 | finished | 3 | 80.0 % | 90.0 % | 79.0 % | 0.333 | 80 "
        "| 300 bytes | 150 bytes | 6.0 s | 12 ms, 21 bytes |" in page
    )
    bob = (
        "| b2b2b2b2 | unfinished | 2 | 70.0 % | 70.0 % | - | 0.500 | - | 20 bytes | 0 bytes | 0 s |"
    )
    assert f"{bob} 0 ms, 0 bytes |" in page
    assert "| cat | 0.889 | 0.800 | 0.842 | 10 |" in page
    assert "| a1a1a1a1 | c3c3c3c3 | 3 | 3 | late in round 3 |" in page


def test_the_terminal_gets_the_tables_within_its_width(shown: Report) -> None:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(report_tables(shown))
    lines = [line.split() for line in captured.get().splitlines()]
    assert ["digits", "5e5e5e5e"] in lines
    assert [
        "a1a1a1a1",
        "finished",
        "3",
        "80.0",
        "%",
        "79.0",
        "%",
        "300",
        "bytes",
        "150",
        "bytes",
    ] in lines
    assert ["mean", "±", "std", "80.0", "±", "0.0", "%"] in lines
    assert ["cat", "0.889", "0.800", "0.842", "10"] in lines
    narrow = Console(width=20)
    with narrow.capture() as captured:
        narrow.print(report_tables(shown))
    assert max(map(len, captured.get().splitlines())) <= 20


def test_one_short_run_with_the_least_that_a_log_may_hold_can_be_shown(tmp_path: Path) -> None:
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / ROUNDS_FILE).write_text('{"round": 1, "accuracy": 50.0}\n')
    report = write_report([tmp_path / "peer"], tmp_path / "out")
    assert set(report.pictures) == {"accuracy"}
    assert report.numbers.peers[0].peer_id == "peer"
    assert report.numbers.macro is None
    assert "unknown" in report.page.read_text()
    with Console(width=80).capture():
        Console(width=80).print(report_tables(report))


def test_accuracy_that_only_the_summary_has_is_used(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", ALICE, [RoundEntry(round=1)], Summary(accuracy=42.0))
    report = write_report([run], tmp_path / "out")
    assert report.numbers.peers[0].accuracy == 42.0
    assert report.pictures == {}
    nothing = write_report(
        [write_run(tmp_path / "b", BOB, [RoundEntry(round=1)])], tmp_path / "out"
    )
    assert nothing.numbers.accuracy is None
    assert "**Accuracy" not in nothing.page.read_text()


def merged_on(directory: Path, peer_id: str = ALICE) -> Path:
    """Returns the run of a peer that went on merging while it served, after its last round."""
    rounds = [
        RoundEntry(round=number, accuracy=accuracy) for number, accuracy in ((1, 60), (2, 70))
    ]
    ended = Summary(accuracy=75.0, rounds=2, confusion=((3, 1), (0, 0)), labels=("cat", "dog"))
    return write_run(directory, peer_id, rounds, ended)


def test_the_accuracy_of_a_run_that_ended_is_that_of_its_final_model(tmp_path: Path) -> None:
    steady = write_run(
        tmp_path / "b", BOB, [RoundEntry(round=1, accuracy=85.0)], Summary(accuracy=85.0, rounds=1)
    )
    report = write_report([merged_on(tmp_path / "a"), steady], tmp_path / "out")
    moved, same = report.numbers.peers
    assert (moved.accuracy, moved.accuracy_of_last_round, moved.best_accuracy) == (75.0, 70.0, 75.0)
    assert (same.accuracy, same.accuracy_of_last_round) == (85.0, 85.0)
    assert report.numbers.accuracy is not None
    assert report.numbers.accuracy.mean == 80.0
    page = report.page.read_text()
    assert "| a1a1a1a1 | finished | 2 | 75.0 % | 75.0 % |" in page
    assert "model that it ended with" in page
    assert "a1a1a1a1 had 70.0 % after its last round and ended with 75.0 %." in page
    assert "b2b2b2b2 had" not in page
    console = Console(width=100)
    with console.capture() as captured:
        console.print(report_tables(report))
    assert "75.0 %" in captured.get()
    assert "70.0 %" not in captured.get()


def test_the_curve_of_a_run_that_ended_ends_in_its_final_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}

    def draw(curves: Mapping[str, plots.Curve], *, title: str, **_: object) -> bytes:
        drawn[title] = dict(curves)
        return b""

    monkeypatch.setattr(plots, "draw_curves", draw)
    killed = write_run(tmp_path / "b", BOB, [RoundEntry(round=1, accuracy=85.0)])
    write_report([merged_on(tmp_path / "a"), killed], tmp_path / "out")
    expected = {"a1a1a1a1": [(1, 60.0), (2, 75.0)], "b2b2b2b2": [(1, 85.0)]}
    assert drawn["Accuracy after mixing"] == expected


def test_one_run_shows_its_bytes_with_each_peer(tmp_path: Path) -> None:
    heights = []
    for others in ({}, {BOB: (60, 10)}, {BOB: (60, 10), CAROL: (40, 90)}):
        directory = tmp_path / str(len(others))
        entry = RoundEntry(round=1, bytes_in=100, bytes_out=100, bytes_by_peer=others)
        report = write_report([write_run(directory, ALICE, [entry])], tmp_path / "out")
        with Image.open(report.pictures["bytes"]) as image:
            heights.append(image.height)
    assert heights[0] == heights[1] < heights[2], "a bar for all of them, or for each"


def test_a_run_without_rounds_is_listed_among_others(tmp_path: Path) -> None:
    runs = [*two_runs(tmp_path), write_run(tmp_path / "carol", CAROL, [])]
    report = write_report(runs, tmp_path / "out")
    assert report.numbers.peers[2].rounds == 0
    assert report.numbers.peers[2].accuracy is None


def test_twenty_peers_and_many_classes_can_be_drawn(tmp_path: Path) -> None:
    ids = [f"{number:02d}" * 32 for number in range(20)]
    confusion = tuple(tuple(int(row == column) for column in range(50)) for row in range(50))
    runs = [
        write_run(
            tmp_path / peer[:2],
            peer,
            [
                RoundEntry(
                    round=number,
                    accuracy=50.0 + number,
                    train_loss=1.0,
                    trust={peer: 1.0},
                    bytes_in=10,
                )
                for number in range(1, 4 + index % 3)
            ],
            Summary(accuracy=53.0, rounds=3, confusion=confusion),
        )
        for index, peer in enumerate(ids)
    ]
    report = write_report(runs, tmp_path / "out")
    for path in report.pictures.values():
        assert len(colours_in(path)) > 2


def test_who_came_and_went_is_on_the_page(tmp_path: Path) -> None:
    rounds = [
        RoundEntry(round=1, time=0.0, joined=("cd" * 32,)),
        RoundEntry(round=2, time=90.0, left={"cd" * 32: 45.0}),
    ]
    run = write_run(tmp_path / "run", "ab" * 32, rounds)
    report = write_report([run], tmp_path / "out")
    assert "| cdcdcdcd | 1 | 1 | 1 | 45 s | 45 s | 50.0 % |" in report.page.read_text()
    assert report.numbers.churn[0].peer_id == "cd" * 32


def test_pictures_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    write_report(two_runs(tmp_path), tmp_path / "out")
    bare = write_run(tmp_path / "bare", CAROL, [RoundEntry(round=1, accuracy=1.0)])
    write_report([bare], tmp_path / "out")
    assert [path.name for path in sorted((tmp_path / "out").glob("*.png"))] == ["accuracy.png"]


@pytest.mark.parametrize("name", ["a|b", "<img src=x>", "$\\frac{", "日本", "x" * 90, "_hidden"])
def test_names_by_strangers_are_shown_as_they_are(tmp_path: Path, name: str) -> None:
    run = write_run(
        tmp_path / "a",
        ALICE,
        [RoundEntry(round=1, accuracy=1.0, trust={name: 1.0}, rejected={BOB: name})],
        Summary(labels=(name, "dog"), confusion=((1, 0), (0, 1))),
    )
    report = write_report([run], tmp_path / "out")
    assert {"accuracy", "trust", "confusion"} == set(report.pictures)
    page = report.page.read_text()
    assert "<img" not in page.replace("\\<img", "")
    assert all(
        line.count("|") - line.count("\\|") == 6 for line in page.splitlines() if "dog" in line
    )


@pytest.mark.parametrize(
    ("second", "session_id", "told"),
    [(BOB, "6f" * 32, f"session {'6f' * 32}"), (ALICE, SESSION, "another run of peer")],
)
def test_runs_that_do_not_belong_together_are_refused(
    tmp_path: Path, second: str, session_id: str, told: str
) -> None:
    one = [RoundEntry(round=1, accuracy=1.0)]
    runs = [
        write_run(tmp_path / "1", ALICE, one),
        write_run(tmp_path / "2", second, one, session_id=session_id),
    ]
    with pytest.raises(RunDirError, match=told):
        write_report(runs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_classes_are_added_up_by_name(tmp_path: Path) -> None:
    one = [RoundEntry(round=1)]
    first = Summary(labels=("cat", "dog"), confusion=((8, 2), (1, 9)))
    second = Summary(labels=("dog", "cat"), confusion=((60, 5), (7, 30)))
    runs = [
        write_run(tmp_path / "a", ALICE, one, first),
        write_run(tmp_path / "b", BOB, one, second),
    ]
    numbers = write_report(runs, tmp_path / "out").numbers
    assert (numbers.labels, numbers.confusion) == (("cat", "dog"), ((38, 9), (6, 69)))
    other = Summary(labels=("cat", "eel"), confusion=((1, 0), (0, 1)))
    runs.append(write_run(tmp_path / "c", CAROL, one, other))
    with pytest.raises(RunDirError, match=r"c: classes: got 'cat, eel', allowed cat, dog.*labels"):
        write_report(runs, tmp_path / "other")


@pytest.mark.parametrize(
    "confusion", [((1, 2),), ((1,), (2, 3)), ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
)
def test_a_confusion_matrix_that_does_not_fit_is_refused(
    tmp_path: Path, confusion: tuple[tuple[int, ...], ...]
) -> None:
    one = [RoundEntry(round=1, accuracy=1.0)]
    runs = [
        write_run(tmp_path / "1", ALICE, one, Summary(confusion=((1, 0), (0, 1)))),
        write_run(tmp_path / "2", BOB, one, Summary(confusion=confusion)),
    ]
    with pytest.raises(RunDirError, match="2 rows of 2"):
        write_report(runs, tmp_path / "out")


def test_there_must_be_something_to_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one"):
        write_report([], tmp_path / "out")
    with pytest.raises(InputError, match="completed round"):
        write_report([write_run(tmp_path / "a", ALICE, [])], tmp_path / "out")
    with pytest.raises(RunDirError, match=ROUNDS_FILE):
        write_report([tmp_path / "absent"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--out"):
        write_report(runs, tmp_path / "file")


def test_trust_is_that_of_the_last_meeting() -> None:
    rounds = [
        RoundEntry(round=1, trust={ALICE: 0.5, BOB: 0.5}, rejected={CAROL: "late"}),
        RoundEntry(round=2, trust={ALICE: 0.25, CAROL: 0.75}),
        RoundEntry(round=3, trust={ALICE: 1.0}, rejected={BOB: "lies"}),
    ]
    assert trust_when_last_met(rounds) == {ALICE: 1.0, BOB: 0.0, CAROL: 0.75}


def test_who_was_turned_down_is_forgotten_once_it_is_mixed_again() -> None:
    rounds = [
        RoundEntry(round=1, rejected={BOB: "late", CAROL: "harm"}, trust={ALICE: 1.0, CAROL: 0.0}),
        RoundEntry(round=2, trust={ALICE: 0.5, BOB: 0.5}),
    ]
    assert rejected_when_last_met(rounds[:1]) == {BOB, CAROL}
    assert rejected_when_last_met(rounds) == {CAROL}


def test_a_bad_peer_is_marked_and_counts_in_no_mean(tmp_path: Path) -> None:
    written = write_report(two_runs(tmp_path), tmp_path / "out", bad=[BOB])
    assert written.numbers.accuracy is not None
    assert written.numbers.accuracy.peers == 1
    assert [peer.peer_id for peer in written.numbers.peers] == [ALICE]
    assert BOB not in written.numbers.trust


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (["a" * 64, "b" * 64], ["a" * 8, "b" * 8]),
        (["a" * 64, "a" * 9 + "b" * 55], ["a" * 10, "a" * 9 + "b"]),
        (["peer-1", "peer-2", "peer-1"], ["peer-1", "peer-2"]),
        ([], []),
    ],
)
def test_peers_are_named_by_as_little_as_tells_them_apart(ids: list[str], names: list[str]) -> None:
    assert list(display_names(ids).values()) == names


def test_a_report_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import p2pl.report.run"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)
