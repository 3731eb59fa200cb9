"""The tracker's page in a real browser: keyboard, screen reader, two widths, and no complaint."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import chromium
import pytest
from support.private_sessions import FILE, OPEN
from support.processes import Swarm

pytest.importorskip("playwright", reason="needs Playwright, which drives the browser")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.skipif(
    chromium.found() is None, reason="needs Chromium; Debian: apt-get install chromium"
)
WIDTHS = (320, 1280)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Returns where a tracker publishes an open session and a private one."""
    folder = tmp_path_factory.mktemp("tracker")
    for name, file in (("a", OPEN), ("b", FILE)):
        (folder / f"{name}.torrent").write_bytes(file.encode())
    with Swarm(folder) as swarm:
        swarm.tracker("--sessions", str(folder))
        yield swarm.url


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Returns the browser of this machine."""
    with chromium.opened() as opened:
        yield opened


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: "Browser", url: str) -> Iterator["Page"]:
    """Returns the page; in the end, the browser may have complained of nothing."""
    faults: list[str] = []
    context = browser.new_context(
        viewport={"width": request.param, "height": 700},
        color_scheme="dark" if request.param > 1_000 else "light",
    )
    page = context.new_page()
    page.on("console", lambda one: faults.append(f"{one.type}: {one.text}"))
    page.on("pageerror", lambda fault: faults.append(str(fault)))
    page.goto(url)
    yield page
    context.close()
    assert faults == []


def test_it_fits_its_window_and_holds_to_the_rules_of_accessibility(page: "Page") -> None:
    from axe_playwright_python.sync_playwright import Axe

    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert page.evaluate("getComputedStyle(document.body).fontFamily") != "serif"  # it has a style
    found = Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []


def test_a_screen_reader_is_told_what_is_where(page: "Page") -> None:
    heard = page.locator("body").aria_snapshot()
    for said in (
        "- banner:",
        '- heading "p2pl tracker" [level=1]',
        "- main:",
        '- region "Sessions":',
        '- article "digits":',
        '- link "Session file of digits":',
        '- region "How to join":',
        "- contentinfo:",
    ):
        assert said in heard, heard


def test_the_keyboard_alone_leads_to_a_session_s_file(page: "Page") -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the sessions"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top >= 0")  # it is seen
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    while not page.evaluate("document.activeElement.hasAttribute('download')"):
        assert page.evaluate("document.activeElement !== document.body")
        page.keyboard.press("Tab")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.path().read_bytes() in (OPEN.encode(), FILE.encode())
