"""What one simulation is about: whose session, how many peers, who holds what."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import msgspec
import torch

from p2pl.attacks.kinds import SQUARE, Attack, is_marked
from p2pl.data import partition
from p2pl.errors import InputError, wrong
from p2pl.learning import checkpoint, precision
from p2pl.learning.optimizers import check_private
from p2pl.privacy.policy import Wanted, check_session
from p2pl.protocol.session import Change, Session, SessionFile, Spec, changed
from p2pl.seeds import seeded
from p2pl.simulation.everybody import Others
from p2pl.simulation.reality import IDEAL, Reality
from p2pl.simulation.scoring import USUAL, Scoring

BASELINES = ("centralised", "isolated")
ENGINES = ("auto", "stacked", "sequential")
RAY = "ray"  # computes on a cluster: ray, or ray:ADDRESS
EXCHANGES = ("braintorrent", "cohort", "gossip", "raft")  # those that can be simulated
MAX_PEERS = 100_000


@dataclass(frozen=True, slots=True)
class Setup:
    """One simulation, for one seed: everything that its numbers depend on but the data.

    Seed 0 is the session as it stands, so that a network of the same peers, shards and cohorts
    computes the same numbers. Another seed changes the initial parameters, the partition, the order
    of the batches and the cohorts, and nothing else, so two rules can be compared seed by seed.
    """

    session: Session
    session_id: str  # of the session file, whatever was changed about it for the simulation
    peers: int
    partition: str
    partition_seed: int = 0  # of seed 0; seed k has k more
    seed: int = 0
    baseline: str | None = None  # one of BASELINES
    cohort: int | None = None  # in the place of the session's, which is bounded; None: the same
    peer_ids: tuple[str, ...] = ()  # () = made from the peers' numbers
    engine: str = "auto"  # one of ENGINES, or RAY
    attack: Attack | None = None  # what the bad peers do
    bad: int = 0  # how many there are: the last ones
    privacy: Wanted | None = None  # None: training is not private
    curves: bool = True  # False: peers are scored after the last round alone
    scoring: Scoring = USUAL  # of the rounds before the last
    personal: bool = False  # whether every peer keeps a model of its own distribution beside
    precision: str = "float32"  # of the layers' computation: one of precision.NAMES
    reality: Reality = IDEAL  # who is away, which links fail, what is late

    @classmethod
    def of(cls, spec: Spec, *, peers: int, partition: str = "iid") -> Self:
        """Returns the setup of a session as it was written down, for seed 0.

        Args:
            spec: the session.
            peers: how many, 2..`MAX_PEERS`.
            partition: who holds what: iid, unbalanced, dirichlet:A or classes:K.

        Raises:
            SessionFileError: two fields of the spec contradict each other.
            ModelError: the session's model is unknown here, or would not be built.
        """
        session = spec.session()
        made = SessionFile(spec.name, session, checkpoint.build(session)[1], trackers=())
        return cls(session, made.id, peers, partition)

    def changed(self, *changes: Change) -> Self:
        """Returns the setup with some fields of its session replaced: (path, new value) each.

        Everybody's randomness is drawn as before, so that the two can be compared.

        Raises:
            SessionFileError: a field is unknown or out of range, or two contradict each other.
        """
        return replace(self, session=changed(self.session, *changes))

    @property
    def ids(self) -> tuple[str, ...]:
        """The peers' ids, each 64 hex digits unless they were given."""
        return self.peer_ids or _made_ids(self.peers)

    @property
    def honest(self) -> int:
        """How many peers are honest: the first ones."""
        return self.peers - self.bad

    def names_in(self, index: int) -> tuple[str, ...]:
        """Returns the ids under which the others know the peers in round `index`."""
        if self.attack is None or self.attack.kind != "sybil":
            return self.ids
        new = (peer_id(number, index) for number in range(self.honest, self.peers))
        return (*self.ids[: self.honest], *new)

    @property
    def name(self) -> str:
        """The session id under which this seed's randomness is drawn; 64 hex digits."""
        if not self.seed:
            return self.session_id
        return hashlib.sha256(f"{self.session_id}/seed {self.seed}".encode()).hexdigest()

    @property
    def seeded_session(self) -> Session:
        """The session with this seed's initial parameters."""
        return msgspec.structs.replace(
            self.session, seed=(self.session.seed + self.seed) % (1 << 63)
        )

    @property
    def seeded_partition(self) -> int:
        """The seed of the partition."""
        return (self.partition_seed + self.seed) % (1 << 32)

    @property
    def pulls(self) -> int:
        """How many models a peer pulls in a round; in `gossip`, how many neighbours it has."""
        if self.baseline:
            return 0
        exchange, others = self.session.exchange, self.peers - 1
        wanted = exchange.cohort if self.cohort is None else self.cohort
        return others if exchange.kind == "braintorrent" else min(wanted, others)


