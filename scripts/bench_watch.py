"""Measures the live page in a real browser: the first paint, and how often it is drawn anew.

A swarm of made-up logs is shown: 100 peers of 200 rounds, and then more, 5 rounds a second. Counted
are drawings of the three pictures of trust (peer by round, graph, matrix), and the processor time
of the page and of the server. Environment: none. Usage: bench_watch.py [--peers N] [--rounds N]
[--cohort N] [--seconds S].
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import chromium
import psutil
from swarm_logs import Swarm

if TYPE_CHECKING:
    from playwright.sync_api import Page

PAINTS = "performance.getEntriesByType('paint').map((one) => [one.name, one.startTime])"
A_SECOND = 5
SHOWN_S = 60.0


def main() -> None:
    """Prints what was measured."""
    options = _options()
    if chromium.found() is None:
        print("bench: needs Chromium; nothing was measured")
        return
    with tempfile.TemporaryDirectory() as folder:
        swarm = Swarm(Path(folder), options.peers, options.cohort, 2 * options.rounds)
        for index in range(1, options.rounds + 1):
            swarm.round(index)
        command = [sys.executable, "-m", "p2pl", "watch", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = server.stdout.readline().split()[1]
            try:
                _measure(url, swarm, options, server.pid)
            finally:
                server.terminate()
                swarm.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--cohort", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=10.0)
    return parser.parse_args()


def _measure(url: str, swarm: Swarm, options: argparse.Namespace, server: int) -> None:
    """Prints what a browser shows of the swarm.

    Args:
        url: of the page.
        swarm: that goes on meanwhile.
        options: of the command line.
        server: process that serves the page.
    """
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f}{' (machine loaded)' if load > 1 else ''}")
    with chromium.opened() as browser:
        browser.new_page().goto("about:blank")  # the browser itself is up
        page = browser.new_page(viewport={"width": 1280, "height": 2000})
        page.goto(url)
        page.wait_for_selector("#score .js-plotly-plot", timeout=1000 * SHOWN_S)
        first = dict(page.evaluate(PAINTS))
        drawn_s = page.evaluate("performance.now() / 1000")
        print(
            f"first paint {first['first-contentful-paint']:.0f} ms, first figure by {drawn_s:.1f} s"
        )
        wanted = options.peers * options.rounds
        page.wait_for_selector(f"html[data-rounds='{wanted}']", timeout=1000 * SHOWN_S)
        page.evaluate("document.getElementById('trust').scrollIntoView()")
        page.wait_for_selector("#matrix .js-plotly-plot", timeout=1000 * SHOWN_S)
        _go_on(page, swarm, options, server)


def _go_on(page: "Page", swarm: Swarm, options: argparse.Namespace, server: int) -> None:
    before, spent = _drawn(page), _spent(server)
    begun = time.perf_counter()
    index = options.rounds
    while (now := time.perf_counter() - begun) < options.seconds:
        if now * A_SECOND >= index - options.rounds:
            index += 1
            swarm.round(index)
        page.wait_for_timeout(10)
    took = time.perf_counter() - begun
    after, more = _drawn(page), _spent(server)
    for name, count in after.items():
        print(f"{name}: {(count - before[name]) / took:.1f} drawings a second")
    rate = (index - options.rounds) / took
    print(f"{options.peers} peers, {rate:.1f} rounds a second, {index} rounds at the end")
    for name, seconds in more.items():
        print(f"{name}: {(seconds - spent[name]) / took:.2f} CPU seconds a second")


def _drawn(page: "Page") -> dict[str, int]:
    figures = ("row", "graph", "matrix")
    return {
        one: int(page.evaluate(f"document.querySelector('#{one} .chart').dataset.drawn || 0"))
        for one in figures
    }


def _spent(server: int) -> dict[str, float]:
    """Returns the processor seconds of the server, and of the browser's processes."""
    ours = psutil.Process()
    browsers = [one for one in ours.children(recursive=True) if "chrom" in one.name()]
    return {
        "server": sum(psutil.Process(server).cpu_times()[:2]),
        "browser": sum(sum(one.cpu_times()[:2]) for one in browsers),
    }


if __name__ == "__main__":
    main()
