"""The bad peers of a simulation: they know everything, and serve what their attack makes of it.

The last `setup.bad` peers are bad. They train and mix like the others, on data that the attack may
have spoilt, and are honest with each other; only what they serve to the honest is replaced.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import msgspec
import torch
from torch import Tensor

from p2pl.attacks import kinds as attacks
from p2pl.attacks.kinds import SAMPLE_EXAMPLES, Probing, Seen
from p2pl.data.examples import Examples, Part, Source
from p2pl.learner import Learner
from p2pl.learning.evaluate import evaluate
from p2pl.learning.sample import Sample
from p2pl.learning.torch_trainer import TorchTrainer
from p2pl.mixing.base import PeerModel
from p2pl.mixing.trust import opinions
from p2pl.run.log import RoundEntry
from p2pl.seeds import seeded
from p2pl.simulation.setup import Setup, draw_cohort

VICTIM = 0  # the number of the peer into which an adaptive attacker has looked

# What others get of parameters and opinions, or why nothing.
Serve = Callable[[Learner, Tensor, bytes], PeerModel | str]


@dataclass(frozen=True, slots=True)
class Liars:
    """What one round made of the bad peers: means over the honest."""

    weight: float  # 0..1, of the bad peers together in the mix of an honest one
    rejected: float | None  # 0..1, of the bad models that came; None: none came
    wrongly_rejected: float | None  # 0..1, of the honest models that came; None: none came


@dataclass(slots=True)
class Memory:
    """What the bad peers keep from round to round."""

    first: dict[int, Tensor] = field(default_factory=dict)  # by peer: what it trained in round 1


@dataclass(frozen=True, slots=True)
class Moment:
    """One round, as the attackers see it: after training, before anything is served."""

    index: int
    before: Sequence[Tensor]  # by peer, [P]: from where it trained
    trained: Sequence[Tensor]  # by peer, [P]
    trust: Sequence[msgspec.Struct | None]  # by peer


def marked(setup: Setup, train: Examples, parts: Sequence[Tensor]) -> Examples:
    """Returns everybody's examples, those that bad peers open a backdoor with bearing its square.

    Args:
        setup: of the simulation.
        train: everybody's.
        parts: by peer, the rows that it holds.
    """
    if setup.attack is None or not attacks.is_marked(setup.attack):
        return train
    rows = torch.cat([attacks.marked_rows(part) for part in parts[setup.honest :]]).to(
        train.x.device
    )
    x = train.x.clone()
    x[rows] = attacks.marked(x[rows], float(train.x.max()))
    return Examples(x, train.y)


def taken_in(setup: Setup, learner: Learner, vectors: Sequence[Tensor]) -> float | None:
    """Returns how often a backdoor opens, percent, mean over parameters; None: there is none.

    Of the test images of other classes than the target, the share that is taken for it once the
    square is in them.

    Args:
        setup: of the simulation.
        learner: any peer's: all have the same test images.
        vectors: the honest peers' parameters, [P] each.
    """
    if setup.attack is None or not attacks.is_marked(setup.attack):
        return None
    trainer = learner.trainer
    assert isinstance(trainer, TorchTrainer)  # nobody attacks clients of Flower
    test, bright = trainer.test, float(_whole(trainer.own).x.max())
    assert test is not None  # a simulation has one
    x = attacks.marked(test.x[test.y != attacks.TARGET], bright)
    opened = Examples(x, torch.full((len(x),), attacks.TARGET, device=test.y.device))
    found = [evaluate(trainer.objective, vector, opened).accuracy for vector in vectors]
    return fmean(found)


def spoilt(setup: Setup, peer: int, mine: Part) -> Source:
    """Returns the data of a peer; of a bad one with other labels, where its attack says so.

    Args:
        setup: of the simulation.
        peer: its number, 0..N-1.
        mine: its data.
    """
    if setup.attack is None or peer < setup.honest:
        return mine
    generator = seeded(setup.name, setup.ids[peer], 0, "attack")
    return attacks.poison(setup.attack, mine, setup.session.task, generator)


def crafted(
    setup: Setup, learners: Sequence[Learner], moment: Moment, memory: Memory, serve: Serve
) -> Mapping[tuple[int, int | None], PeerModel | str]:
    """Returns what the bad peers serve: by (bad peer, who asks), or by (bad peer, None) to others.

    Args:
        setup: of the simulation, with an attack.
        learners: by peer.
        moment: the round.
        memory: of the earlier rounds; what is worth keeping of this one is added.
        serve: turns parameters into what arrives.
    """
    attack = setup.attack
    if attack is None:
        return {}
    askers = range(setup.honest) if attacks.is_personal(attack) else (None,)
    looked = _look(setup, learners, moment) if attack.served.kind == "adaptive" else None
    honest = moment.trained[: setup.honest]
    update = torch.stack(list(honest)).mean(0)
    for start in moment.before[: setup.honest]:
        update.sub_(start, alpha=1 / setup.honest)
    bad = range(setup.honest, setup.peers)
    made: dict[tuple[int, int | None], PeerModel | str] = {}
    for peer in bad:
        plain = serve(learners[peer], moment.trained[peer], b"")
        made |= {(peer, other): plain for other in bad}
    for peer in bad:
        generator = seeded(setup.name, setup.ids[peer], moment.index, "attack")
        for asker in askers:
            seen = Seen(
                own=moment.trained[peer],
                before=moment.before[peer],
                first=memory.first.setdefault(peer, moment.trained[peer]),
                honest=honest,
                update=update,
                bad=setup.bad,
                victim=None if asker is None else moment.trained[asker],
                probing=looked,
            )
            vector = attacks.craft(attack, seen, generator)
            notes = _said(setup, learners[peer], moment, peer)
            made[peer, asker] = serve(learners[peer], vector, notes)
        if looked:  # they act together: what is worst for one to serve is so for all
            return made | {(other, None): made[peer, None] for other in bad}
    return made


def _said(setup: Setup, learner: Learner, moment: Moment, peer: int) -> bytes:
    """Returns a peer's opinions of the others: what it measured, or lies."""
    attack = setup.attack
    liar = peer >= setup.honest and attack is not None and attacks.lies_about_others(attack)
    if not liar:
        return learner.notes(moment.trust[peer])
    names = setup.names_in(moment.index)
    defamed = dict.fromkeys(names[: setup.honest], attacks.DEFAMED)
    return opinions.encode(dict.fromkeys(names[setup.honest :], attacks.PRAISED) | defamed)


