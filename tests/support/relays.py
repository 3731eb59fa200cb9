"""A relay in the test's own process, and certificates for one."""

import asyncio
import datetime
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from p2pl.protocol.endpoint import Endpoint
from p2pl.rendezvous.board import Board, Policy
from p2pl_tracker.relay import Doors, Relay

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Certificate:
    """Vouches for itself."""

    chain: Path
    key: Path

    @property
    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        return context

    @property
    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.chain)


def certificate(folder: Path, *hosts: str) -> Certificate:
    """Returns a certificate for these IP addresses, or for this machine."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "relay")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.IPAddress(ipaddress.ip_address(host)) for host in hosts or (HOST,)]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    found = Certificate(folder / "relay.pem", folder / "relay-key.pem")
    found.chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    found.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return found


@dataclass
class Running:
    """A relay that runs, and where."""

    board: Board
    plain: Endpoint
    secure: Endpoint


@asynccontextmanager
async def relaying(
    policy: Policy | None = None, *, port: int = 0, context: ssl.SSLContext | None = None
) -> AsyncIterator[Running]:
    """Yields a relay on this machine, open to all where no policy says otherwise."""
    listeners = [socket.create_server((HOST, at)) for at in (port, 0)[: 2 if context else 1]]
    try:
        doors = Doors(listeners[0], listeners[1] if context else None, context)
        relay = Relay(policy or Policy(is_open=True), doors, drain_s=0.0)
        ports = [listener.getsockname()[1] for listener in listeners]
        async with relay.running():
            plain, secure = Endpoint("relay", HOST, ports[0]), Endpoint("relays", HOST, ports[-1])
            yield Running(relay.board, plain, secure)
    finally:
        for listener in listeners:
            listener.close()
        await asyncio.sleep(0)
