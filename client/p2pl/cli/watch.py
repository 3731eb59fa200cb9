"""`p2pl watch`: a live page of runs, and the same beside `p2pl join` and `p2pl simulate`."""

import subprocess
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, TextIO

import typer

from p2pl.cli.app import extra
from p2pl.errors import InputError, printable, wrong

LOCAL = "127.0.0.1"
END_S = 3.0  # in which the page's process ends, once it is told to


def watch(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories of `p2pl join`, or folders of them, as `p2pl simulate --out` "
            "writes one. Those that are not there yet are waited for.",
        ),
    ],
    host: Annotated[
        str,
        typer.Option(
            help="Address to serve the page at. Where others can reach it, the page's address has "
            "a secret token in it."
        ),
    ] = LOCAL,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to serve the page at; 0: any free one.")
    ] = 0,
    open_browser: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser of this machine.")
    ] = False,
    inherited: Annotated[int | None, typer.Option("--socket", hidden=True)] = None,
) -> None:
    """Show runs as a live page in the browser.

    It follows runs that go on, and shows those that are over. The page loads nothing from elsewhere
    and changes nothing. Ctrl-C ends it.
    """
    if inherited is not None:
        _serve_for_parent(runs, inherited)
        return
    _check_installed()
    from p2pl.watch import hub, server

    _check_are_folders(runs)
    place = server.listen(host, port)
    print(f"watch {place.url}", flush=True)
    for run in runs:
        if not hub.has_runs(run):
            what = "in which there is no run yet" if run.exists() else "which is not there yet"
            print(printable(f"waiting for {run}, {what}"), flush=True)
    if open_browser:
        webbrowser.open(place.url)
    server.serve(runs, place)


def _check_are_folders(runs: list[Path]) -> None:
    """Raises InputError for a file: it would be waited for without end."""
    for run in runs:
        if run.exists() and not run.is_dir():
            allowed = "the directory of a run, or a folder of such"
            raise InputError(wrong("RUNS", got=f"{run}, a file", allowed=allowed))


def _check_installed() -> None:
    """Raises InputError where something is missing that the page needs."""
    with extra("watch"):
        import p2pl.watch.server  # noqa: F401  # and all that it imports
        from p2pl.watch.app import plotly_file

        plotly_file()


def _serve_for_parent(runs: list[Path], inherited: int) -> None:
    """Shows runs on a socket that another process has opened, until that process ends."""
    import socket

    from p2pl.watch import server

    is_over = threading.Event()

    def wait_for_the_end() -> None:
        with suppress(OSError):
            sys.stdin.buffer.read()
        is_over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    server.serve(runs, server.placed(socket.socket(fileno=inherited)), is_over)


@contextmanager
def beside(run: Path, said: TextIO) -> Iterator[None]:
    """Shows a run as a live page meanwhile, by a process of its own, which cannot disturb it.

    Args:
        run: its directory, or a folder of them; it need not be there yet.
        said: where the page's address is written.

    Raises:
        InputError: what the page needs is not installed, or nothing can listen on this machine.
    """
    _check_installed()
    from p2pl.watch import server

    place = server.listen(LOCAL, 0)
    with place.listening as listening:
        command = [sys.executable, "-m", "p2pl", "watch", "--socket", str(listening.fileno())]
        page = subprocess.Popen(
            [*command, "--", str(run)],
            stdin=subprocess.PIPE,  # it ends when this process does, however that ends
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listening.fileno()],
            start_new_session=True,  # Ctrl-C is for the run
        )
    print(f"watch {place.url}", file=said, flush=True)
    try:
        yield
    finally:
        if page.stdin:
            page.stdin.close()
        try:
            page.wait(END_S)
        except subprocess.TimeoutExpired:
            page.kill()
            page.wait()
