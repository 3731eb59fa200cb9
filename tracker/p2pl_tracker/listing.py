"""What others are told of a peer: its row, and which of its endpoints for whom.

An address of a machine or of a network means something else, or nothing, to whoever is elsewhere.
So a loopback address is told to peers of the same machine alone, and a private one to peers of the
same network: who comes from the same public address (behind one NAT, or of one IPv6 /64), or who
like the peer itself comes to the tracker from a private address.
"""

from dataclasses import dataclass
from typing import Self

import msgspec

from p2pl.protocol.address import Reach, reach_of
from p2pl.protocol.announce import (
    Announce,
    encode_endpoints,
    encode_proof,
    encode_row,
    row_of_six,
)
from p2pl.protocol.endpoint import Endpoint, parse
from p2pl_tracker.address import address_group, from_outside, is_loopback


@dataclass(frozen=True, slots=True)
class Asker:
    """Who is told.

    Attributes:
        host: the IP address that it is seen at.
        version: of its announce.
        here: where it reaches the tracker's machine; "": it is on that machine, or nobody knows.
    """

    host: str
    version: int = 1
    here: str = ""

    def reach_to(self, host: str) -> Reach:
        """Returns up to how near addresses of a peer that is seen at `host` mean the same here."""
        if self._is_beside_tracker(host) and self._is_beside_tracker(self.host):
            return Reach.MACHINE
        if address_group(host) == address_group(self.host):
            return Reach.SITE
        both_private = Reach.WORLD not in (reach_of(host), reach_of(self.host))
        return Reach.SITE if both_private else Reach.WORLD

    def _is_beside_tracker(self, host: str) -> bool:
        return is_loopback(host) or host == self.here


class Listing:
    """One peer as others are told of it, encoded once for all of them.

    Args:
        announce: of the peer, checked.
        host: the IP address that it came from.
    """

    __slots__ = ("_endpoints", "_proof", "host", "row")

    def __init__(self, announce: Announce, host: str) -> None:
        self.host = host
        self.row = encode_row(announce, host)
        self._endpoints: tuple[bytes, bytes, bytes] | None = None  # by `Reach`; b"": as it is seen
        self._proof = b""
        if announce.version > 1:
            ways = [parse(text) for text in announce.endpoints]
            self._endpoints = _by_reach(ways, Endpoint("tcp", host, announce.port))
            self._proof = encode_proof(announce.proof)

    @classmethod
    def bare(cls, host: str, row: bytes) -> Self:
        """Returns a listing that is its row and nothing else, for whoever knows what it means."""
        listing = cls.__new__(cls)
        listing.host, listing.row = host, row
        listing._endpoints, listing._proof = None, b""
        return listing

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Returns the listing that `encode` wrote, on this machine or on a replica's.

        Raises:
            msgspec.DecodeError: it did not.
        """
        host, row, endpoints, proof = _DECODER.decode(data)
        listing = cls.bare(host, row)
        listing._endpoints, listing._proof = endpoints, proof
        return listing

    def encode(self) -> bytes:
        """Returns the listing as bytes, for a store that is elsewhere."""
        return _ENCODER.encode((self.host, self.row, self._endpoints, self._proof))

    @property
    def detail_bytes(self) -> int:
        """How many bytes are held beside the row of four."""
        return sum(map(len, {*(self._endpoints or ())})) + len(self._proof)

    def forget_details(self) -> None:
        """Drops what is held beside the row of four."""
        self._endpoints, self._proof = None, b""

    def told_to(self, asker: Asker) -> bytes:
        """Returns the row that `asker` is given."""
        row = self.row
        if asker.here and is_loopback(self.host):
            row = from_outside(row, asker.here)
        if self._endpoints is None or asker.version == 1:
            return row
        endpoints = self._endpoints[asker.reach_to(self.host)]
        if row is self.row and not endpoints and self._proof == NO_PROOF:
            return row
        return row_of_six(row, endpoints or self._as_seen(), self._proof)

    def _as_seen(self) -> bytes:
        _, host, port, *_ = self.row.decode().split(",")
        return encode_endpoints([str(Endpoint("tcp", host.strip('"'), int(port)))])


def dialled_port(announce: Announce, host: str) -> int:
    """Returns where a peer says that it can be dialled at the address it is seen at; 0: nowhere.

    Args:
        announce: of the peer, checked.
        host: the IP address that it came from.
    """
    if announce.version == 1:
        return announce.port
    ways = map(parse, announce.endpoints)
    return next((way.port for way in ways if (way.kind, way.host) == ("tcp", host)), 0)


NO_PROOF = encode_proof(b"")
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(tuple[str, bytes, tuple[bytes, bytes, bytes] | None, bytes])


def _by_reach(ways: list[Endpoint], seen: Endpoint) -> tuple[bytes, bytes, bytes]:
    """Returns the endpoints for peers of the same machine, of the same site, and for all others."""
    found = []
    for nearest in Reach:
        told = [way for way in ways if way.reach >= nearest]
        if nearest is Reach.MACHINE:  # on one machine, nothing is better
            told = [way for way in ways if way.reach is Reach.MACHINE] or told
        found.append(b"" if told == [seen] else encode_endpoints(map(str, told)))
    machine, site, world = found
    site = machine if site == machine else site
    return machine, site, site if world == site else world
