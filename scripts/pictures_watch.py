"""Takes the pictures of the live page that docs/watch.md shows: docs/images/watch-*.png.

Six peers on handwritten digits, one of them a liar, are simulated, and each by itself; then the
page shows both.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
P2PL = [sys.executable, "-m", "p2pl"]
SIMULATION = ["simulate", "torrentfiles/digits.toml", "--data", "digits", "--peers", "6"]
PARTITION = ["--partition", "dirichlet:0.3"]
PATIENCE_MS = 60_000.0
HEIGHT = 1_000


def main() -> None:
    """Takes the pictures."""
    if chromium.found() is None:
        sys.exit("pictures: needs Chromium; Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        swarm, alone = Path(folder) / "swarm", Path(folder) / "alone"
        simulated = [*P2PL, *SIMULATION, *PARTITION]
        subprocess.run(
            [*simulated, "--attack", "sign-flip:1", "--out", swarm], check=True, cwd=ROOT
        )
        subprocess.run([*simulated, "--baseline", "isolated", "--out", alone], check=True, cwd=ROOT)
        command = [*P2PL, "watch", str(swarm), str(alone)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = server.stdout.readline().split()[1]
            with chromium.opened() as browser:
                _picture(browser, url, "watch-progress", 1280, "progress", by_night=False)
                _picture(browser, url, "watch-trust", 1280, "trust", by_night=False)
                _picture(browser, url, "watch-night", 1280, "trust", by_night=True)
                _picture(browser, url, "watch-narrow", 375, "progress", by_night=False)
            server.terminate()


def _picture(  # what is shown, how, and where it goes
    browser: "Browser", url: str, name: str, width: int, section: str, *, by_night: bool
) -> None:
    page = browser.new_context(
        viewport={"width": width, "height": HEIGHT},
        color_scheme="dark" if by_night else "light",
        reduced_motion="reduce",
    ).new_page()
    page.goto(url)
    page.wait_for_selector("html[data-rounds='240']", state="attached", timeout=PATIENCE_MS)
    if section != "progress":
        page.evaluate(f"document.getElementById('{section}').scrollIntoView()")
    figures = {"progress": ("score", "loss"), "trust": ("row", "graph", "matrix")}[section]
    for figure in figures if width > 1_000 else figures[:1]:
        page.wait_for_selector(f"#{figure} .chart[data-drawn]", timeout=PATIENCE_MS)
    page.wait_for_timeout(500)  # what is drawn last is drawn
    page.screenshot(path=IMAGES / f"{name}.png")
    print(f"docs/images/{name}.png")
    page.context.close()


if __name__ == "__main__":
    main()
