"""`p2pl audit --security`: figures of a session and of runs that can be checked by hand."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.commands import p2pl
from support.processes import ROOT

from p2pl.api.security import read_audit, security
from p2pl.errors import InputError
from p2pl.learning.checkpoint import build
from p2pl.protocol.session import Mixing, SessionFile, read_spec
from p2pl.report.security import Security
from p2pl.run.log import SESSION_FILE, Marker, RoundEntry, RunLog, Summary

ANN, BEN, EVE = "a1" * 32, "b2" * 32, "e5" * 32
# What Eve is given in each of four rounds: she is found after the second one.
OF_EVE = {ANN: (0.4, 0.2, 0.0, 0.0), BEN: (0.3, 0.0, 0.0, 0.0)}


def session_file(**changes: Any) -> SessionFile:  # noqa: ANN401  # fields of a session
    """Returns a session whose mixes are of four, with a tracker over plain HTTP."""
    session = read_spec((ROOT / "torrentfiles" / "digits.toml").read_text()).session()
    session = msgspec.structs.replace(session, **changes)
    return SessionFile("digits", session, build(session)[1], trackers=(("http://127.0.0.1:1",),))


def written(folder: Path, file: SessionFile) -> list[Path]:
    """Returns the run directories of Ann, Ben and Eve, who says that she flips signs."""
    for who, given in OF_EVE.items():
        other = BEN if who == ANN else ANN
        marker = Marker(session_id=file.id, peer_id=who, name="digits")
        with RunLog(folder / who[:2], marker) as log:
            for index, weight in enumerate(given, start=1):
                rest = (1 - weight) / 2
                trust = {who: rest, other: rest, **({EVE: weight} if weight else {})}
                entry = RoundEntry(
                    round=index,
                    cohort=(other, EVE),
                    trust=trust,
                    epsilon=index / 2,
                    bytes_in=200,
                    bytes_out=100,
                    tracker_bytes=100,
                )
                log.append(entry)
            log.finish(Summary(rounds=4, delta=1e-5))
        (folder / who[:2] / SESSION_FILE).write_bytes(file.encode())
    marker = Marker(session_id=file.id, peer_id=EVE, attack="sign-flip")
    with RunLog(folder / "e5", marker) as log:
        log.append(RoundEntry(round=1))
    return [folder / name for name in ("a1", "b2", "e5")]


def values(found: Security) -> dict[str, object]:
    """Returns the figures by name."""
    return {one.name: one.value for one in found.measures}


def test_the_figures_of_runs_are_those_that_their_logs_give(tmp_path: Path) -> None:
    found = security(written(tmp_path, session_file()))
    assert security([tmp_path]) == found  # the folder of these runs
    assert (found.runs, found.peers, found.faulty) == (2, 3, 1)
    shown = values(found)
    others = [0.4, 0.4, 0.5, 0.5, 0.35, 0.5, 0.5, 0.5]  # the largest weight of another, by round
    assert shown["peer_weight_mean"] == pytest.approx(sum(others) / 8, abs=1e-6)
    assert shown["peer_weight_max"] == 0.5
    assert shown["bad_weight_mean"] == pytest.approx((0.4 + 0.2 + 0.3) / 8, abs=1e-6)
    assert shown["bad_weight_last"] == 0.0
    assert shown["bytes_authenticated"] == 0.75  # the tracker answers over HTTP
    assert (shown["epsilon"], shown["delta"]) == (2.0, 1e-5)
    assert (shown["equivocation_checked"], shown["versions_committed"]) == (False, 0.0)
    assert (shown["admission"], shown["identities_for_half"]) == ("open", 2)
    by_attack = {one.attack: one for one in found.detection}
    assert (by_attack["sign-flip"].rounds, by_attack["sign-flip"].measured) == (2, True)
    assert by_attack["two histories"].rounds is None  # no log, so nobody looks for them
    assert security(written(tmp_path / "two", session_file()), faulty=2).faulty == 2


def test_who_still_has_a_weight_at_the_end_was_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OF_EVE, BEN, (0.3, 0.3, 0.3, 0.3))
    found = security(written(tmp_path, session_file()))
    (flipped,) = [one for one in found.detection if one.attack == "sign-flip"]
    assert (flipped.rounds, flipped.measured) == (None, True)
    assert values(found)["bad_weight_last"] == 0.3


@pytest.mark.parametrize(
    ("rule", "single", "two"),
    [("uniform", 1 / 4, 2 / 4), ("samples", 16 / 19, 32 / 34), ("none", 0.0, 0.0)],
)
def test_a_rule_of_fixed_weights_bounds_what_one_peer_and_two_can_have(
    rule: str, single: float, two: float, tmp_path: Path
) -> None:
    path = tmp_path / "digits.torrent"
    path.write_bytes(session_file(mixing=Mixing(rule=rule), ledger=True).encode())
    found = security([path], faulty=2)
    assert (found.runs, found.peers) == (0, 6)
    shown = values(found)
    assert shown["peer_weight_by_rule"] == pytest.approx(single, abs=1e-6)
    assert shown["f_weight_by_rule"] == pytest.approx(two, abs=1e-6)
    assert (shown["equivocation_checked"], shown["versions_committed"]) == (True, 1.0)
    by_attack = {one.attack: one for one in found.detection}
    assert by_attack["two histories"].rounds == 2
    assert not any(one.measured for one in found.detection)


def test_the_command_prints_a_table_and_the_same_as_json(tmp_path: Path) -> None:
    runs = written(tmp_path, session_file())
    audit = tmp_path / "audit.json"
    audit.write_text(json.dumps({"bound": 0.4, "confidence": 0.95, "verdict": "no contradiction"}))
    done = p2pl("audit", "--security", *runs, "--privacy-audit", audit)
    assert done.returncode == 0, done.stderr
    assert "peer_weight_mean" in done.stdout
    assert "sign-flip" in done.stdout
    told = json.loads(p2pl("audit", "--security", "--json", *runs, "--privacy-audit", audit).stdout)
    assert told["format"] == "p2pl security 1"
    by_name = {one["name"]: one for one in told["measures"]}
    assert by_name["epsilon_audited"]["value"] == 0.4
    assert by_name["peer_weight_max"]["source"] == "run log"


def test_what_is_no_session_and_no_run_is_told(tmp_path: Path) -> None:
    runs, empty = written(tmp_path, session_file()), tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="runs of attackers alone"):
        security(runs[2:])
    with pytest.raises(InputError, match="allowed a session file, run directories, or a folder"):
        security([empty])
    other = written(tmp_path / "other", session_file(seed=9))
    with pytest.raises(InputError, match="got 'runs of 2 sessions'"):
        security([runs[0], other[0]])
    assert p2pl("audit", "nothing.toml").returncode == 2
    spoilt = tmp_path / "spoilt.json"
    spoilt.write_text("[]")
    done = p2pl("audit", "--security", runs[0], "--privacy-audit", spoilt)
    assert (done.returncode, "what `p2pl audit --json` prints" in done.stderr) == (2, True)
    for bound in ("NaN", "-1", "1e999", "1" + 400 * "0"):
        spoilt.write_text(f'{{"bound": {bound}, "confidence": 0.95, "verdict": "x"}}')
        with pytest.raises(InputError, match="what `p2pl audit --json` prints"):
            security([runs[0]], audited=read_audit(spoilt))
    with pytest.raises(InputError, match=r"--faulty: got 3, allowed 0\.\.2"):
        security(runs, faulty=3)
