"""The command line: p2pl-tracker serve."""

import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from p2pl.errors import InputError, P2PLError, wrong

app = typer.Typer(no_args_is_help=True, add_completion=False)


class LogLevel(StrEnum):
    """How much to say on standard error; requests are counted, not logged."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


@app.callback()
def root() -> None:
    """Tell the peers of a session about each other. The tracker never sees a parameter."""


@app.command()
def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; :: is all, IPv4 and IPv6.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8000,
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
    max_sessions: Annotated[int, typer.Option(min=1)] = 10_000,
    max_peers_per_session: Annotated[int, typer.Option(min=1)] = 100_000,
    max_peers_per_address: Annotated[
        int, typer.Option(min=1, help="Peers of one IPv4 address or IPv6 /64.")
    ] = 1_000,
    max_sessions_per_address: Annotated[
        int, typer.Option(min=1, help="Sessions that such an address has peers in.")
    ] = 100,
    address_rate: Annotated[
        float, typer.Option(min=0, help="Requests a second from one address; 0 = no limit.")
    ] = 200.0,
    max_connections: Annotated[int, typer.Option(min=1)] = 4_096,
    max_connections_per_address: Annotated[
        int, typer.Option(min=1, help="Connections of one IPv4 address or IPv6 /64.")
    ] = 1_024,
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="Certificate to serve HTTPS with, and those up to its authority (PEM)."),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Private key of --tls-cert, without a password (PEM).")
    ] = None,
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
    log_level: LogLevel = LogLevel.info,
) -> None:
    """Serve announces until SIGTERM (exit code 0) or Ctrl-C (130)."""
    try:
        from p2pl_tracker import address, register, server
        from p2pl_tracker import app as application
        from p2pl_tracker.swarm import Limits
    except ModuleNotFoundError as missing:
        raise InputError(f"{missing.name} is missing: pip install 'p2pl[tracker]'") from missing

    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if log_level is not LogLevel.debug:  # what strangers send wrong is counted, not logged
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
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
    )
    policy = application.Policy(
        limits=limits,
        interval_s=interval,
        trusted_proxies=address.networks(trusted_proxy or ()),
        address_rate=address_rate,
        served=register.served(sessions or (), private_only=private),
    )
    if (tls_cert is None) != (tls_key is None):
        raise InputError("--tls-cert and --tls-key: allowed only together")
    certificate = server.Certificate(tls_cert, tls_key) if tls_cert and tls_key else None
    if certificate:
        certificate.check()
    listener = server.listen(host, port)
    server.serve(
        application.create_app(policy),
        listener,
        on_ready=lambda url: print(f"listening on {url}", flush=True),
        patience=server.Patience(
            max_connections=max_connections, max_per_address=max_connections_per_address
        ),
        proxies=policy.trusted_proxies,
        certificate=certificate,
    )


def main() -> None:
    """Runs the command line; a p2pl error becomes a message and its exit code."""
    try:
        app()
    except P2PLError as fault:
        print(f"p2pl-tracker: {fault}", file=sys.stderr)
        sys.exit(fault.exit_code)


if __name__ == "__main__":
    main()
