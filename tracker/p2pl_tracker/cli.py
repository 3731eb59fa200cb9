"""The command line: p2pl-tracker serve, relay."""

import asyncio
import contextlib
import functools
import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from p2pl import __version__
from p2pl.errors import InputError, P2PLError, wrong
from p2pl.extras import install

if TYPE_CHECKING:  # what a command needs is loaded by it
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from p2pl_tracker.issuer import Relays
    from p2pl_tracker.relay import Relay
    from p2pl_tracker.swarm import Limits, Store
    from p2pl_tracker.witness import Checkpoints

RELAY_DRAIN_S = 20.0
MAX_RELAYS = 8

# What both commands have.
Host: TypeAlias = Annotated[
    str, typer.Option(help="Address to listen on; :: is all, IPv4 and IPv6.")
]
Port: TypeAlias = Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")]
Most: TypeAlias = Annotated[int, typer.Option(min=1)]
MostOfAddress: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Connections of one IPv4 address or IPv6 /64.")
]
TlsKey: TypeAlias = Annotated[
    Path | None, typer.Option(help="Private key of --tls-cert, without a password (PEM).")
]

# Without rich, whose tables cut the names of long options on a terminal of 80 columns.
app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


class LogLevel(StrEnum):
    """How much to say on standard error; requests are counted, not logged."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def _version(asked: bool) -> None:
    if asked:
        print(f"p2pl-tracker {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Tell the peers of a session about each other. The tracker never sees a parameter."""


@app.command()
def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    interval: Annotated[
        int, typer.Option(min=1, max=86_400, help="Seconds after which a peer announces again.")
    ] = 60,
    min_interval: Annotated[
        float, typer.Option(min=0, max=3_600, help="Seconds between announces of one peer.")
    ] = 0.5,
    ttl: Annotated[
        int | None,
        typer.Option(min=1, help="Seconds a silent peer stays listed; default 2.5 intervals."),
    ] = None,
    max_peers: Annotated[
        int, typer.Option(min=1, help="Peers, all sessions together.")
    ] = 1_000_000,
    max_sessions: Most = 10_000,
    max_peers_per_session: Most = 100_000,
    max_peers_per_address: Annotated[
        int, typer.Option(min=1, help="Peers of one IPv4 address or IPv6 /64.")
    ] = 1_000,
    max_sessions_per_address: Annotated[
        int, typer.Option(min=1, help="Sessions that such an address has peers in.")
    ] = 100,
    address_rate: Annotated[
        float, typer.Option(min=0, help="Requests a second from one address; 0 = no limit.")
    ] = 200.0,
    max_connections: Most = 4_096,
    max_connections_per_address: MostOfAddress = 1_024,
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="Certificate to serve HTTPS with, and those up to its authority (PEM)."),
    ] = None,
    tls_key: TlsKey = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR",
            help="A network of your own proxies, whose X-Forwarded-For is believed; repeatable.",
        ),
    ] = None,
    sessions: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Session file to serve, a folder of them, or a file with one session id a line; "
            "others are refused. Repeatable.  [default: all sessions]",
        ),
    ] = None,
    private: Annotated[
        bool,
        typer.Option(
            "--private",
            help="Serve private sessions alone: whoever has no valid invitation of a session's "
            "author is refused.",
        ),
    ] = False,
    authors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Serve private sessions of this author alone, a key of 64 hex digits, or a file "
            "with one a line. Repeatable.  [default: everybody's]",
        ),
    ] = None,
    bans: Annotated[
        Path | None,
        typer.Option(
            help="File of whom not to serve: a peer's id, an IP address or a network a line. It is "
            "read anew when it changes, and on SIGHUP."
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            help="Dial peers that say they can be dialled, call those that say a relay of "
            "--relay-url leads to them, and tell others of those that answer first."
        ),
    ] = True,
    witness: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY",
            help="Be a witness of peers' update logs: cosign them with the key in this file, which "
            "is made if it is missing. One checkpoint a log is kept, and never a parameter.",
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Keep peers in a server of Valkey or Redis, valkey://HOST:PORT/DB or "
            "unix:///PATH, which several trackers may share.  [default: in memory]",
        ),
    ] = None,
    relay_url: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A relay that peers are told of, relay://HOST:PORT or relays://HOST:443 (TLS), "
            "with a ticket to it; repeatable.",
        ),
    ] = None,
    relay_key: Annotated[
        Path, typer.Option(help="Key that signs tickets; made if it is missing.")
    ] = Path("relay-key.pem"),
    relay: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Run a relay in this process as well; with --relay-url, where others reach it.",
        ),
    ] = None,
    log_level: LogLevel = LogLevel.info,
) -> None:
    """Serve announces until SIGTERM (exit code 0) or Ctrl-C (130)."""
    try:
        from p2pl_tracker import address, register, server
        from p2pl_tracker import app as application
        from p2pl_tracker.bans import Bans
        from p2pl_tracker.swarm import MOST_UNKNOWN, MOST_UNKNOWN_BESIDE_RELAYS, Limits
    except ModuleNotFoundError as missing:
        raise InputError(f"{missing.name} is missing: {install('tracker')}") from missing

    _log(log_level)
    if ttl is not None and ttl <= interval:
        raise InputError(wrong("--ttl", got=ttl, allowed=f"more than --interval ({interval})"))
    limits = Limits(
        ttl_s=ttl or 2.5 * interval,
        max_peers=max_peers,
        max_sessions=max_sessions,
        max_peers_per_session=max_peers_per_session,
        max_peers_per_address=max_peers_per_address,
        max_sessions_per_address=max_sessions_per_address,
        min_interval_s=min_interval,
        most_unknown=MOST_UNKNOWN_BESIDE_RELAYS if relay_url else MOST_UNKNOWN,
    )
    policy = application.Policy(
        limits=limits,
        interval_s=interval,
        trusted_proxies=address.networks(trusted_proxy or ()),
        address_rate=address_rate,
        served=register.served(sessions or (), private_only=private, authors=authors),
        bans=Bans(bans),
        checks=check,
        relays=_relays(relay_url, relay_key, relay),
        witness=_witness(witness),
    )
    if (tls_cert is None) != (tls_key is None):
        raise InputError("--tls-cert and --tls-key: allowed only together")
    certificate = server.Certificate(tls_cert, tls_key) if tls_cert and tls_key else None
    if certificate:
        certificate.check()
    peers, torrents = _stores(store, limits) if store is not None else (None, None)
    listener = server.listen(host, port)
    beside = load = one = None
    if relay is not None and policy.relays is not None:
        one = _relay_beside(relay, policy.relays)
        beside, load = one.running(), lambda: (one.board.lines, one.board.joints)
    server.serve(
        application.create_app(
            policy,
            store=peers,
            torrents=torrents,
            beside=beside,
            load=load,
            checkpoints=_checkpoints(store) if store is not None else None,
            own_relay=one,
        ),
        listener,
        on_ready=lambda url: print(f"listening on {url}", flush=True),
        patience=server.Patience(
            max_connections=max_connections, max_per_address=max_connections_per_address
        ),
        proxies=policy.trusted_proxies,
        certificate=certificate,
        on_hangup=functools.partial(policy.bans.refresh, always=True),
    )


