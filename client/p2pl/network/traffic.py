"""How many bytes went over the wire, in all and by peer; plain numbers for the run log."""

from dataclasses import dataclass, field

MAX_NAMED_PEERS = 4_096  # chosen: about 1 MiB of tables; a peer costs nothing to make up


@dataclass(slots=True)
class Traffic:
    """Counts since the wire was opened: payloads and headers, without ZeroMQ's own framing."""

    bytes_in: int = 0
    bytes_out: int = 0
    messages_out: int = 0  # headers, each with its chunk
    transfers_in: int = 0  # complete and verified
    transfers_out: int = 0  # handed to the network to the last byte
    relayed_in: int = 0  # by relays: all that came over such a connection, framing included
    relayed_out: int = 0
    garbage: int = 0  # frames that broke the protocol
    bytes_in_by_peer: dict[str, int] = field(default_factory=dict)
    bytes_out_by_peer: dict[str, int] = field(default_factory=dict)
    garbage_by_peer: dict[str, int] = field(default_factory=dict)
    moves_by_peer: dict[str, int] = field(default_factory=dict)  # signs that it takes what it pulls

    def came(self, peer_id: str | None, count: int) -> None:
        """Counts bytes that came in; None where nobody has proved to be the sender.

        Args:
            peer_id: of the sender.
            count: bytes of the message.
        """
        self.bytes_in += count
        _add(self.bytes_in_by_peer, peer_id, count)

    def went(self, peer_id: str | None, count: int) -> None:
        """Counts the bytes of a message that went out.

        Args:
            peer_id: of the receiver; None where it has not proved who it is.
            count: bytes of the message.
        """
        self.messages_out += 1
        self.bytes_out += count
        _add(self.bytes_out_by_peer, peer_id, count)

    def moved(self, peer_id: str) -> None:
        """Counts a sign that what a peer pulls moves: its word, or a part that its line took."""
        _add(self.moves_by_peer, peer_id, 1)

    def broke(self, peer_id: str | None) -> None:
        """Counts a frame that broke the protocol."""
        self.garbage += 1
        _add(self.garbage_by_peer, peer_id, 1)


def _add(table: dict[str, int], peer_id: str | None, count: int) -> None:
    if peer_id is not None and (peer_id in table or len(table) < MAX_NAMED_PEERS):
        table[peer_id] = table.get(peer_id, 0) + count
