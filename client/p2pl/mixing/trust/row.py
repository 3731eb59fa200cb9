"""The row of DeGroot trust: how much of each received model goes into the mix, by experience.

The model that is mixed on and served (the shared track) must not become one peer's alone: a peer
that weighs others by how well they serve *its own* data ends up alone as soon as labels are skewed.
So all whom nothing speaks against have exactly equal weight, the peer itself among them, and the
row is learned from what does speak against a peer, over the rounds:

1. *Screening* by geometry (`screening`): what no honest model is like is rejected, what is further
   away than usual is pulled in.
2. *Harm* (`probe`). A model is given a third of the mix of the others, and what counts is how much
   less sure the peer's validation examples then are of their right class, in a way that is fair to
   peers with other classes.
3. *Experience*. The harm of another peer is a mean over the rounds in which it was met, kept by its
   id.
4. *Opinions*. What peers measured themselves travels with their models (`opinions`); the median of
   those who are trusted, the peer itself included, is what counts, each as heavy as it was met
   often. Who is called harmless by itself is not believed.
5. *The row*. Harm within the noise, or that is usual in this cohort, counts as none. Beyond it a
   weight falls off exponentially, and soon is 0. Strangers, whom neither the peer nor anybody it
   trusts has met, weigh little until they are known, and all together no more than the known do:
   ids cost nothing.
6. *Shunning*. Who is known to do much harm is not asked any more (`shunned`), but for every tenth
   round: its place in the cohort goes to somebody whose model can be used.

Judging needs examples. Without them (under privacy, where the answer would say something about
them) there is screening, and what others say.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from statistics import median
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta
from torch import Tensor

from p2pl import pages
from p2pl.errors import FrameError
from p2pl.learning.judge import SHARE, Judge
from p2pl.mixing.base import MIXERS, Mixed, Mixer, Own, PeerModel, by_row, weighted_mean
from p2pl.mixing.geometry import combined
from p2pl.mixing.trust import opinions
from p2pl.mixing.trust.screening import Known, Offer, Received, mark_of, screen
from p2pl.protocol.session import Mixing

# Where a line below says "chosen", it was tried on MNIST, logistic regression, 6 and 20 peers, iid,
# Dirichlet 0.5 and 0.1, and 2 classes a peer, with and without attackers, on seeds from 100 and on
# training examples that were held out; `scripts/reproduce trust_tuning` has a table.
CLEAR_HARM = 0.06  # of one round; beyond it, and well beyond the others, a model is out at once
CLEAR_ERRORS = 3.0  # standard errors
CLEAR_SPREADS = 4.0  # median absolute deviations of the cohort's harms
MIN_JUDGED = 3  # models: the median of fewer says nothing about the odd one out
PASSES = 3  # over the cohort, each without those that the one before found
HARM_RANGE = 0.25  # one round says no more than this
FREE_HARM = 0.012  # chosen: honest peers stay below it in the long run
HARM_SCALE = 0.006  # a weight falls to 1/e with each so much more
MIN_WEIGHT = 0.05  # of a full one; less is none
MEMORY = 0.7  # of a harm, for each round in which its peer was met
DECAY_UNSEEN = 0.98  # of a harm, for each round in which its peer was not met
ACQUAINTED = 2  # rounds, after which those that were never heard of are strangers
STRANGER = 0.25  # of a full weight
MAX_REMEMBERED = 1_024  # peers; strangers can make ids for nothing
SLANDER = 0.05  # said of the peer itself; chosen: honest peers stayed below it, whatever labels
MAX_HEARD = 32  # peers whose opinions are kept
SHUN_HARM = 0.1  # chosen: specialists of 2 classes, wrongly found harmful, stayed below it
SHUN_AFTER = 2  # rounds in which it was met; one bad round is no reason to ask no more
FORGIVE_EVERY = 10  # rounds, after which all are asked again: who was wronged is heard

Harm = Annotated[float, Meta(ge=-1, le=1)]


class Record(msgspec.Struct, frozen=True):
    """What the peer measured of another one."""

    harm: Harm  # mean over the rounds; probability of the right class
    noise: Annotated[float, Meta(ge=0)] | None  # its standard error; None: not to be told
    rounds: Annotated[int, Meta(ge=0)]  # in which it was met
    round: int = 0  # that its last parameters were of, as it said
    mark: int = 0  # of these parameters


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer remembers of the others: plain values, for `msgspec.to_builtins`."""

    records: dict[str, Record] = {}
    heard: dict[str, Annotated[bytes, Meta(max_length=1_024)]] = {}  # newest notes, by who wrote
    radius: Annotated[float, Meta(ge=0)] | None = None  # median distance, last round
    rounds: Annotated[int, Meta(ge=0)] = 0  # in which something was received