def _stores(url: str, limits: "Limits") -> tuple["Store", "Store"]:
    """Returns stores that several trackers share: of peers, and of clients of BitTorrent."""
    try:
        from p2pl_tracker.bittorrent import LIMITS
        from p2pl_tracker.store import PREFIX, SharedStore, check, connected
    except ModuleNotFoundError as missing:
        message = f"{missing.name} is missing: {install('tracker-redis')}"
        raise InputError(message) from missing
    asyncio.run(check(url))
    peers = SharedStore(connected(url), limits)
    return peers, SharedStore(connected(url), LIMITS, prefix=PREFIX + "bt:")


def _checkpoints(url: str) -> "Checkpoints":
    """Returns the checkpoints of update logs that several trackers share."""
    from p2pl_tracker.checkpoints import SharedCheckpoints
    from p2pl_tracker.store import connected

    return SharedCheckpoints(connected(url))


def _witness(key: Path | None) -> "Ed25519PrivateKey | None":
    """Returns the key that cosigns update logs; None: the tracker is no witness."""
    if key is None:
        return None
    from p2pl_tracker.issuer import load_or_create

    found = load_or_create(key, "--witness")
    print(
        f"a witness of update logs, with the key {found.public_key().public_bytes_raw().hex()}",
        flush=True,
    )
    return found


def _log(level: LogLevel) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if level is not LogLevel.debug:  # what strangers send wrong is counted, not logged
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        logging.getLogger("websockets").setLevel(logging.CRITICAL)


def _relays(urls: list[str] | None, key: Path, relay: str | None) -> "Relays | None":
    """Returns the relays that peers are told of."""
    from p2pl.protocol.endpoint import parse
    from p2pl_tracker.issuer import Relays, load_or_create

    if not urls:
        if relay is not None:
            hint = "name it by --relay-url relay://HOST:PORT"
            raise InputError(f"--relay: peers must be told where they reach it; {hint}")
        return None
    texts = []
    for url in urls:
        try:
            endpoint = parse(url)
        except ValueError as fault:
            raise InputError(f"--relay-url: {fault}") from fault
        if endpoint.kind not in ("relay", "relays"):
            allowed = "relay://HOST:PORT or relays://HOST:PORT"
            raise InputError(wrong("--relay-url", got=url, allowed=allowed))
        texts.append(str(endpoint))
    if len(set(texts)) > MAX_RELAYS:
        raise InputError(wrong("--relay-url", got=len(texts), allowed=f"at most {MAX_RELAYS}"))
    relays = Relays(tuple(dict.fromkeys(texts)), load_or_create(key))
    print(f"tickets to relays are of the issuer {relays.issuer}", flush=True)
    return relays


