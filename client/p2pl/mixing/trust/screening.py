"""What can be told of received models by their numbers alone: geometry, before any data are asked.

All peers of a session start from one checkpoint, so honest models point the same way and lie near
each other, whatever labels their owners hold.

A model is rejected that is far larger or further away than the others, or points away. So is one
that takes back just what the others give: they pull the peer back to what all have in common, and
whoever cancels that pull leaves it alone with its own data (dissensus: He, Karimireddy and Jaggi
2022, arXiv:2202.01545, section 4). In the first round nobody has been pulled anywhere. Parameters
that came before, from the same peer under an older round or from another one, count once. A model
that is only somewhat further away is pulled in to the usual distance (clipping, section 5 there).
What is usual is the median of a cohort, within bounds that no cohort sets: the round before, and
the peer's own move.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median_low

from torch import Tensor
from xxhash import xxh3_64_intdigest

from p2pl.mixing.base import weighted_mean
from p2pl.mixing.geometry import cosine, distance

# Where a line below says "chosen", it was tried as `p2pl.mixing.trust.row` says.
MAX_NORM_RATIO = 10.0  # to the own model's norm; honest models stayed within 1.3
MIN_COSINE = -0.3  # chosen: honest models of 2 classes a peer stayed above it
MAX_AGAINST = 0.75  # cosine; chosen: honest models stayed below 0.7, dissensus is mostly above 0.9
FEW_PARAMETERS = 256  # of fewer, chance alone makes cosines large: 0.3 is usual among ten
CLIP_RADII = 2.0  # median distances; chosen: equal shards stay within 1.5
JUDGED_RADII = 3.0  # chosen: flipped labels are found sooner than with 2; 5 finds no more
FAR_RADII = 8.0  # beyond it a model is rejected, not pulled in; honest ones stayed within 4
RADIUS_GROWTH = 2.0  # from one round to the next, so that a cohort of liars cannot set the scale
LEAST_RADIUS = 0.5  # of the own move: nor can liars by serving what is almost the own model


@dataclass(frozen=True, slots=True)
class Received:
    """What another peer gave."""

    peer: str  # its id
    vector: Tensor  # [P], finite
    round: int = 0  # that it says it is of
    notes: bytes = b""  # its opinions of others, as it says


@dataclass(frozen=True, slots=True)
class Known:
    """What tells parameters that came before from those that did not."""

    round: int
    mark: int  # see `mark_of`


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """A model that looks like one of this session."""

    peer: str
    vector: Tensor  # [P]
    distance: float  # to the peer's own
    reach: float = 1.0  # how far the mix goes towards it at most; below 1 it is pulled in
    judged: float = 1.0  # how far when it is judged: further, so that harm shows that is small yet


@dataclass(frozen=True, slots=True)
class Screened:
    """What came of the screening."""

    offers: tuple[Offer, ...]
    radius: float | None  # the usual distance, for the next round
    rejected: Mapping[str, str]  # peer id -> reason: no honest model is like that
    repeated: Mapping[str, str]  # peer id -> reason: nothing new, and no harm


def mark_of(vector: Tensor) -> int:
    """Returns a number below 2^64 that differs between different parameters, [P]."""
    return xxh3_64_intdigest(vector.contiguous().cpu().numpy().data)


def screen(
    own: Tensor,
    start: Tensor | None,
    received: Sequence[Received],
    seen: Mapping[str, Known],
    last_radius: float | None,
) -> Screened:
    """Returns what may be mixed, and why the rest may not.

    Args:
        own: [P], what the peer trained.
        start: [P], from where; None where that is not known.
        received: from K peers, each once.
        seen: by peer id, what it gave last.
        last_radius: of the round before; None before the first.
    """
    repeated = _repeated(received, seen)
    fresh = [one for one in received if one.peer not in repeated]
    faults = {one.peer: _fault(one.vector, own, start) for one in fresh}
    rejected = {peer: fault for peer, fault in faults.items() if fault}
    offers = [
        Offer(one.peer, one.vector, distance(one.vector, own))
        for one in fresh
        if one.peer not in rejected
    ]
    against = {} if last_radius is None else _against(offers, own, start)
    rejected |= against
    offers = [offer for offer in offers if offer.peer not in against]
    if not offers:
        return Screened((), last_radius, rejected, repeated)
    radius = _radius(offers, last_radius, own, start)
    near = [_pulled_in(offer, radius) for offer in offers if offer.distance <= FAR_RADII * radius]
    for offer in offers:
        if offer.distance > FAR_RADII * radius:
            allowed = f"allowed at most {FAR_RADII * radius:.3g}"
            rejected[offer.peer] = f"distance: got {offer.distance:.3g}, {allowed}"
    return Screened(tuple(near), radius, rejected, repeated)


def _radius(
    offers: Sequence[Offer], last_radius: float | None, own: Tensor, start: Tensor | None
) -> float:
    """Returns the usual distance of others' models from the peer's own."""
    radius = median_low([offer.distance for offer in offers])
    if last_radius:
        radius = min(radius, RADIUS_GROWTH * last_radius)
    return radius if start is None else max(radius, LEAST_RADIUS * distance(own, start))


def _repeated(received: Sequence[Received], seen: Mapping[str, Known]) -> dict[str, str]:
    """Returns who gives parameters that came before, and which."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for one in sorted(received, key=lambda one: one.peer):
        mark, last = mark_of(one.vector), seen.get(one.peer)
        if last is not None and last.mark == mark and last.round < one.round:
            found[one.peer] = f"repeated: the parameters of its round {last.round}"
        elif mark in first:
            found[one.peer] = f"repeated: the parameters of {first[mark][:8]}"
        else:
            first[mark] = one.peer
    return found