@dataclass(frozen=True, slots=True)
class Learned:
    """What came of one round."""

    row: tuple[float, ...]  # [K + 1], sums to 1; row[0] is the peer's own, 0 means rejected
    trust: Trust
    rejected: Mapping[str, str]  # peer id -> reason


@dataclass(frozen=True, slots=True)
class Mine:
    """What a peer has, when it judges others."""

    vector: Tensor  # [P], what it trained
    probe: Judge | None  # None: its examples are not asked, the answer would say something of them
    start: Tensor | None = None  # [P], from where it trained; None: not known
    peer: str = ""  # its id


@dataclass(frozen=True, slots=True)
class _Judged:
    """What one round's examples say of one offer."""

    harm: float
    noise: float  # standard error
    clear: bool = False  # so bad, in this one round, that it is not mixed


@MIXERS.builtin("degroot")
class DeGroot(Mixer):
    """Weighs peers by experience: all whom nothing speaks against alike."""

    Memory: ClassVar[type[msgspec.Struct]] = Trust
    keeps_privacy: ClassVar[bool] = True
    bounds_sizes: ClassVar[bool] = True  # by screening, which is evidence too
    asks_judge: ClassVar[bool] = True

    def mix(self, own: Own, received: Mapping[str, PeerModel], memory: msgspec.Struct) -> Mixed:
        """Returns the mix, and the experience that the round added."""
        mine = Mine(own.vector, own.trainer.judge(), own.start, self.peer_id)
        theirs = [Received(who, one.vector, one.round, one.notes) for who, one in received.items()]
        learned = learn(_trust(memory), mine, theirs, self.session.mixing)
        mixed = by_row(self.peer_id, own, received, learned.row)
        return replace(mixed, rejected=learned.rejected, memory=learned.trust)

    def notes(self, memory: msgspec.Struct) -> bytes:
        """Returns what the peer measured of others; under privacy it was noised then."""
        return told(_trust(memory), self.session.mixing)

    def blocked(self, memory: msgspec.Struct) -> frozenset[str]:
        """Returns those who are known to do much harm.

        Nobody where rounds are in step: there, what is mixed must not depend on who was met.
        """
        if self.session.exchange.lockstep:
            return frozenset()
        return shunned(_trust(memory), self.peer_id, self.session.mixing)


def _trust(memory: msgspec.Struct) -> Trust:
    assert isinstance(memory, Trust)
    return memory


def learn(trust: Trust, mine: Mine, received: Sequence[Received], mixing: Mixing) -> Learned:
    """Returns the row of weights for this round, and what to remember.

    Args:
        trust: what the previous round left; `Trust()` before the first.
        mine: what the peer has.
        received: from K peers, each once; K may be 0.
        mixing: the session's settings.
    """
    if not received:
        return Learned((1.0,), trust, {})
    peers = [one.peer for one in received]
    seen = {peer: Known(one.round, one.mark) for peer, one in trust.records.items() if one.rounds}
    screened = screen(mine.vector, mine.start, received, seen, trust.radius)
    pages.rest(mine.start)  # it is not looked at any more
    offers, rejected = screened.offers, dict(screened.rejected)
    heard = _listen(trust.heard, received, rejected)
    said = _credible(heard, trust.records, rejected, mine.peer)
    before = _beliefs(trust.records, said, peers, mixing.trust_gate)
    plausible = [offer for offer in offers if _weight(before[offer.peer]) > 0]
    judged = _judge(mine.vector, offers, plausible, mine.probe) if mine.probe and offers else {}
    records = _experience(trust.records, received, judged, rejected)
    rejected |= screened.repeated
    rejected |= {peer: _clearly(one) for peer, one in judged.items() if one.clear}
    weights = {offer.peer: 1.0 for offer in offers if offer.peer not in rejected}
    if trust.rounds >= mixing.warmup_rounds:
        beliefs = _beliefs(records, said, peers, mixing.trust_gate)
        rejected |= {
            peer: _harmful(beliefs[peer], records.get(peer))
            for peer in weights
            if _weight(beliefs[peer]) == 0
        }
        weights = {peer: _weight(beliefs[peer]) for peer in weights if peer not in rejected}
        weights = _less_strangers(weights, {p for p in weights if before[p] is None}, trust.rounds)
    reach = {offer.peer: offer.reach for offer in offers}
    whole = 1 + sum(weights.values())
    others = tuple(weights.get(peer, 0.0) * reach.get(peer, 0.0) / whole for peer in peers)
    remembered = Trust(
        records=records, heard=heard, radius=screened.radius, rounds=trust.rounds + 1
    )
    return Learned((1 - sum(others), *others), remembered, rejected)


