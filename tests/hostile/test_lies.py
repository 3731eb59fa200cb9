"""Every lie of a hostile peer against every kind of exchange: the honest finish as they should.

Real peers over real sockets, with a real tracker; the liar is one of them, with one lie.
"""

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from safetensors import safe_open
from support.hostile import CODEC, LIES, OF_LOGS, Hostile, Lie, hostile
from support.joins import Abreast, Watching, run, session_file
from support.processes import PATIENCE_S, Swarm

from p2pl.attacks.kinds import parse
from p2pl.learning.checkpoint import build
from p2pl.network.keys import Identity
from p2pl.protocol.invitation import Invitation, invite
from p2pl.protocol.session import Gossip, Mixing, Raft, SessionFile, Wire
from p2pl.run.log import Summary, read_run

pytestmark = pytest.mark.swarm
KINDS = ("cohort", "gossip", "braintorrent", "raft")
ROUNDS = 3
HONEST = 3
# Told by a model, or by whoever serves one: nobody mixes it in.
USELESS: tuple[Lie, ...] = (
    *("size", "digest", "values", "codes", "uncommitted", "reason", "busy", "silent"),
    *("relay", "uninvited"),
)
# What the tracker answers, beside 200; the last one until it was told of the session.
REFUSALS: dict[Lie, set[int]] = {"key": {422, 429}, "uninvited": {403, 428, 429}}
AUTHOR = Identity.generate()


def session_of(
    swarm: Swarm,
    kind: str,
    seed: int,
    rounds: int = ROUNDS,
    members: tuple[str, ...] = (),
    lie: Lie | None = None,
) -> tuple[SessionFile, bytes]:
    """Returns a session that nobody else has, one where a lie can be told; and its checkpoint."""
    is_private = lie == "uninvited"
    file = session_file(
        swarm,
        kind=kind,
        rounds=rounds,
        cohort=4,
        min_peers=HONEST + (kind not in ("raft", "braintorrent") and not is_private),
        wait_s=0.5,
        pull_deadline_s=2.0,
        start_deadline_s=60.0,
        gossip=Gossip(mode="push-pull"),
        raft=Raft(members=members),
    )
    rule = {"raft": "samples", "gossip": "age"}.get(kind, "uniform")
    session = msgspec.structs.replace(
        file.session,
        seed=seed,
        mixing=Mixing(rule=rule),
        wire=Wire(compression=CODEC if lie == "codes" else "none"),
        ledger=lie in OF_LOGS,
        private=is_private,
        author=AUTHOR.public_key.hex() if is_private else "",
    )
    payload, promised = build(session)
    return replace(file, session=session, checkpoint=promised), payload


async def among(
    swarm: Swarm, file: SessionFile, payload: bytes, lies: Sequence[Lie]
) -> tuple[list[Summary], list[Hostile], str]:
    """Returns how the honest peers ended, the liars, and all that the honest were shown."""
    views, abreast = [Watching() for _ in range(HONEST)], Abreast(HONEST)
    async with contextlib.AsyncExitStack() as stack:
        liars = [
            await stack.enter_async_context(hostile(lie, file, swarm.url, payload)) for lie in lies
        ]
        runs = []
        for number, view in enumerate(views):
            if number == HONEST - 1:  # the liars are among the first
                await until_met(liars, number)
            name, sinks = f"peer-{number}", [abreast.sink(number)]
            invitation = invited(swarm, file, name) if file.session.private else None
            one = run(
                swarm, file, name, view=view, sinks=sinks, seeding_s=1.0, invitation=invitation
            )
            runs.append(asyncio.create_task(one))
        done = list(await asyncio.gather(*runs))
    return done, liars, "".join(view.text.getvalue() for view in views)


def invited(swarm: Swarm, file: SessionFile, name: str) -> Invitation:
    """Returns the author's invitation of a peer, whose key is made."""
    (swarm.folder / name).mkdir()
    identity = Identity.load_or_create(swarm.folder / name / "identity.pem")
    return invite(AUTHOR.private_key, session_id=file.id, peer_id=identity.peer_id)


