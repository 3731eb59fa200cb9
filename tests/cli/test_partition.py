"""`p2pl partition`: who would hold what."""

import json
from pathlib import Path

from support.commands import p2pl


def test_partition_shows_who_holds_what(tmp_path: Path) -> None:
    command = ("partition", "--data", "digits", "--peers", 5, "--partition", "classes:2")
    done = p2pl(*command, "--plot", tmp_path / "shards.png")
    assert done.returncode == 0, done.stderr
    for words in ("classes:2, seed 0: 1438 rows among 5 peers", "4/5", "picture", "sha256"):
        assert words in done.stdout
    assert (tmp_path / "shards.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads(p2pl(*command, "--json").stdout)
    assert figures["sha256"] in done.stdout
    # A saved hash must stay true: the same rows for the same words, for ever.
    assert figures["sha256"].startswith("36e96e3d24691bd5"), figures["sha256"]
    assert figures["rows"] == sum(figures["rows_by_peer"]) == 1_438
    assert [sum(count > 0 for count in row) for row in figures["counts"]] == [2] * 5
    assert [sum(row) for row in figures["counts"]] == figures["rows_by_peer"]


def test_a_partition_that_there_is_not_is_refused() -> None:
    done = p2pl("partition", "--data", "digits", "--peers", 5, "--partition", "magic")
    assert (done.returncode, "got 'magic'" in done.stderr) == (2, True)
