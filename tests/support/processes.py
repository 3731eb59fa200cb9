"""Real processes on loopback: a tracker, peers, and the means to kill them and read their logs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest
from demo import free_port

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
POLL_S = 0.05
# For what comes as soon as the machine gets to it: it ends a test that hangs, and bounds no speed.
# Six processes have loaded torch after 12 s on two idle cores, and after 75 s on two busy ones.
PATIENCE_S = 240.0


def wait_until(reached: Callable[[], bool], deadline_s: float, what: str) -> None:
    """Returns when `reached()` is true, or fails the test with `what` after the deadline."""
    end = time.monotonic() + deadline_s
    while not reached():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(POLL_S)


@dataclass
class Running:
    """One child process with its output in a file."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path
    stream: IO[bytes]

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
        """Returns the exit code, or fails the test with the output after the deadline."""
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} still runs after {deadline_s} s:\n{self.text()[-3_000:]}")


@dataclass
class Peer(Running):
    """A `p2pl join` process and its run directory."""

    run_dir: Path = field(default_factory=Path)

    def rounds(self) -> list[dict[str, Any]]:
        """Returns the rounds logged so far; a line that is still being written is left out."""
        log = self.run_dir / "rounds.jsonl"
        lines = log.read_text().split("\n")[:-1] if log.exists() else []
        return [json.loads(line) for line in lines]

    def last_round(self) -> int:
        """Returns the number of the last round logged; 0 before the first."""
        rounds = self.rounds()
        return int(rounds[-1]["round"]) if rounds else 0

    def summary(self) -> dict[str, Any]:
        """Returns the summary that the process wrote when it ended."""
        summary: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return summary


class Swarm:
    """Starts processes in one folder and ends whatever is left of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.started: list[Running] = []

    @property
    def url(self) -> str:
        """The tracker's address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, name: str, command: Sequence[str]) -> Running:
        """Starts a command with its output in a file of its own."""
        process, output, stream = self._spawn(name, command)
        running = Running(name=name, process=process, output=output, stream=stream)
        self.started.append(running)
        return running

    def tracker(self, *options: str) -> Running:
        """Starts the tracker and returns when it says that it listens."""
        command = [
            str(BIN / "p2pl-tracker"),
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        tracker = self.start("tracker", [*command, *options])
        ready = f"listening on {self.url}\n"
        wait_until(
            lambda: ready in tracker.text() or _is_over(tracker), PATIENCE_S, "tracker ready"
        )
        assert ready in tracker.text(), tracker.text()
        return tracker

    def peer(self, name: str, torrent: Path, *options: str) -> Peer:
        """Starts `p2pl join`; the run directory is named after the peer, so a restart resumes."""
        run_dir = self.folder / name
        listen = ["--listen", "127.0.0.1:0", "--run-dir", str(run_dir)]
        command = [str(BIN / "p2pl"), "join", str(torrent), *listen, *options]
        process, output, stream = self._spawn(name, command)
        peer = Peer(name=name, process=process, output=output, stream=stream, run_dir=run_dir)
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
            wait_until(lambda: "session " in peer.text() or _is_over(peer), PATIENCE_S, loaded)
        finally:
            for other in others:
                other.process.send_signal(signal.SIGCONT)
        return peer

    def end(self) -> None:
        """Kills what still runs."""
        for running in self.started:
            if running.process.poll() is None:
                running.process.kill()
                running.process.wait(10)
            running.stream.close()

    def _spawn(
        self, name: str, command: Sequence[str]
    ) -> tuple[subprocess.Popen[bytes], Path, IO[bytes]]:
        output = self.folder / f"{name}-{len(self.started)}.out"
        stream = output.open("wb")
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        return process, output, stream


def _is_over(running: Running) -> bool:
    return running.process.poll() is not None