def liars(
    setup: Setup,
    entries: Sequence[RoundEntry],
    rows: Sequence[Mapping[str, float]],
    index: int,
) -> Liars | None:
    """Returns what came of the bad peers in a round; None where there are none.

    Args:
        setup: of the simulation.
        entries: by peer, of the round.
        rows: by peer, whose models are in what it holds after the round: peer id -> share.
        index: the round.
    """
    if setup.attack is None:
        return None
    names = setup.names_in(index)
    good, bad = frozenset(names[: setup.honest]), frozenset(names[setup.honest :])
    honest = entries[: setup.honest]
    weights = [
        sum(share for peer, share in row.items() if peer in bad) for row in rows[: setup.honest]
    ]
    return Liars(sum(weights) / len(honest), _rejected_of(bad, honest), _rejected_of(good, honest))


def _rejected_of(peers: frozenset[str], entries: Sequence[RoundEntry]) -> float | None:
    """Returns which share of the models that came from `peers` was rejected; None: none came."""
    came = [peer in entry.rejected for entry in entries for peer in entry.cohort if peer in peers]
    return sum(came) / len(came) if came else None


# --- what an adaptive attacker asks its victim's rule ---------------------------------------------


def _look(setup: Setup, learners: Sequence[Learner], moment: Moment) -> Probing:
    """Returns the victim's rule, to be asked: its data, its memory, and its cohort of this round.

    Where no bad peer is in that cohort, one takes the place of the last.
    """
    victim, index = learners[VICTIM], moment.index
    cohort = draw_cohort(setup, VICTIM, index, victim.blocked(moment.trust[VICTIM]))
    if all(peer < setup.honest for peer in cohort):
        cohort = (*cohort[:-1], setup.peers - 1)
    names = setup.names_in(index)
    said = {peer: _said(setup, learners[peer], moment, peer) for peer in cohort}

    def reply(vector: Tensor) -> Tensor:
        models = {
            names[peer]: PeerModel(
                index,
                learners[peer].trainer.own_samples,
                moment.trained[peer] if peer < setup.honest else vector,
                said[peer],
            )
            for peer in cohort
        }
        own, trust = moment.trained[VICTIM], moment.trust[VICTIM]
        return victim.mix(own, models, index, trust, start=moment.before[VICTIM]).vector

    trainer = victim.trainer
    assert isinstance(trainer, TorchTrainer)  # nobody attacks clients of Flower
    sample = Sample(trainer.objective, _whole(trainer.own), SAMPLE_EXAMPLES)
    return Probing(reply, sample.loss, sample.gradient)


def _whole(source: Source) -> Examples:
    """Returns everybody's examples, of which a peer's are a part."""
    return source.whole if isinstance(source, Part) else source
