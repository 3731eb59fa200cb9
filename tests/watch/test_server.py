"""The page's server: who is answered, what with, and how it ends."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.pages import PATIENCE_S, Served, serving

from p2pl.errors import InputError
from p2pl.run.log import Marker, RoundEntry, RunLog
from p2pl.watch import server

MARKER = Marker(session_id="ab" * 32, peer_id="cd" * 32, name="digits", rounds=9)
PAGES = ("", "page.css", "page.js", "runs.js", "draw.js", "figures.js", "icon.svg", "plotly.js")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a run directory of one round."""
    folder = tmp_path_factory.mktemp("run")
    with RunLog(folder, MARKER) as log:
        log.append(RoundEntry(round=1, accuracy=50.0))
    return folder


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[Served]:
    """Returns a page for this machine alone."""
    with serving(str(run)) as one:
        yield one


def test_everything_comes_from_this_machine_and_nothing_else_may(served: Served) -> None:
    assert served.url.startswith("http://127.0.0.1:")
    for name in PAGES:
        answer = httpx.get(served.url + name)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        if name != "plotly.js":
            addresses = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", answer.text)
            assert {one for one in addresses if "w3.org" not in one} == set()


def test_the_events_so_far_come_first_and_then_those_that_are_new(
    served: Served, run: Path
) -> None:
    with httpx.stream("GET", f"{served.url}events", timeout=PATIENCE_S) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        kinds = []
        for line in lines:
            if line.startswith("event: "):
                kinds.append(line.removeprefix("event: "))
            if line.startswith("data: ") and kinds[-1] == "rounds":
                break
        assert kinds == ["hello", "waiting", "peers", "run", "rounds"]
        with RunLog(run, MARKER) as log:
            log.append(RoundEntry(round=2, accuracy=60.0))
        found = next(line for line in lines if '"rounds":[{' in line)
        assert json.loads(found.removeprefix("data: "))["rounds"][0]["score"] == 60.0


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": "127.0.0.1:1"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
    ids=lambda one: " ".join(map(": ".join, one.items())),
)
@pytest.mark.parametrize("name", ["", "events", "plotly.js"])
def test_a_page_of_somebody_else_reads_nothing(
    served: Served, headers: dict[str, str], name: str
) -> None:
    answer = httpx.get(served.url + name, headers=headers)
    assert answer.status_code in (400, 403)
    assert "digits" not in answer.text


def test_nothing_can_be_changed(served: Served) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert httpx.request(method, served.url).status_code == 405
    assert httpx.get(f"{served.url}../../etc/passwd").status_code == 404
    assert httpx.get(f"{served.url}%2e%2e/index.html").status_code == 404


def test_where_others_can_reach_it_only_who_has_the_token_is_answered(run: Path) -> None:
    with serving(str(run), "--host", "0.0.0.0") as one:
        token = httpx.URL(one.url).params["token"]
        assert len(token) >= 32
        page = f"http://127.0.0.1:{one.port}/"
        for path in ("", "events", "page.js", "?token=", "?token=x", f"?token={token}x"):
            assert httpx.get(page + path).status_code == 403
        with httpx.Client() as browser:
            moved = browser.get(page, params={"token": token})
            assert (moved.status_code, moved.headers["location"]) == (303, "./")
            assert "HttpOnly; SameSite=Strict" in moved.headers["set-cookie"]
            assert browser.get(page).status_code == 200
            assert browser.get(page + "page.js").status_code == 200
            foreign = browser.get(page, headers={"Origin": "http://evil.example"})
            assert foreign.status_code == 403


def test_a_port_that_is_taken_is_refused_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=r"--host, --port: got '127\.0\.0\.1, "):
            server.listen("127.0.0.1", port)


def test_loopback_needs_no_token_and_any_other_address_does() -> None:
    for host, has_token in (("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)):
        place = server.listen(host, 0)
        place.listening.close()
        assert bool(place.token) == has_token
        assert bool(place.hosts) != has_token
