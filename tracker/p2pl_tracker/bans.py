"""Whom an operator keeps out: peers, addresses and networks, in a file that is read anew."""

import base64
import ipaddress
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from p2pl import regular
from p2pl.errors import AnnounceError, InputError, wrong
from p2pl.protocol.identity import ID_PATTERN
from p2pl_tracker.listing import Listing

log = logging.getLogger(__name__)

MAX_LINES = 100_000  # chosen: 20 MB in memory
ALLOWED = "a peer id of 64 hex digits, an IP address, or a network such as 198.51.100.0/24"
BANNED = "this tracker's operator does not serve {}; ask there, or name another tracker"
_ID_AT = slice(2, 46)  # of a row: the peer's id in base64


@dataclass(frozen=True, slots=True)
class Banned:
    """What stands in the file.

    Attributes:
        peers: ids, 32 bytes each.
        rows: the same, as they stand in a row.
        networks: the first bits of each, by IP version and how many they are.
    """

    peers: frozenset[bytes] = frozenset()
    rows: frozenset[bytes] = frozenset()
    networks: dict[tuple[int, int], frozenset[int]] = field(default_factory=dict)

    def has_host(self, host: str) -> bool:
        """Returns whether an IP address is one of these, or of one of these networks."""
        if not self.networks:
            return False
        address = ipaddress.ip_address(host)
        number, bits = int(address), address.max_prefixlen
        return any(
            version == address.version and number >> (bits - length) in found
            for (version, length), found in self.networks.items()
        )

    def without(self, listings: Sequence[Listing]) -> Sequence[Listing]:
        """Returns the listings but for those of peers that are one of these."""
        if not self.rows and not self.networks:
            return listings
        return [
            one
            for one in listings
            if one.row[_ID_AT] not in self.rows and not self.has_host(one.host)
        ]


def read(path: Path) -> Banned:
    """Returns what stands in a file: an entry a line, and what follows a # is a remark.

    Raises:
        InputError: it cannot be read, or a line is none of these.
    """
    try:
        lines = regular.read(path).decode("utf-8", "replace").splitlines()
    except OSError as fault:
        got = f"{path} ({fault.strerror})"
        raise InputError(wrong("--bans", got=got, allowed="a file to read")) from fault
    if len(lines) > MAX_LINES:
        raise InputError(wrong("--bans", got=f"{len(lines)} lines", allowed=f"{MAX_LINES}"))
    peers: set[bytes] = set()
    networks: dict[tuple[int, int], set[int]] = {}
    for number, line in enumerate(lines, 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        if ID_PATTERN.fullmatch(entry):
            peers.add(bytes.fromhex(entry))
            continue
        try:
            network = ipaddress.ip_network(entry)
        except ValueError as fault:
            message = wrong(f"--bans: {path}, line {number}", got=entry, allowed=ALLOWED)
            raise InputError(message) from fault
        first = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
        networks.setdefault((network.version, network.prefixlen), set()).add(first)
    return Banned(
        frozenset(peers),
        frozenset(base64.b64encode(peer) for peer in peers),
        {length: frozenset(found) for length, found in networks.items()},
    )


class Bans:
    """Refuses whom the file names, as it is now.

    Args:
        path: of the file; None: there is none, and nobody is refused.

    Raises:
        InputError: it cannot be read, or a line is wrong.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen = self._stamp()
        self.now = read(path) if path is not None else Banned()

    def check_host(self, host: str) -> None:
        """Raises AnnounceError where an address is not served (403)."""
        if self.now.has_host(host):
            raise AnnounceError(BANNED.format("this address"), status=403)

    def check_peer(self, digest: bytes) -> None:
        """Raises AnnounceError where a peer is not served (403)."""
        if digest in self.now.peers:
            raise AnnounceError(BANNED.format("this peer"), status=403)

    def refresh(self, *, always: bool = False) -> None:
        """Reads the file anew where it has changed; one that is wrong leaves things as they were.

        Args:
            always: whether it is read although it seems to be the same.
        """
        stamp = self._stamp()
        if self._path is None or (stamp == self._seen and not always):
            return
        self._seen = stamp
        try:
            self.now = read(self._path)
        except InputError as fault:
            log.error("whom to keep out stays as it was: %s", fault)  # noqa: TRY400
        else:
            log.info("read %s anew", self._path)

    def _stamp(self) -> tuple[int, int, int] | None:
        """Returns what changes when the file does; None where there is none."""
        try:
            found = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino) if found else None
