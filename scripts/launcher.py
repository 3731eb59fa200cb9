"""A tracker and peers as real processes on loopback, for the scripts and for the tests.

Only the machine is shared: every process talks over real sockets, and leaves its output in a file.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SERVER_PORTS = range(20_000, 32_768)  # below those that Linux, macOS and Windows hand out
POLL_S = 0.05
# For what comes as soon as the machine gets to it: it ends a wait that hangs, and bounds no speed.
# Six processes have loaded torch after 12 s on two idle cores, and after 75 s on two busy ones.
PATIENCE_S = 240.0
SHOWN = 3_000  # characters of a log, in an error


class Fault(Exception):
    """A process failed, or something did not come in time."""


def free_port() -> int:
    """Returns a loopback port that nothing has, and that no connection is given by itself."""
    while True:
        port = secrets.choice(SERVER_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def new_folder(asked: Sequence[str], otherwise: Path) -> Path:
    """Returns a folder with nothing in it, made where there is none; nothing is ever deleted.

    Args:
        asked: the command line after the script's name: a folder, or nothing.
        otherwise: where nobody asked: this one, or the same with -2, -3, …

    Raises:
        Fault: there is something in the folder that was asked for, or it cannot be made.
    """
    if len(asked) > 1:
        raise Fault(f"got {len(asked)} arguments, allowed: one folder")
    out = Path(asked[0]).resolve() if asked else otherwise
    number = 1
    while not asked and out.exists():
        number += 1
        out = otherwise.with_name(f"{otherwise.name}-{number}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        is_taken = any(out.iterdir())
    except OSError as fault:
        raise Fault(f"{out}: {fault.strerror}; name another folder") from fault
    if is_taken:
        raise Fault(f"{out}: got a folder with something in it, allowed: a new or an empty one")
    return out


def wait_until(reached: Callable[[], object], deadline_s: float, what: str) -> None:
    """Returns when `reached()` is true; raises `Fault` with `what` after the deadline."""
    end = time.monotonic() + deadline_s
    while not reached():
        if time.monotonic() >= end:
            raise Fault(f"not within {deadline_s:g} s: {what}")
        time.sleep(POLL_S)


@dataclass
class Running:
    """One child process with its output in a file."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path
    stream: IO[bytes]

    @property
    def is_over(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def text(self) -> str:
        """Returns all that the process has printed so far."""
        return self.output.read_text(errors="replace")

    def kill(self) -> None:
        """Kills the process as the power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self, sign: signal.Signals = signal.SIGTERM, deadline_s: float = PATIENCE_S) -> int:
        """Asks the process to end and returns its exit code."""
        self.process.send_signal(sign)
        return self.wait(deadline_s)

    def wait(self, deadline_s: float = PATIENCE_S) -> int:
        """Returns the exit code; raises `Fault` with the output after the deadline."""
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired as late:
            shown = self.text()[-SHOWN:]
            raise Fault(f"{self.name} still runs after {deadline_s:g} s:\n{shown}") from late

    def succeed(self, deadline_s: float = PATIENCE_S) -> None:
        """Returns when the process has ended well; raises `Fault` with the output if it did not."""
        code = self.wait(deadline_s)
        if code:
            raise Fault(f"{self.name} failed with exit code {code}:\n{self.text()[-SHOWN:]}")


@dataclass
class Peer(Running):
    """A `p2pl join` process and its run directory."""

    run_dir: Path = field(default_factory=Path)

    def logged(self, name: str) -> list[dict[str, Any]]:
        """Returns the entries of a log so far; a line that is still being written is left out."""
        log = self.run_dir / f"{name}.jsonl"
        lines = log.read_text().split("\n")[:-1] if log.exists() else []
        return [json.loads(line) for line in lines]

    def rounds(self) -> list[dict[str, Any]]:
        """Returns the rounds logged so far."""
        return self.logged("rounds")

    def last_round(self) -> int:
        """Returns the number of the last round logged; 0 before the first."""
        rounds = self.rounds()
        return int(rounds[-1]["round"]) if rounds else 0

    def roles(self) -> list[dict[str, Any]]:
        """Returns the roles that the peer has taken in elections, in order."""
        return [event for event in self.logged("raft") if event["event"] == "role"]

    def summary(self) -> dict[str, Any]:
        """Returns the summary that the process wrote when it ended."""
        summary: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return summary


class Swarm:
    """Starts processes in one folder and ends whatever is left of them.

    Args:
        folder: for session files, run directories and the output of the processes.
        cwd: where the processes run; None: where this one does.
        environment: what they find beside the environment of this process.
    """

    def __init__(
        self, folder: Path, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.cwd = folder, cwd
        # Unbuffered, so that what a process says is in its file when it says it.
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self.port = free_port()
        self.started: list[Running] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def url(self) -> str:
        """The tracker's address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, name: str, command: Sequence[str]) -> Running:
        """Starts a command with its output in a file of its own."""
        running = Running(name, *self._spawn(name, command))
        self.started.append(running)
        return running

    def tracker(self, *options: str) -> Running:
        """Starts the tracker and returns when it says that it listens."""
        listen = ["--host", "127.0.0.1", "--port", str(self.port)]
        tracker = self.start("tracker", [str(BIN / "p2pl-tracker"), "serve", *listen, *options])
        ready = f"listening on {self.url}\n"
        wait_until(lambda: ready in tracker.text() or tracker.is_over, PATIENCE_S, "tracker ready")
        if ready not in tracker.text():
            raise Fault(f"the tracker did not start:\n{tracker.text()}")
        return tracker

    def peer(self, name: str, torrent: Path, *options: str) -> Peer:
        """Starts `p2pl join`; the run directory is named after the peer, so a restart resumes."""
        run_dir = self.folder / name
        listen = ["--listen", "127.0.0.1:0", "--run-dir", str(run_dir)]
        command = [str(BIN / "p2pl"), "join", str(torrent), *listen, *options]
        peer = Peer(name, *self._spawn(name, command), run_dir)
        self.started.append(peer)
        return peer

    def create(
        self, spec: str, name: str, *replacements: tuple[str, str], options: Sequence[str] = ()
    ) -> Path:
        """Returns a session file made by `p2pl create` from TOML, pointing at this tracker."""
        for old, new in replacements:
            assert old in spec, f"{old!r} is not in the spec"
            spec = spec.replace(old, new)
        toml, torrent = self.folder / f"{name}.toml", self.folder / f"{name}.torrent"
        toml.write_text(spec)
        command = [str(BIN / "p2pl"), "create", str(toml), "--out", str(torrent)]
        command += ["--tracker", self.url, *options]
        subprocess.run(command, check=True, timeout=PATIENCE_S, stdout=subprocess.DEVNULL)
        return torrent

    def late_peer(
        self, name: str, torrent: Path, *options: str, others: Iterable[Running] = ()
    ) -> Peer:
        """Starts a peer while the others stand still, until it is loaded.

        To load takes as long as many rounds, on a busy machine as long as all of them.
        """
        others = list(others)
        for other in others:
            other.process.send_signal(signal.SIGSTOP)
        try:
            peer = self.peer(name, torrent, *options)
            loaded = f"{peer.name} loaded"
            wait_until(lambda: "session " in peer.text() or peer.is_over, PATIENCE_S, loaded)
        finally:
            for other in others:
                other.process.send_signal(signal.SIGCONT)
        return peer

    def end(self) -> None:
        """Kills what still runs.

        Raises:
            subprocess.TimeoutExpired: one is not gone after `PATIENCE_S`; all others are.
        """
        for running in self.started:
            if not running.is_over:
                running.process.kill()
        with ExitStack() as stack:
            for running in self.started:
                stack.callback(running.stream.close)
                stack.callback(running.process.wait, PATIENCE_S)

    def _spawn(
        self, name: str, command: Sequence[str]
    ) -> tuple[subprocess.Popen[bytes], Path, IO[bytes]]:
        # A peer that is started again under its name has a file of its own: what it says is asked.
        again = sum(other.name == name for other in self.started)
        output = self.folder / (f"{name}-{again}.log" if again else f"{name}.log")
        stream = output.open("wb")
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, cwd=self.cwd, env=self.environment
        )
        return process, output, stream