def check(setup: Setup) -> None:
    """Raises InputError where a simulation cannot be run as asked for."""
    if not 2 <= setup.peers <= MAX_PEERS:
        raise InputError(wrong("--peers", got=setup.peers, allowed=f"2..{MAX_PEERS}"))
    partition.parse(setup.partition)
    if setup.baseline not in (None, *BASELINES):
        raise InputError(wrong("--baseline", got=setup.baseline, allowed=", ".join(BASELINES)))
    _check_engine(setup)
    kind = setup.session.exchange.kind
    if not setup.baseline and kind not in EXCHANGES:
        raise InputError(
            wrong("exchange.kind, in a simulation", got=kind, allowed=", ".join(EXCHANGES))
        )
    setup.reality.check(setup.session.exchange, setup.baseline)
    if setup.cohort is not None and setup.cohort < 0:
        raise InputError(wrong("--cohort", got=setup.cohort, allowed="0 or more"))
    setup.scoring.check()
    _check_attack(setup)
    precision.check(setup.precision, private=setup.privacy is not None)
    if setup.privacy is not None:
        check_session(setup.session, setup.privacy)
        check_private(setup.session.training)
    if setup.peer_ids and len(set(setup.peer_ids)) != setup.peers:
        raise InputError(
            wrong("peer ids", got=f"{len(set(setup.peer_ids))} different", allowed=str(setup.peers))
        )


def is_ray(engine: str) -> bool:
    """Returns whether an engine is a cluster's: `ray` or `ray:ADDRESS`."""
    return engine.partition(":")[0] == RAY


def _check_engine(setup: Setup) -> None:
    if setup.engine not in ENGINES and not is_ray(setup.engine):
        allowed = f"{', '.join(ENGINES)}, {RAY} or {RAY}:ADDRESS"
        raise InputError(wrong("--engine", got=setup.engine, allowed=allowed))
    if is_ray(setup.engine) and setup.privacy is not None:
        allowed = f"{', '.join(ENGINES)}: what private training has spent is kept in one process"
        raise InputError(wrong("--engine, with --dp-epsilon", got=setup.engine, allowed=allowed))


def _check_attack(setup: Setup) -> None:
    if (setup.attack is None) != (setup.bad == 0):
        raise InputError(wrong("--attack", got=setup.attack, allowed="KIND:COUNT, both or neither"))
    if not 0 <= setup.bad < setup.peers:
        raise InputError(
            wrong(
                "--attack",
                got=f"{setup.bad} of {setup.peers} peers",
                allowed="fewer than there are: scores are those of the honest",
            )
        )
    task = setup.session.task
    images = task.kind == "classification" and len(task.input) == 3 and min(task.input[1:]) > SQUARE
    if setup.attack and is_marked(setup.attack) and not images:
        got = f"backdoor, with task {task.kind} and inputs {task.input}"
        allowed = f"classes of images larger than {SQUARE} x {SQUARE}"
        raise InputError(wrong("--attack", got=got, allowed=allowed))
    if setup.attack and setup.baseline:
        raise InputError(
            wrong("--attack", got=f"--baseline {setup.baseline}", allowed="peers that exchange")
        )


@lru_cache(maxsize=8)
def _made_ids(peers: int) -> tuple[str, ...]:
    return tuple(peer_id(number) for number in range(peers))


def peer_id(number: int, index: int = 0) -> str:
    """Returns the id of a virtual peer: 64 hex digits, as a real one's.

    Args:
        number: of the peer.
        index: the round in which it took the id; 0 for the one it begins with.
    """
    name = f"virtual peer {number}" + (f" of round {index}" if index else "")
    return hashlib.sha256(name.encode()).hexdigest()


def draw_cohort(setup: Setup, me: int, index: int, without: Collection[str] = ()) -> Sequence[int]:
    """Returns the numbers of the peers that peer `me` pulls from in round `index`.

    Uniform, without replacement, as a tracker draws; in order where that is everybody. A peer that
    is absent is in no cohort, nor is one of the ids `without`.

    Args:
        setup: of the simulation.
        me: the peer's number, 0..N-1.
        index: the round, from 1 on.
        without: ids that are not drawn.
    """
    absent = setup.attack is not None and setup.attack.served.kind == "absent"
    there = setup.honest if absent else setup.peers
    if setup.pulls == there - 1 and not absent and not without:
        return Others(there, me)
    order = seeded(setup.name, setup.ids[me], index, "cohort")
    drawn = torch.randperm(there - (me < there), generator=order)
    names = setup.names_in(index)
    # As many as may be left out are drawn on top, and not everybody: there may be thousands.
    some = drawn[: setup.pulls + len(without)].tolist()
    others = [other + (other >= me) for other in some]
    return tuple([other for other in others if names[other] not in without][: setup.pulls])