def _fault(vector: Tensor, own: Tensor, start: Tensor | None) -> str:
    """Returns why no honest model is like this one, "" if one may be."""
    own_norm = float(own.norm())
    ratio = float(vector.norm()) / own_norm if own_norm else math.inf
    if not ratio <= MAX_NORM_RATIO:
        return f"norm: got {ratio:.3g} times the own, allowed at most {MAX_NORM_RATIO:g}"
    # What was trained may have strayed, and what it set out from may have been turned by liars.
    close = max(_cosine(vector, mine) for mine in (own, start) if mine is not None)
    if not close > MIN_COSINE or not float(vector.norm()):
        return f"direction: got cosine {close:.2f} to the own, allowed above {MIN_COSINE:g}"
    return ""


def _against(offers: Sequence[Offer], own: Tensor, start: Tensor | None) -> dict[str, str]:
    """Returns who would push the peer on by what those take back who pull it back.

    An honest peer that is further on, for it has more data, goes its own way there; only one that
    wants this peer to stay where it is undoes what the others do. Where most push the peer on, it
    is the one that is behind.
    """
    if start is None:
        return {}
    count = len(own)

    def ahead(vector: Tensor) -> float:
        return cosine(count, lambda at: (vector[at] - own[at], own[at] - start[at]))

    onward = [one for one in offers if ahead(one.vector) > 0]
    back = [one.vector for one in offers if one not in onward]
    if len(back) < max(1, len(onward)):
        return {}
    allowed = 1 - (1 - MAX_AGAINST) * min(1.0, count / FEW_PARAMETERS)
    row = (0.0, *[1 / len(back)] * len(back))

    def given(at: slice) -> Tensor:
        return weighted_mean(own[at], [vector[at] for vector in back], row) - own[at]

    def against(vector: Tensor) -> float:
        return cosine(count, lambda at: (own[at] - vector[at], given(at)))

    cosines = {one.peer: against(one.vector) for one in onward}
    return {
        peer: f"apart: got cosine {found:.2f} against what others give, allowed {allowed:.3g}"
        for peer, found in cosines.items()
        if found > allowed
    }


def _pulled_in(offer: Offer, radius: float) -> Offer:
    if not offer.distance:
        return offer
    usual = radius / offer.distance
    return replace(offer, reach=min(1.0, CLIP_RADII * usual), judged=min(1.0, JUDGED_RADII * usual))


def _cosine(one: Tensor, other: Tensor) -> float:
    """Returns the cosine between two vectors, 0 where one of them is zero."""
    return cosine(len(one), lambda at: (one[at], other[at]))
