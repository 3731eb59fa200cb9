"""The page for people, as a program that reads HTML sees it: no browser is asked here."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from support.announces import NOW_S, SESSION, Clock, Speaker
from support.private_sessions import FILE, OPEN

from p2pl.errors import AnnounceError
from p2pl.protocol.session import decode
from p2pl_tracker.app import Policy, create_app
from p2pl_tracker.page import FRESH_S, style
from p2pl_tracker.register import served
from p2pl_tracker.swarm import Limits, MemoryStore, Totals

pytestmark = pytest.mark.anyio
LOADING = {"script", "img", "iframe", "object", "embed", "form", "video", "audio"}
WITHOUT_END = {"meta", "link", "br"}


class Page(HTMLParser):
    """What stands in a page; raises where an element is not closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.named: list[str] = []
        self.headings: list[int] = []
        self.words = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in WITHOUT_END:
            self.open.append(tag)
        if tag[0] == "h" and tag[1:].isdecimal():
            self.headings.append(int(tag[1:]))
        for name, value in attrs:
            assert not name.startswith("on")
            assert name != "style"
            if name == "id":
                self.ids.append(value or "")
            elif name == "href":
                self.links.append(value or "")
            elif name == "aria-labelledby":
                self.named.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += f" {data.strip()}" if data.strip() else ""


class Tracker:
    def __init__(self, *files: Path, store: MemoryStore | None = None) -> None:
        self.clock = Clock()
        policy = Policy(
            limits=Limits(min_interval_s=0.0),
            served=served(files, private_only=False),
            checks=False,
        )
        self.app = create_app(policy, store=store, now=self.clock, wall=self.clock)

    async def ask(self, path: str, body: bytes | None = None) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, client=("203.0.113.5", 40_000))
        async with httpx.AsyncClient(transport=transport, base_url="http://tracker") as client:
            return await (client.post(path, content=body) if body else client.get(path))

    async def page(self) -> Page:
        answer = await self.ask("/")
        assert (answer.status_code, answer.headers["content-type"][:9]) == (200, "text/html")
        assert "script-src" not in answer.headers["content-security-policy"]
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        return Page(answer.text)


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    hostile = replace(OPEN, comment="<script>alert(1)</script> & friends")
    for name, file in (("a", hostile), ("b", FILE)):
        (tmp_path / f"{name}.torrent").write_bytes(file.encode())
    return Tracker(tmp_path)


async def test_a_comment_cannot_turn_the_direction_of_writing_about(tmp_path: Path) -> None:
    hostile = replace(OPEN, comment="one\u202etwo\x1b[31m\x9bthree")
    (tmp_path / "a.torrent").write_bytes(hostile.encode())
    assert "one?two?[31m?three" in (await Tracker(tmp_path).page()).words


async def test_it_says_who_is_in_what_is_published_and_since_when(tracker: Tracker) -> None:
    one, two = Speaker(1, session=OPEN.id), Speaker(2, session=OPEN.id)
    assert "nobody is there" in (await tracker.page()).words
    await tracker.ask("/announce", one.body("started"))
    await tracker.ask("/announce", two.body("started"))
    await tracker.ask("/announce", two.body("completed"))
    assert (await tracker.ask("/announce", Speaker(3).body())).status_code == 403
    tracker.clock.advance(FRESH_S)
    words = (await tracker.page()).words
    for said in ("Peers there 2", "Training 1", "Done 1", "Since 2023-11-14 22:13 UTC"):
        assert said in words
    assert "whoever its author has invited" in words
    assert "Refused since the start 1 with 403" in words
    assert NOW_S == 1_700_000_000


async def test_a_page_is_made_only_so_often(tracker: Tracker) -> None:
    before = (await tracker.ask("/")).text
    await tracker.ask("/announce", Speaker(1, session=OPEN.id).body("started"))
    assert (await tracker.ask("/")).text == before
    tracker.clock.advance(FRESH_S)
    assert (await tracker.ask("/")).text != before


async def test_it_is_plain_html_that_a_screen_reader_can_go_through(tracker: Tracker) -> None:
    page = await tracker.page()
    assert not page.tags & LOADING
    assert {"main", "header", "footer", "h1"} <= page.tags
    assert len(page.ids) == len(set(page.ids))
    assert set(page.named) <= set(page.ids)
    assert page.headings[0] == 1
    steps = zip(page.headings, page.headings[1:], strict=False)
    assert all(after <= before + 1 for before, after in steps)
    assert "<script>alert(1)</script> & friends" in page.words  # as text
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            assert (await tracker.ask("/" + link.removeprefix("./"))).status_code == 200, link


async def test_a_session_file_is_given_as_it_is(tracker: Tracker) -> None:
    answer = await tracker.ask(f"/sessions/{FILE.id}.torrent")
    assert decode(answer.content) == FILE
    assert answer.headers["content-disposition"] == 'attachment; filename="digits.torrent"'
    for path in (SESSION, "x", "../etc/passwd"):
        assert (await tracker.ask(f"/sessions/{path}.torrent")).status_code == 404


async def test_what_is_not_published_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "ids").write_text(SESSION)
    tracker = Tracker(tmp_path / "ids")
    await tracker.ask("/announce", Speaker(1).body("started"))
    page = await tracker.page()
    assert "publishes no session" in page.words
    assert SESSION not in page.words
    assert "Peers 1" in page.words


async def test_without_its_store_it_says_so(tmp_path: Path) -> None:
    class Away(MemoryStore):
        async def totals(self) -> Totals:
            raise AnnounceError("away", status=503, retry_in_s=5.0)

    (tmp_path / "a.torrent").write_bytes(OPEN.encode())
    page = await Tracker(tmp_path, store=Away(Limits())).page()
    assert "cannot reach its store now" in page.words
    assert "Peers there" not in page.words


def test_the_style_has_both_schemes_and_nothing_from_elsewhere() -> None:
    text = style().decode()
    assert "prefers-color-scheme: dark" in text
    assert "url(" not in text
    assert "@import" not in text
    assert len(text) < 4_096
