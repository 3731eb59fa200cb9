"""What a page is told of runs: everything once, in order, and nothing that could do harm."""

import json
from pathlib import Path
from typing import Any

import msgspec

from p2pl import reasons
from p2pl.metric import Metric
from p2pl.run.log import Marker, RoundEntry, RunLog
from p2pl.watch import entries
from p2pl.watch.hub import Hub

ME, OTHER, LIAR = ("ab" * 32, "cd" * 32, "ef" * 32)
MAE = Metric("MAE", "mm", higher_is_better=False)


def marker(**more: object) -> Marker:
    """Returns whose run it is."""
    known = Marker(session_id="01" * 32, peer_id=ME, name="teeth", metrics=(MAE,), rounds=4)
    return msgspec.structs.replace(known, **more)


def told(hub: Hub, seen: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """Returns the events of a hub from a place on: (kind, value)."""
    found = []
    for event in hub.events[seen:]:
        kind, data, *rest = event.decode().split("\n")
        assert rest == ["", ""]
        found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_a_run_is_told_with_its_peers_as_numbers_and_reasons_in_plain_words(
    tmp_path: Path,
) -> None:
    with RunLog(tmp_path / "run", marker()) as log:
        log.append(
            RoundEntry(
                round=1,
                metrics={"MAE": 0.0},
                trust={ME: 0.75, OTHER: 0.25},
                rejected={LIAR: "direction: got cosine -1.00 to the own, allowed above -0.3"},
                bytes_by_peer={OTHER: (3, 4)},
                seconds_by_peer={OTHER: 0.5},
            )
        )
        hub = Hub([tmp_path / "run"])
        assert hub.look() is False
    events = told(hub)
    assert [kind for kind, _ in events] == ["waiting", "peers", "run", "peers", "rounds"]
    assert events[1][1]["ids"] + events[3][1]["ids"] == [ME, OTHER, LIAR]
    run, [entry] = events[2][1], events[4][1]["rounds"]
    assert (run["name"], run["peer"], run["rounds"], run["state"]) == ("teeth", 0, 4, "running")
    assert run["metrics"][0]["axis"] == "MAE (mm, lower is better)"
    assert entry["score"] == 0.0
    assert entry["trust"] == [0, 0.75, 1, 0.25]
    assert entry["bytes"] == [[1, [3, 4]]]
    assert entry["waits"] == [[1, 0.5]]
    [[peer, [plain, raw]]] = entry["rejected"]
    assert (peer, plain) == (2, reasons.plain(raw))
    assert plain == "Its model points in another direction, as a reversed or random one does."


def test_what_is_new_is_told_and_nothing_twice(tmp_path: Path) -> None:
    with RunLog(tmp_path, marker()) as log:
        log.append(RoundEntry(round=1))
        hub = Hub([tmp_path])
        hub.look()
        seen = len(hub.events)
        hub.look()
        assert len(hub.events) == seen
        log.append(RoundEntry(round=2))
        log.say("hello", 5.0)
        hub.look()
        assert [kind for kind, _ in told(hub, seen)] == ["rounds", "messages"]
        seen = len(hub.events)
        log.drop_after(1)
        hub.look()
        assert told(hub, seen) == [("cut", {"run": 0, "after": 1})]


def test_runs_of_a_folder_are_found_as_they_come_in_the_order_of_their_numbers(
    tmp_path: Path,
) -> None:
    times = iter(float(at) for at in range(0, 100, 10))
    hub = Hub([tmp_path / "out"], clock=lambda: next(times))
    hub.look()
    [(kind, waiting)] = told(hub)
    assert (kind, waiting["paths"]) == ("waiting", [str(tmp_path / "out")])
    for number in (10, 2):
        RunLog(tmp_path / f"out/seed-0/peer-{number}", marker(peer_id=f"{number:064}")).close()
    hub.look()
    events = told(hub)
    labels = [value["label"] for kind, value in events if kind == "run"]
    assert labels == ["seed-0/peer-2", "seed-0/peer-10"]
    assert ("waiting", {"paths": []}) in events


def test_the_run_beside_it_that_was_alone_is_shown_too(tmp_path: Path) -> None:
    RunLog(tmp_path / "teeth", marker()).close()
    RunLog(tmp_path / "teeth-alone", marker(alone=True)).close()
    hub = Hub([tmp_path / "teeth"])
    hub.look()
    runs = [value for kind, value in told(hub) if kind == "run"]
    assert [(one["label"], one["alone"]) for one in runs] == [
        ("teeth", False),
        ("teeth-alone", True),
    ]


def test_what_strangers_wrote_is_on_one_line_and_cut(tmp_path: Path) -> None:
    evil = "x\r\nevent: run\ndata: {}\n\n\x1b[2J" + "y" * 1_000
    with RunLog(tmp_path, marker(name=evil, metrics=(Metric(evil, evil),))) as log:
        log.append(RoundEntry(round=1, rejected={evil: f"refused: {evil}"}))
        log.say(evil, 1.0)
        hub = Hub([tmp_path])
        hub.look()
    events = told(hub)  # each of them is one event still
    text = json.dumps(events)
    assert "\\u001b" not in text
    assert "y" * 600 not in text
    assert [kind for kind, _ in events if kind == "run"] == ["run"]


def test_ids_that_are_made_for_nothing_cannot_fill_the_page() -> None:
    peers = entries.Peers()
    numbers = [peers.number(f"{number:064}") for number in range(entries.MAX_PEERS + 5)]
    assert numbers[-5:] == [None] * 5
    assert peers.all([f"{0:064}", f"{9_999_999:064}"]) == [0]


def test_reasons_that_are_not_known_stand_as_they_are() -> None:
    assert reasons.plain("a rule of one's own says no") == "a rule of one's own says no"
    assert reasons.plain("late: no answer after 3 s") == "Its model did not arrive in time."
    assert reasons.plain("out of step: of round 3, this peer is at 4").startswith("Its model is of")
    assert len(reasons.plain("z" * 1_000)) == reasons.MAX_CHARS


def test_every_reason_that_a_mixing_rule_or_a_pull_gives_has_plain_words() -> None:
    known = [
        "norm: got 30 times the own, allowed at most 10",
        "distance: got 9, allowed at most 3",
        "repeated: the parameters of its round 3",
        "harm: got 0.412 of the right class's probability, more than any other's",
        "unreachable: no connection",
        "size: got a norm of 3, allowed at most 2",
        "stale: of round 1, the peer's is 9",
        "apart: got cosine 0.99 against what others give, allowed 0.9",
    ]
    assert all(reasons.plain(one) != one for one in known)
