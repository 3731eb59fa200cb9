"""Schemathesis against a tracker on a socket, by the schema that it publishes at /openapi.json.

    scripts/fuzz_http [SECONDS]

It makes up requests of every operation, right ones and wrong ones, and chains of them. An answer of
5xx ends it, and so does a traceback of the tracker. The limit of requests by address is lifted, or
most would be refused before anything looks at them.
"""

import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from launcher import Fault, Swarm

WORKERS = 4
MORE_S = 240.0  # to start, and to end what is under way


def main() -> None:
    """Runs it, and says what came of it."""
    program, seconds = sys.argv[1], float(sys.argv[2])
    try:
        with tempfile.TemporaryDirectory() as name, Swarm(Path(name)) as swarm:
            tracker = swarm.tracker("--address-rate", "0")
            command = [program, "fuzz", f"{swarm.url}/openapi.json", "--no-color"]
            command += ["--checks", "not_a_server_error", "--max-time", f"{seconds:g}"]
            command += ["--workers", f"{WORKERS}", "--suppress-health-check", "all"]
            code = subprocess.run(command, check=False, timeout=seconds + MORE_S).returncode
            if tracker.is_over or "Traceback" in tracker.text():
                raise Fault(f"the tracker failed:\n{tracker.text()}")
            counted = [line for line in _metrics(swarm.url) if line.startswith("p2pl_tracker_ref")]
            print("\n".join(counted))
    except Fault as fault:
        sys.exit(f"fuzz_http: {fault}")
    sys.exit(code)


def _metrics(url: str) -> list[str]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        return bytes(answer.read()).decode().splitlines()


if __name__ == "__main__":
    main()
