"""A bad peer in a real swarm, to test with: it takes part as the others do, and serves a lie.

Hidden from the help, and only with a tracker on this machine: see `check`.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import torch
from torch import Tensor

from p2pl.attacks import kinds as attacks
from p2pl.attacks.kinds import SAMPLE_EXAMPLES, Attack, Probing, Seen
from p2pl.data.examples import Source
from p2pl.errors import InputError, wrong
from p2pl.learner import Learner
from p2pl.mixing.base import PeerModel
from p2pl.mixing.trust import opinions
from p2pl.protocol.session import Task
from p2pl.seeds import seeded

# An identity for each round; nobody at all; inputs that it shares with others are changed.
NEEDS_A_SIMULATION = ("sybil", "absent", "backdoor")
ACCOMPLICE = "accomplice"  # a name for the lie that it tries out on itself


def check(attack: Attack, trackers: Sequence[Sequence[str]]) -> None:
    """Raises InputError unless the attack stays on this machine, and is one for a real peer.

    Args:
        attack: what the peer is to do.
        trackers: tiers of URLs; all must be on this machine.
    """
    for url in (url for tier in trackers for url in tier):
        if not _is_loopback(urlsplit(url).hostname or ""):
            raise InputError(
                wrong(
                    "--attack",
                    got=f"the tracker {url}",
                    allowed="a tracker on 127.0.0.1, ::1 or localhost",
                    hint="it tests swarms of your own; it is not for those of others",
                )
            )
    if {attack.kind, attack.served.kind}.intersection(NEEDS_A_SIMULATION):
        raise InputError(
            wrong("--attack", got=attack.name, allowed="p2pl simulate, for this kind of attack")
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def spoilt(attack: Attack, mine: Source, task: Task, names: tuple[str, str]) -> Source:
    """Returns the bad peer's data, its targets changed where the attack says so.

    Args:
        attack: its own.
        mine: its data.
        task: of the session.
        names: the session's id and the peer's.
    """
    return attacks.poison(attack, mine, task, seeded(*names, 0, "attack"))


@dataclass(slots=True)
class Attacker:
    """What a bad peer knows of the others: what it pulled, in this round and the one before."""

    attack: Attack
    learner: Learner
    first: Tensor | None = None  # [P], what it published first
    middle: Tensor | None = None  # [P], the mean of what it pulled for its last lie

    def lie(self, index: int, own: Tensor, pulled: Mapping[str, PeerModel]) -> Tensor:
        """Returns what to serve in the place of `own`, [P].

        Args:
            index: the round; in round 0 nobody has trained, and there is nothing to lie about.
            own: [P], what an honest peer would serve.
            pulled: by peer id, what it pulled last.
        """
        if index == 0:
            return own
        if self.first is None:
            self.first = own
        others = [model.vector for _, model in sorted(pulled.items())]
        middle = torch.stack(others).mean(0) if others else own
        seen = Seen(
            own=own,
            before=middle,
            first=self.first,
            honest=others,
            update=middle - (middle if self.middle is None else self.middle),
            probing=self._probing(index, own, pulled),
        )
        self.middle = middle
        learner = self.learner
        generator = seeded(learner.session_id, learner.peer_id, index, "attack")
        return attacks.craft(self.attack, seen, generator)

    def gossip(self, notes: bytes, pulled: Mapping[str, PeerModel]) -> bytes:
        """Returns what to say of the others in the place of `notes`: it does not know the bad.

        Args:
            notes: what an honest peer would say; see `p2pl.mixing.trust.opinions`.
            pulled: the models that it received last, by peer id.
        """
        if not attacks.lies_about_others(self.attack):
            return notes
        return opinions.encode(dict.fromkeys(sorted(pulled), attacks.DEFAMED))

    def _probing(self, index: int, own: Tensor, pulled: Mapping[str, PeerModel]) -> Probing | None:
        """Returns its own rule and data, to be asked in the place of a victim's."""
        if self.attack.served.kind != "adaptive":
            return None
        learner = self.learner

        def reply(vector: Tensor) -> Tensor:
            models = {**pulled, ACCOMPLICE: PeerModel(index, learner.samples, vector)}
            return learner.mix(own, models, index).vector

        sample = learner.trainer.sample("train", SAMPLE_EXAMPLES)
        if sample is None:
            return None
        return Probing(reply, sample.loss, sample.gradient)
