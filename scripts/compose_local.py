"""Runs the services of compose.yaml without containers: the same commands, with local addresses.

Only what stands in the file is run. Its commands are lists in JSON, on a line of their own, so that
no YAML library is needed to read them here; a linter checks that the whole of it is valid.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from demo import free_port

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
READY_S = 120.0
DONE_S = 300.0


def main() -> None:
    """Runs all services and writes their output into the folder given on the command line."""
    out = Path(sys.argv[1]).resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    commands = services(ROOT / "compose.yaml", out, free_port())
    tracker, report = commands.pop("tracker"), commands.pop("report")
    running = {"tracker": start("tracker", tracker, out)}
    try:
        wait_for("listening on", out / "tracker.log")
        running |= {name: start(name, command, out) for name, command in commands.items()}
        for name in commands:
            if running[name].wait(DONE_S):
                sys.exit(f"{name} failed:\n{(out / name).with_suffix('.log').read_text()}")
            print(f"{name}: {last_words(out, name)}")
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait(20)
    print(subprocess.run(report, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def services(file: Path, out: Path, port: int) -> dict[str, list[str]]:
    """Returns each service's command, with this machine's folders and addresses in it."""
    local = {
        "/runs": str(out),
        "http://tracker:8000": f"http://127.0.0.1:{port}",
        "0.0.0.0:7000": "127.0.0.1:0",
        "0.0.0.0": "127.0.0.1",
        "8000": str(port),
    }
    commands: dict[str, list[str]] = {}
    name = ""
    for line in file.read_text().splitlines():
        if service := re.fullmatch(r"  ([\w-]+):", line):
            name = service[1]
        elif command := re.fullmatch(r"    command: (\[.*\])", line):
            words = [re.sub(r"^/runs(?=/)", str(out), word) for word in json.loads(command[1])]
            program, *rest = [local.get(word, word) for word in words]
            commands[name] = [str(BIN / program), *rest]
    return commands


def start(name: str, command: list[str], out: Path) -> subprocess.Popen[bytes]:
    """Returns a service's process; its output goes into a log of its own."""
    with (out / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def wait_for(words: str, log: Path) -> None:
    """Returns when the words stand in the log."""
    until = time.monotonic() + READY_S
    while words not in log.read_text():
        if time.monotonic() > until:
            sys.exit(f"not ready within {READY_S:.0f} s:\n{log.read_text()}")
        time.sleep(0.1)


def last_words(out: Path, name: str) -> str:
    """Returns how a peer's run ended, in its own words."""
    lines = (out / f"{name}.log").read_text().splitlines()
    return next((line for line in reversed(lines) if line.startswith("finished")), "")


if __name__ == "__main__":
    main()