async def until_met(liars: Sequence[Hostile], count: int) -> None:
    """Returns when the liars know so many others, each liar of those that can know any."""
    async with asyncio.timeout(PATIENCE_S):
        while any(one.lie == "pledge" and len(one.others) < count for one in liars):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def ids_of(done: Sequence[Summary]) -> set[str]:
    return {summary.peer_id for summary in done}


def check(swarm: Swarm, done: Sequence[Summary], rounds: int = ROUNDS) -> None:
    """Fails unless the honest did all rounds, not alone, and learned."""
    ids = ids_of(done)
    for number, summary in enumerate(done):
        assert (summary.state, summary.rounds) == ("finished", rounds)
        assert summary.accuracy is not None
        assert summary.accuracy > 70
        assert ids & set(summary.peers_met)
        entries = read_run(swarm.folder / f"peer-{number}").rounds
        assert entries[-1].round == rounds


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_lie_costs_the_liar(swarm: Swarm, kind: str, lie: Lie) -> None:
    file, payload = session_of(swarm, kind, seed=1 + LIES.index(lie), lie=lie)
    done, (liar,), shown = asyncio.run(among(swarm, file, payload, [lie]))
    check(swarm, done)
    assert all(line.isprintable() for line in shown.splitlines())
    assert set(liar.refused) <= REFUSALS.get(lie, {429})
    if lie in ("relay", "uninvited"):
        assert liar.asked == 0
    if lie in ("codes", *OF_LOGS) and kind != "raft":  # its models are asked for by their names
        assert liar.asked > 0
    if lie == "uninvited":
        assert 403 in liar.refused
    for number in range(HONEST) if lie in USELESS else ():
        entries = read_run(swarm.folder / f"peer-{number}").rounds
        assert not any(entry.trust.get(liar.identity.peer_id) for entry in entries)
    for number in range(HONEST):
        for saved in known_to(swarm.folder / f"peer-{number}"):
            assert saved["curve_key"] != "#" * 40
            assert saved["host"] == "127.0.0.1"


def known_to(run_dir: Path) -> list[dict[str, object]]:
    """Returns the addresses that a peer has saved."""
    with safe_open(run_dir / "state.safetensors", framework="pt") as opened:
        state = json.loads(opened.metadata()["state"])
    return list(state["directory"]["known"])


@pytest.mark.parametrize("kind", ["cohort", "gossip"])
def test_more_liars_than_honest_peers_neither_end_a_run_nor_send_newcomers_to_its_end(
    swarm: Swarm, kind: str
) -> None:
    file, payload = session_of(swarm, kind, seed=50, rounds=6)
    done, _, _ = asyncio.run(among(swarm, file, payload, ["round"] * 8))
    check_rounds(swarm, done, 6)


def check_rounds(swarm: Swarm, done: Sequence[Summary], rounds: int) -> None:
    """Fails unless every honest peer did every round."""
    for number, summary in enumerate(done):
        assert (summary.state, summary.rounds) == ("finished", rounds)
        entries = read_run(swarm.folder / f"peer-{number}").rounds
        assert [entry.round for entry in entries] == list(range(1, rounds + 1))


def test_a_raft_guest_s_huge_result_does_not_reach_the_mean(swarm: Swarm) -> None:
    names = [f"peer-{number}" for number in range(HONEST)]
    identities = []
    for name in names:
        (swarm.folder / name).mkdir()
        identities.append(Identity.load_or_create(swarm.folder / name / "identity.pem"))
    members = tuple(one.peer_id for one in identities)
    file, _ = session_of(swarm, "raft", seed=51, rounds=6, members=members)
    attack, _ = parse("huge:1:1e30")

    async def all_four() -> list[Summary]:
        runs = [run(swarm, file, name, seeding_s=1.0) for name in names]
        guest = asyncio.create_task(run(swarm, file, "guest-0", attack=attack, seeding_s=1.0))
        done = list(await asyncio.gather(*runs))
        guest.cancel()
        await asyncio.gather(guest, return_exceptions=True)
        return done

    check(swarm, asyncio.run(all_four()), 6)
