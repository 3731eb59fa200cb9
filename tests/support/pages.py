"""A page of `p2pl watch`, served by a process of its own."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

PATIENCE_S = 60.0  # of a machine that is busy


@dataclass(frozen=True)
class Served:
    """A page that is served."""

    url: str
    process: "subprocess.Popen[str]"

    @property
    def port(self) -> int:
        return httpx.URL(self.url).port or 0


@contextmanager
def serving(*words: str) -> Iterator[Served]:
    """Gives a page, and ends it by Ctrl-C, which it takes without a word."""
    command = [sys.executable, "-m", "p2pl", "watch", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            line = process.stdout.readline()
            assert line.startswith("watch http://"), process.stderr.read()
            yield Served(line.split()[1], process)
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_S)
            assert (process.returncode, process.stderr.read()) == (0, "")
        finally:
            process.kill()
