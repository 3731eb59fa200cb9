"""The dashboard of deploy/ asks for metrics that trackers and relays have."""

import json
import re
from types import SimpleNamespace
from typing import Any, cast

from prometheus_client import generate_latest
from support.processes import ROOT

from p2pl.rendezvous.board import Board, Policy
from p2pl_tracker.metrics import Metrics
from p2pl_tracker.relay import registry_of
from p2pl_tracker.swarm import Totals

DASHBOARD = json.loads((ROOT / "deploy" / "grafana.json").read_text())


def test_each_panel_asks_for_what_there_is() -> None:
    metrics = Metrics()
    metrics.count_answer("update", 0.001)
    metrics.count_refusal(403)
    board = Board(Policy(is_open=True), now=lambda: 0.0, wall=lambda: 0.0)
    relay = cast("Any", SimpleNamespace(board=board))
    text = metrics.text(Totals(1, 1)) + generate_latest(registry_of(relay))
    there = set(re.findall(r"^(p2pl_\w+)", text.decode(), re.MULTILINE))
    asked: set[str] = set()
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            asked |= set(re.findall(r"p2pl_\w+", target["expr"]))
    assert asked <= there
    assert len(asked) >= 8


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (at["x"] + right, at["y"] + down) for right in range(at["w"]) for down in range(at["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
