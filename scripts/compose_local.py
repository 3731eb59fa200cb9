"""Runs the services of compose.yaml without containers: the same commands, with local addresses.

Only what stands in the file is run. Its commands are lists in JSON, on a line of their own, so that
no YAML library is needed to read them here; a linter checks that the whole of it is valid.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

from launcher import BIN, ROOT, Fault, Running, Swarm, new_folder, wait_until

READY_S = 120.0
DONE_S = 300.0


def main() -> None:
    """Runs all services and writes their output into the folder given on the command line."""
    try:
        out = new_folder(sys.argv[1:], ROOT / "runs" / "compose")
    except Fault as fault:
        sys.exit(f"compose_local: {fault}")
    swarm = Swarm(out, cwd=ROOT)
    commands = services(ROOT / "compose.yaml", out, swarm.port)
    tracker, report = commands.pop("tracker"), commands.pop("report")
    with swarm:
        started = swarm.start("tracker", tracker)
        wait_until(lambda: "listening on" in started.text(), READY_S, "tracker ready")
        running = {name: swarm.start(name, command) for name, command in commands.items()}
        for name, service in running.items():
            service.succeed(DONE_S)
            print(f"{name}: {last_words(service)}")
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


def last_words(service: Running) -> str:
    """Returns how a peer's run ended, in its own words."""
    lines = service.text().splitlines()
    return next((line for line in reversed(lines) if line.startswith("finished")), "")


if __name__ == "__main__":
    main()
