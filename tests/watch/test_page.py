"""The page in a real browser, without a screen: what it shows, at two widths, and to whom."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import chromium
import msgspec
import pytest
from support.pages import serving
from swarm_logs import Swarm

from p2pl.metric import Metric
from p2pl.run.log import Marker, RoundEntry, RunLog

pytest.importorskip("playwright", reason="needs Playwright, which drives the browser")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.skipif(
    chromium.found() is None, reason="needs Chromium; Debian: apt-get install chromium"
)
PATIENCE_MS = 60_000.0  # of a machine that is busy
WIDTHS = (375, 1280)
EVIL = "<img src=x onerror=\"document.title='taken'\"><b>&amp;"
ME, OTHER, LIAR = ("ab" * 32, "cd" * 32, "ef" * 32)
MAE = Metric("MAE", "mm", higher_is_better=False)


def write_private_run(folder: Path) -> None:
    """Writes a run of a private peer that met a liar, and the one that was alone."""
    mine = Marker(
        session_id="01" * 32,
        peer_id=ME,
        name=f"teeth {EVIL}"[:64],
        metrics=(MAE,),
        rounds=8,
        epsilon_budget=3.0,
    )
    for directory, is_alone in ((folder / "teeth", False), (folder / "teeth-alone", True)):
        marker = msgspec.structs.replace(mine, alone=is_alone)
        with RunLog(directory, marker) as log:
            for index in range(1, 6):
                log.append(entry(index, is_alone=is_alone))
            log.say(f"waiting for peers {EVIL}", 1_795_000_000.0)


def entry(index: int, *, is_alone: bool) -> RoundEntry:
    """Returns a round of either run."""
    if is_alone:
        return RoundEntry(round=index, metrics={"MAE": 3 - 0.1 * index}, trust={ME: 1.0}, seconds=2)
    return RoundEntry(
        round=index,
        metrics={"MAE": 3 - 0.4 * index},
        metrics_before_mix={"MAE": 3.2 - 0.4 * index},
        train_loss=1 / index,
        validation_loss=1.2 / index,
        trust={ME: 0.75, OTHER: 0.25},
        cohort=(OTHER, LIAR),
        received=(OTHER, LIAR),
        rejected={LIAR: f"harm: got {EVIL}"},
        joined=(OTHER, LIAR) if index == 1 else (),
        left={OTHER: 4.5} if index == 3 else {},
        bytes_in=2_000,
        bytes_out=1_000,
        bytes_by_peer={OTHER: (2_000, 1_000)},
        seconds_by_peer={OTHER: 0.5},
        seconds=3.0,
        time=1_795_000_000.0 + index,
        epsilon=0.5 * index,
    )


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Returns the browser of this machine."""
    with chromium.opened() as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the runs of `write_private_run`."""
    made = tmp_path_factory.mktemp("runs")
    write_private_run(made)
    return made


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """Returns where these runs are shown."""
    with serving(str(folder / "teeth")) as served:
        yield served.url


class Looking:
    """Somebody who looks at a page, and writes down what the browser complains about."""

    def __init__(self, browser: "Browser", url: str, width: int, *, by_night: bool = False) -> None:
        self.page: Page = browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme="dark" if by_night else "light",
            reduced_motion="reduce",
        ).new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda one: self.faults.append(f"{one.type}: {one.text}"))
        self.page.on("pageerror", lambda fault: self.faults.append(str(fault)))
        self.asked: set[str] = set()
        self.page.on("request", lambda one: self.asked.add(one.url))
        self.page.goto(url)

    def wait(self, selector: str) -> None:
        """Returns when the page has such an element."""
        self.page.wait_for_selector(selector, timeout=PATIENCE_MS, state="attached")

    def see_all(self) -> None:
        """Scrolls to each figure until it is drawn."""
        self.wait("#score .chart[data-drawn]")
        for frame in self.page.query_selector_all("figure"):
            name = frame.get_attribute("id")
            if frame.is_visible():
                frame.scroll_into_view_if_needed()
                self.wait(f"#{name} .chart[data-drawn], #{name}[hidden]")

    def text(self, selector: str) -> str:
        """Returns the text of an element."""
        return self.page.inner_text(selector)


@pytest.fixture(scope="module")
def wide(browser: "Browser", url: str) -> Iterator[Looking]:
    """Returns the page on a screen, at night."""
    looking = Looking(browser, url, 1280, by_night=True)
    looking.see_all()
    yield looking
    assert looking.faults == []


@pytest.fixture(scope="module")
def narrow(browser: "Browser", url: str) -> Iterator[Looking]:
    """Returns the page on a telephone, by day."""
    looking = Looking(browser, url, 375)
    looking.see_all()
    yield looking
    assert looking.faults == []


@pytest.mark.parametrize("seen", ["wide", "narrow"])
def test_everybody_can_use_the_page_at_any_width(
    seen: str, url: str, request: pytest.FixtureRequest
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    looking: Looking = request.getfixturevalue(seen)
    page = looking.page
    width = page.viewport_size["width"] if page.viewport_size else 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for more in page.query_selector_all("figure:not([hidden]) summary"):
        more.click()
    looking.wait("#score details table tbody tr")
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
    assert {one.startswith((url, "data:")) for one in looking.asked} == {True}


def test_the_figures_say_in_words_what_they_show(wide: Looking) -> None:
    assert wide.text("#tiles").split("\n")[:2] == ["Round", "5 of 8"]
    score = wide.text("#score-said")
    assert score.startswith("MAE 1.000 mm after round 5; 2.500 mm alone, so the others add 1.500")
    assert score.endswith("Lower is better.")
    assert wide.text("#row-caption") == "Whom teeth trusts, by round"
    assert "gave weight to 1 other peer, and turned down 1." in wide.text("#row-said")
    assert "1 of them was turned down" in wide.text("#graph-said")
    assert "Its model made this peer's worse on examples" in wide.text("#rejected tbody")
    assert "10.0 kB received and 5.0 kB sent" in wide.text("#bytes-said")
    assert "The most: cdcdcdcd, 2.5 s." in wide.text("#seconds-said")
    assert "1 other peer is there; 1 time somebody was gone" in wide.text("#present-said")
    assert wide.text("#gauge").startswith("Epsilon 2.500 of 3.000, 83 % of the budget")
    assert wide.page.get_attribute("#gauge meter", "value") == "2.5"


def test_what_strangers_wrote_is_text_and_nothing_else(wide: Looking) -> None:
    for where in ("#title", "#rejected", "#said"):
        assert "<img src=x" in wide.text(where)
    page = wide.page
    assert page.query_selector("main img, h1 img, svg image[src], main b b") is None
    assert page.title().startswith("teeth <img")


def test_it_can_be_used_with_the_keyboard_alone(wide: Looking) -> None:
    page = wide.page
    page.focus("#round")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    wide.wait("#round[aria-valuetext='round 3 of 5']")
    assert wide.text("#graph-caption") == "Who trusts whom up to round 3"
    assert not page.is_checked("#newest")
    page.focus("#newest")
    page.keyboard.press("Space")
    wide.wait("#round[aria-valuetext='round 5 of 5']")
    page.focus("#peer")
    page.keyboard.press("ArrowDown")
    wide.wait("#status[data-key$=' 1']")
    assert wide.text("#status").startswith("teeth-alone")


def test_a_run_that_goes_on_is_followed_and_one_that_is_not_there_is_waited_for(
    browser: "Browser", tmp_path: Path
) -> None:
    with serving(str(tmp_path / "out")) as served:
        looking = Looking(browser, served.url, 375)
        looking.wait("#notices .notice")
        assert f"Waiting for {tmp_path / 'out'}" in looking.text("#notices")
        swarm = Swarm(tmp_path / "out", peers=12, cohort=4, rounds=3)
        for index in (1, 2, 3):
            swarm.round(index)
        looking.wait("html[data-rounds='36']")
        looking.see_all()
        assert looking.text("#status") == "peer-00 is running"
        assert looking.text("#tiles").split("\n")[1] == "3 of 3"
        swarm.close()
        assert looking.faults == []
        looking.page.context.close()


def test_cells_have_the_colour_of_their_weight_and_say_it_where_the_mouse_is(
    browser: "Browser", url: str
) -> None:
    looking = Looking(browser, url, 1280, by_night=True)
    page = looking.page
    page.locator("#row").scroll_into_view_if_needed()
    looking.wait("#row .chart[data-drawn]")
    colours = page.evaluate(
        """() => {
            const { width, height } = document.querySelector("#row canvas");
            const pen = document.querySelector("#row canvas").getContext("2d");
            const seen = pen.getImageData(0, 0, width, height);
            const line = (row) => Math.floor((row + 0.5) * height / 3);
            const at = (row) => 4 * (line(row) * width + Math.floor(0.9 * width));
            return [0, 2].map((row) => [...seen.data.slice(at(row), at(row) + 4)]);
        }"""
    )
    assert colours == [[213, 235, 255, 255], [255, 157, 87, 255]]  # the most, and turned down
    box = page.locator("#row canvas").bounding_box()
    assert box is not None
    said = []
    for row in range(3):
        x, y = box["x"] + 0.9 * box["width"], box["y"] + (row + 0.5) * box["height"] / 3
        page.mouse.move(x, y)
        said.append(looking.text("#row .tip"))
    assert said == [
        "teeth (self), round 5: weight 0.750",
        "cdcdcdcd, round 5: weight 0.250",
        "efefefef, round 5: turned down",
    ]
    page.mouse.move(0, 0)
    assert not page.locator("#row .tip").is_visible()
    assert looking.faults == []
