"""The stores against a model that is too simple to be wrong: a dictionary swept each time."""

import asyncio
import json
import random
import secrets
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from support import valkey
from support.announces import Clock, Speaker

from p2pl.errors import AnnounceError
from p2pl.protocol.announce import Counts, Event
from p2pl_tracker.store import SharedStore, connected
from p2pl_tracker.swarm import Limits, MemoryStore, Pool, Store, Totals

TTL_S = 100.0
MAX_PEERS = 5
MAX_PER_SESSION = 4
MAX_PER_HOST = 3
LIMITS = Limits(
    ttl_s=TTL_S,
    min_interval_s=0.0,
    max_peers=MAX_PEERS,
    max_peers_per_session=MAX_PER_SESSION,
    max_peers_per_address=MAX_PER_HOST,
)
SESSIONS = ("aa" * 32, "bb" * 32)
HOSTS = ("10.0.0.1", "10.0.0.2", "2001:db8::1")


@dataclass
class Entry:
    host: str
    until_s: float
    training: bool


class StoreModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.runner = asyncio.Runner()
        self.store = self.make()
        self.speakers = {
            (session, number): Speaker(number, session=session)
            for session in SESSIONS
            for number in range(4)
        }
        self.alive: dict[tuple[str, int], Entry] = {}

    def make(self) -> Store:
        return MemoryStore(LIMITS, now=self.clock, rng=random.Random(0))

    def teardown(self) -> None:
        self.runner.close()

    def sweep(self) -> None:
        now = self.clock()
        self.alive = {who: entry for who, entry in self.alive.items() if entry.until_s > now}

    def others(self, who: tuple[str, int]) -> set[int]:
        return {
            self.speakers[other].port for other in self.alive if other[0] == who[0] and other != who
        }

    def has_room(self, who: tuple[str, int], host: str) -> bool:
        in_session = sum(other[0] == who[0] for other in self.alive)
        at_host = sum(entry.host == host for entry in self.alive.values())
        return (
            len(self.alive) < MAX_PEERS and in_session < MAX_PER_SESSION and at_host < MAX_PER_HOST
        )

    @rule(
        session=st.sampled_from(SESSIONS),
        number=st.integers(0, 3),
        host=st.sampled_from(HOSTS),
        event=st.sampled_from(["started", "update", "completed"]),
        numwant=st.integers(0, 5),
    )
    def announce(self, session: str, number: int, host: str, event: Event, numwant: int) -> None:
        who = (session, number)
        self.sweep()
        welcome = self.runner.run(
            self.store.announce(self.speakers[who].says(event, numwant), host)
        )
        before = self.alive.pop(who, None)
        stays = before is not None and before.host == host
        if stays or self.has_room(who, host):
            was_training = before.training if before else True
            training = event == "started" or (was_training and event != "completed")
            self.alive[who] = Entry(host, self.clock() + TTL_S, training)
        assert (welcome.warning == "") == (who in self.alive)
        assert welcome.training == sum(
            entry.training for other, entry in self.alive.items() if other[0] == session
        )
        named = [json.loads(row)[2] for row in welcome.rows]
        assert len(named) == len(set(named)) == min(numwant, len(self.others(who)))
        assert set(named) <= self.others(who)

    @rule(session=st.sampled_from(SESSIONS), number=st.integers(0, 3))
    def stop(self, session: str, number: int) -> None:
        self.sweep()
        speaker = self.speakers[session, number]
        self.runner.run(self.store.announce(speaker.says("stopped"), "10.0.0.9"))
        self.alive.pop((session, number), None)

    @rule(session=st.sampled_from(SESSIONS), number=st.integers(0, 3))
    def replay(self, session: str, number: int) -> None:
        speaker = self.speakers[session, number]
        if (session, number) in self.alive:
            speaker.sequence -= 1
            with pytest.raises(AnnounceError, match="sequence"):
                self.runner.run(self.store.announce(speaker.says("stopped"), "203.0.113.6"))

    @rule(session=st.sampled_from(SESSIONS), number=st.integers(0, 3), found=st.sampled_from(Pool))
    def check(self, session: str, number: int, found: Pool) -> None:
        digest = bytes.fromhex(self.speakers[session, number].id)
        self.runner.run(self.store.checked(bytes.fromhex(session), digest, found))

    @rule(seconds=st.sampled_from([1.0, 49.0, 50.0, 100.0, 700.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def counts_agree(self) -> None:
        self.sweep()
        self.runner.run(self.store.expire())
        for session in SESSIONS:
            alive = sum(who[0] == session for who in self.alive)
            key = bytes.fromhex(session)
            counts = self.runner.run(self.store.scrape(key))
            assert counts == Counts(alive=alive, completed=counts.completed)
            assert self.runner.run(self.store.find(key[:20])) == (key if alive else None)
        sessions = len({who[0] for who in self.alive})
        totals = self.runner.run(self.store.totals())
        assert totals == Totals(sessions=sessions, peers=len(self.alive))


StoreModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestStore = StoreModel.TestCase


def test_the_shared_store_agrees_with_the_model(valkey_server: valkey.Server) -> None:
    class SharedModel(StoreModel):
        def make(self) -> Store:
            self.client = connected(valkey_server.url)
            prefix = secrets.token_hex(8)
            return SharedStore(
                self.client, LIMITS, prefix=prefix, now=self.clock, rng=random.Random(0)
            )

        def teardown(self) -> None:
            self.runner.run(self.client.aclose())
            super().teardown()

    few = settings(max_examples=25, stateful_step_count=30, deadline=None)
    run_state_machine_as_test(SharedModel, settings=few)