def shunned(trust: Trust, me: str, mixing: Mixing) -> frozenset[str]:
    """Returns whom there is no use in asking: by all that is known, they do a great deal of harm.

    Their places in the cohort go to others. Without that, liars who are seen through would still
    cost the peer the models that it could have had in their stead.

    Args:
        trust: what the last round left.
        me: the peer's own id.
        mixing: the session's settings.
    """
    if trust.rounds % FORGIVE_EVERY == 0:
        return frozenset()
    said = _credible(trust.heard, trust.records, (), me)
    met = [peer for peer, one in trust.records.items() if one.rounds >= SHUN_AFTER]
    beliefs = _beliefs(trust.records, said, met, mixing.trust_gate)
    return frozenset(peer for peer in met if (beliefs[peer] or 0.0) > SHUN_HARM)


def told(trust: Trust, mixing: Mixing) -> bytes:
    """Returns the notes that tell others what the peer measured; those met most often come first.

    Args:
        trust: what the last round left.
        mixing: the session's settings; `trust_gate` says what is beyond the noise.
    """
    order = sorted(trust.records, key=lambda peer: (-trust.records[peer].rounds, peer))
    said = {peer: _evidence(trust.records[peer], mixing.trust_gate) for peer in order}
    return opinions.encode({peer: harm for peer, harm in said.items() if harm is not None})


# --- harm ----------------------------------------------------------------------------------------


def _judge(
    own: Tensor, offers: Sequence[Offer], plausible: Sequence[Offer], probe: Judge
) -> dict[str, _Judged]:
    """Returns what the peer's examples say of each offer.

    Each is given `SHARE` of the mix of the others, and reaches further than when it is mixed. Who
    does clear harm spoils the mix that the rest are judged in, so they are judged again without it.

    Args:
        own: [P].
        offers: at least one.
        plausible: those of them that are in the mix to begin with.
        probe: the peer's examples.
    """
    base = list(plausible)
    clear: set[str] = set()
    while True:
        judged = {offer.peer: _harm_of(offer, own, base, probe) for offer in offers}
        worst = _clearest(judged, [offer.peer for offer in base])
        if len(clear) == PASSES or worst is None:
            break
        clear.add(worst)
        base = [offer for offer in base if offer.peer != worst]
    usual = max(0.0, _usual([one.harm for one in judged.values()]))
    return {
        peer: replace(one, harm=one.harm - usual, clear=peer in clear)
        for peer, one in judged.items()
    }


def _harm_of(offer: Offer, own: Tensor, base: Sequence[Offer], probe: Judge) -> _Judged:
    others = [other for other in base if other is not offer]
    row = [1 / (len(others) + 1) * other.reach for other in others]
    rest = own  # where there is nobody else, and no need for a copy
    if others:
        rest = weighted_mean(own, [other.vector for other in others], [1 - sum(row), *row])
    given = SHARE * offer.judged

    def part(at: slice) -> Tensor:
        return rest[at] * (1 - SHARE) + own[at] * (SHARE - given) + offer.vector[at] * given

    changed = combined(len(own), part, own)
    return _Judged(*probe.harm(rest, changed))


def _clearest(judged: Mapping[str, _Judged], base: Sequence[str]) -> str | None:
    """Returns who of the base does clear harm, far more than is usual in it; None: nobody."""
    if len(base) < MIN_JUDGED:
        return None
    harms = [judged[peer].harm for peer in base]
    usual = _usual(harms)
    spread = _usual([abs(harm - usual) for harm in harms])
    found = max(base, key=lambda peer: judged[peer].harm)
    limit = max(
        CLEAR_HARM,
        CLEAR_ERRORS * judged[found].noise,
        usual + CLEAR_SPREADS * spread + CLEAR_HARM,
    )
    return found if judged[found].harm > limit else None


