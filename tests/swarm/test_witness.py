"""Peers of a real swarm whose tracker is a witness of their update logs."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from support.joins import Watching, run, session_file
from support.processes import Swarm

from p2pl.api.ledger import read_log
from p2pl.learning.checkpoint import build
from p2pl.protocol.session import SessionFile

pytestmark = pytest.mark.swarm


def test_the_tracker_cosigns_the_log_of_who_asks_it_and_of_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pl.exchange.join.LAST_WITNESS_S", 60.0)
    views = [Watching(), Watching()]
    with Swarm(tmp_path) as swarm:
        swarm.tracker("--witness", "witness.pem")
        file = session_file(swarm, rounds=3)
        session = msgspec.structs.replace(file.session, ledger=True)
        file = SessionFile("digits", session, build(session)[1], trackers=((swarm.url,),))

        async def both() -> None:
            asked = {"seeding_s": 1.0, "on_signals": False}
            await asyncio.gather(
                run(swarm, file, "peer-0", view=views[0], witness=True, **asked),
                run(swarm, file, "peer-1", view=views[1], **asked),
            )

        asyncio.run(both())
        key = load_pem_private_key((tmp_path / "witness.pem").read_bytes(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    tracker = key.public_key().public_bytes_raw()
    logs = [read_log(tmp_path / name, every=True) for name in ("peer-0", "peer-1")]
    sizes = [[head.size for head, by in log.cosigned if by.witness == tracker] for log in logs]
    # The head that the peer had when its rounds were over; the final model comes after them.
    assert sizes == [[len(logs[0].records) - 1], []]
    assert "witness" not in views[0].text.getvalue()
