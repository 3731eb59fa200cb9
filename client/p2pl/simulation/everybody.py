"""Everybody pulls from everybody: said in a few words, where lists would be as long as N squared.

A hundred million names of 10,000 peers would take longer than their training, and more memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import msgspec

from p2pl.mixing.base import PeerModel
from p2pl.run.log import RoundEntry


@dataclass(frozen=True, slots=True)
class Others(Sequence[int]):
    """The numbers of all peers but one, in order."""

    peers: int
    me: int

    def __len__(self) -> int:
        return self.peers - 1

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[int, ...]: ...
    def __getitem__(self, at: int | slice) -> int | tuple[int, ...]:
        if isinstance(at, slice):
            return tuple(self)[at]
        number = range(self.peers - 1)[at]
        return number + (number >= self.me)

    def __iter__(self) -> Iterator[int]:
        yield from range(self.me)
        yield from range(self.me + 1, self.peers)

    def __contains__(self, number: object) -> bool:
        return number != self.me and number in range(self.peers)


@dataclass(frozen=True, slots=True)
class AllBut(Mapping[str, PeerModel]):
    """What everybody serves, without what one peer serves itself."""

    whole: Mapping[str, PeerModel]  # by peer id, in the order of the ids
    me: str

    def __len__(self) -> int:
        return len(self.whole) - 1

    def __getitem__(self, peer_id: str) -> PeerModel:
        if peer_id == self.me:
            raise KeyError(peer_id)
        return self.whole[peer_id]

    def __iter__(self) -> Iterator[str]:
        return (peer_id for peer_id in self.whole if peer_id != self.me)


@dataclass(frozen=True, slots=True)
class Entries(Sequence[RoundEntry]):
    """What run logs say of a round; names of the others are put in when an entry is asked for."""

    unnamed: Sequence[RoundEntry]  # by peer, without the names of others
    ids: Sequence[str]  # by peer
    row: Mapping[str, float]  # with which everybody mixed

    def __len__(self) -> int:
        return len(self.unnamed)

    @overload
    def __getitem__(self, at: int) -> RoundEntry: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[RoundEntry, ...]: ...
    def __getitem__(self, at: int | slice) -> RoundEntry | tuple[RoundEntry, ...]:
        numbers = range(len(self.unnamed))[at]
        if isinstance(numbers, range):
            return tuple(map(self.__getitem__, numbers))
        cohort = tuple(self.ids[other] for other in Others(len(self.ids), numbers))
        return msgspec.structs.replace(
            self.unnamed[numbers], trust=dict(self.row), cohort=cohort, received=cohort
        )


def brief(entries: Sequence[RoundEntry]) -> Sequence[RoundEntry]:
    """Returns the entries of a round for whoever does not ask for the names of others."""
    return entries.unnamed if isinstance(entries, Entries) else entries