def _usual(values: Collection[float]) -> float:
    """Returns the median of the lower half: of those that at least half of a cohort is like."""
    return median(sorted(values)[: (len(values) + 1) // 2])


# --- experience ----------------------------------------------------------------------------------


def _experience(
    records: Mapping[str, Record],
    received: Sequence[Received],
    judged: Mapping[str, _Judged],
    rejected: Mapping[str, str],
) -> dict[str, Record]:
    """Returns the records after this round: the screened out have done all the harm there is."""
    seen = {one.peer for one in received}
    after = {
        peer: one if peer in seen else msgspec.structs.replace(one, harm=DECAY_UNSEEN * one.harm)
        for peer, one in records.items()
    }
    for one in received:
        old = after.get(one.peer, Record(0.0, None, 0))
        found = _Judged(HARM_RANGE, 0.0) if one.peer in rejected else judged.get(one.peer)
        if found is not None:
            # What is cut off a harm is cut off its error too: it stays as sure as it was.
            cut = min(1.0, HARM_RANGE / abs(found.harm)) if found.harm else 1.0
            fresh = max(1 - MEMORY, 1 / (old.rounds + 1))
            harm = old.harm + fresh * (cut * found.harm - old.harm)
            old = Record(harm, cut * found.noise, old.rounds + 1)
        mark = mark_of(one.vector)
        after[one.peer] = msgspec.structs.replace(old, round=one.round, mark=mark)
    if len(after) > MAX_REMEMBERED:
        order = sorted(after, key=lambda peer: (peer not in seen, -after[peer].rounds, peer))
        after = {peer: after[peer] for peer in order[:MAX_REMEMBERED]}
    return after


# --- opinions ------------------------------------------------------------------------------------


def _listen(
    heard: Mapping[str, bytes], received: Sequence[Received], rejected: Mapping[str, str]
) -> dict[str, bytes]:
    """Returns the newest notes of those who are listened to; of unreadable ones there are none."""
    after = dict(heard)
    for one in received:
        after.pop(one.peer, None)
        if one.peer in rejected or not one.notes:
            continue
        try:
            opinions.decode(one.notes)
        except FrameError:
            continue
        after[one.peer] = one.notes
    return dict(list(after.items())[-MAX_HEARD:])


def _credible(
    heard: Mapping[str, bytes],
    records: Mapping[str, Record],
    rejected: Collection[str],
    me: str,
) -> dict[str, Mapping[opinions.Name, float]]:
    """Returns what those say who were met before, but for those who are known to lie.

    Strangers are not heard: they could be as many as anybody likes. Nor is who says that the peer
    `me` does harm: it knows of itself that this is not so.
    """
    said = {p: opinions.decode(n) for p, n in heard.items() if p in records and p not in rejected}
    myself = opinions.name_of(me)
    return {peer: about for peer, about in said.items() if about.get(myself, 0.0) <= SLANDER}


def _beliefs(
    records: Mapping[str, Record],
    said: Mapping[str, Mapping[opinions.Name, float]],
    peers: Sequence[str],
    gate: float,
) -> dict[str, float | None]:
    """Returns the harm that is believed of each peer; None of one whom nobody trusted has met.

    First those are trusted against whom the peer has no evidence, then those against whom these
    have none either.
    """
    sure = {peer: _evidence(one, gate) for peer, one in records.items()}
    believed: dict[str, float | None] = {peer: sure[peer] for peer in said}
    names = {peer: opinions.name_of(peer) for peer in {*peers, *said}}
    for _ in range(2):
        voices = {peer: said[peer] for peer in said if (believed[peer] or 0.0) <= FREE_HARM}
        for peer, name in names.items():
            others = [
                opinions.Voice(voices[one][name], max(1, records[one].rounds))
                for one in voices
                if one != peer and name in voices[one]
            ]
            met = peer in records
            mine = (sure[peer] if others == [] else records[peer].harm) or 0.0 if met else 0.0
            certain = met and sure[peer] is not None
            believed[peer] = opinions.pooled(mine, certain, others) if met or others else None
    return believed


def _evidence(record: Record, gate: float) -> float | None:
    """Returns what a record says: its harm, 0 within the noise, None where there is only noise."""
    if record.noise is None:
        return None
    if abs(record.harm) > gate * record.noise:
        return record.harm
    return 0.0 if gate * record.noise <= FREE_HARM else None


# --- the row -------------------------------------------------------------------------------------


def _weight(harm: float | None) -> float:
    """Returns the weight of another peer, 0..1, where the peer's own is 1."""
    beyond = max(0.0, (harm or 0.0) - FREE_HARM)
    weight = math.exp(-beyond / HARM_SCALE)
    return weight if weight >= MIN_WEIGHT else 0.0


def _less_strangers(
    weights: Mapping[str, float], strangers: AbstractSet[str], rounds: int
) -> dict[str, float]:
    """Returns the weights, those of strangers reduced; in the first rounds all are strangers."""
    if not strangers or rounds < ACQUAINTED:
        return dict(weights)
    known = sum(weight for peer, weight in weights.items() if peer not in strangers)
    unknown = STRANGER * sum(weights[peer] for peer in strangers)
    factor = STRANGER * min(1.0, max(known, 1.0) / unknown) if unknown else 0.0
    return {peer: w * factor if peer in strangers else w for peer, w in weights.items()}


def _clearly(one: _Judged) -> str:
    return f"harm: got {one.harm:.3f} of the right class's probability, more than any other's"


def _harmful(belief: float | None, record: Record | None) -> str:
    rounds = record.rounds if record else 0
    mine = f"; own {record.harm:.3f} over {rounds} rounds" if record else ""
    return f"harm: got {belief or 0.0:.3f} by all opinions, allowed about {FREE_HARM:g}{mine}"