def _relay_beside(where: str, relays: "Relays") -> "Relay":
    """Returns a relay for the tracker's own process."""
    from p2pl.rendezvous.board import Policy
    from p2pl_tracker.relay import Doors, Relay, parse_listen
    from p2pl_tracker.server import listen

    issuers = frozenset({bytes.fromhex(relays.issuer)})
    doors = Doors(listen(*parse_listen("--relay", where)))
    print(f"relaying on {' '.join(doors.addresses)}", flush=True)
    return Relay(Policy(issuers=issuers), doors, drain_s=RELAY_DRAIN_S)


@app.command()
def relay(
    host: Host = "127.0.0.1",
    port: Port = 4001,
    issuer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Whose tickets count: `serve --relay-url …` prints its key; repeatable.",
        ),
    ] = None,
    author: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY|FILE",
            help="Whose invitations count as tickets: the author of a private session, by public "
            "key or by the session's file; repeatable.",
        ),
    ] = None,
    is_open: Annotated[
        bool, typer.Option("--open", help="Want no ticket: anybody may use this relay.")
    ] = False,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            help="Certificate for relays:// (WebSocket over TLS), with those up to its authority "
            "(PEM)."
        ),
    ] = None,
    tls_key: TlsKey = None,
    tls_port: Annotated[
        int, typer.Option(min=0, max=65_535, help="For relays://; the one that is let out.")
    ] = 443,
    max_connections: Most = 4_096,
    max_connections_per_address: MostOfAddress = 512,
    max_connections_per_session: Most = 2_048,
    max_connections_per_peer: Most = 64,
    max_bytes_per_second: Annotated[
        float, typer.Option(min=0, help="Copied for all together; 0 = no limit.")
    ] = 0.0,
    max_bytes_per_second_per_peer: Annotated[
        float, typer.Option(min=0, help="Copied to and from one peer; 0 = no limit.")
    ] = 0.0,
    idle_s: Annotated[
        float, typer.Option(min=1, help="Seconds after which a pair ends that carries nothing.")
    ] = 300.0,
    total_s: Annotated[
        float, typer.Option(min=1, help="Seconds after which a pair ends, whatever it carries.")
    ] = 21_600.0,
    total_bytes: Annotated[
        int, typer.Option(min=1, help="Bytes after which a pair ends, both directions together.")
    ] = 256 << 30,
    drain_s: Annotated[
        float, typer.Option(min=0, help="Seconds that running pairs have after SIGTERM.")
    ] = RELAY_DRAIN_S,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="[HOST:]PORT", help="Serve metrics for Prometheus, on /metrics."),
    ] = None,
    log_level: LogLevel = LogLevel.info,
) -> None:
    """Relay between peers that cannot be dialled, until SIGTERM (exit code 0) or Ctrl-C (130).

    What is copied is encrypted between the peers; a relay sees who talks to whom, and how much.
    """
    try:
        from p2pl.protocol.ticket import parse_issuer
        from p2pl.rendezvous.board import Policy
        from p2pl_tracker import register, server
        from p2pl_tracker import relay as relays
    except ModuleNotFoundError as missing:
        raise InputError(f"{missing.name} is missing: {install('tracker')}") from missing

    _log(log_level)
    if bool(issuer or author) == is_open:
        told = "--issuer or --author, and --open: allowed is one of them"
        raise InputError(f"{told}; nobody could use it, else")
    if (tls_cert is None) != (tls_key is None):
        raise InputError("--tls-cert and --tls-key: allowed only together")
    policy = Policy(
        issuers=frozenset(map(parse_issuer, issuer or ())),
        authors=frozenset(map(register.author_of, author or ())),
        is_open=is_open,
        max_lines=max_connections,
        max_per_address=max_connections_per_address,
        max_per_session=max_connections_per_session,
        max_per_peer=max_connections_per_peer,
        bytes_per_s=max_bytes_per_second,
        bytes_per_s_per_peer=max_bytes_per_second_per_peer,
        idle_s=idle_s,
        total_s=total_s,
        total_bytes=total_bytes,
    )
    context = server.Certificate(tls_cert, tls_key).context() if tls_cert and tls_key else None
    server.raise_file_limit(max_connections + server.SPARE_FILES)
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(server.listen(host, port))
        secure = stack.enter_context(server.listen(host, tls_port)) if context else None
        doors = relays.Doors(plain, secure, context)
        one = relays.Relay(policy, doors, drain_s=drain_s)
        if metrics is not None:
            print(f"metrics on {stack.enter_context(relays.shown(one, metrics))}", flush=True)
        ready = f"relaying on {' '.join(doors.addresses)}"
        if asyncio.run(relays.run(one, lambda: print(ready, flush=True))):
            raise KeyboardInterrupt


def main() -> None:
    """Runs the command line; a p2pl error becomes a message and its exit code."""
    try:
        app()
    except P2PLError as fault:
        print(f"p2pl-tracker: {fault}", file=sys.stderr)
        sys.exit(fault.exit_code)


if __name__ == "__main__":
    main()
