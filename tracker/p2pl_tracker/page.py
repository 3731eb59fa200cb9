"""The page for people: what an operator publishes, who is there, and how to join.

Plain HTML and one style sheet, no script, nothing from elsewhere. Only sessions whose files the
operator names by `--sessions` stand there; of others not even that they exist is said.
"""

import html
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from p2pl import __version__
from p2pl.errors import printable
from p2pl.protocol.session import SessionFile
from p2pl_tracker.swarm import Tally, Totals

FRESH_S = 2.0  # how long a page that was made is shown
HTML_TYPE = "text/html; charset=utf-8"
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Published:
    """A session that an operator publishes.

    Attributes:
        name: of the session.
        data: its file, as it is given to whoever asks.
        task: what is learned.
        rounds: that its peers do.
        cohort: peers that each asks in a round.
        size: of the initial checkpoint, bytes.
        is_private: whether one must be invited.
        comment: of its author.
    """

    name: str
    data: bytes
    task: str
    rounds: int
    cohort: int
    size: int
    is_private: bool
    comment: str

    @classmethod
    def of(cls, file: SessionFile, data: bytes) -> "Published":
        """Returns what the page says of a session file."""
        exchange = file.session.exchange
        return cls(
            file.name,
            data,
            file.session.task.kind,
            exchange.rounds,
            exchange.cohort,
            file.checkpoint.size,
            file.session.private,
            file.comment,
        )


@dataclass(frozen=True, slots=True)
class There:
    """Who is in a session.

    Attributes:
        tally: peers of p2pl.
        clients: of BitTorrent.
        since_s: since when somebody is there, in seconds since 1970; None: nobody is.
    """

    tally: Tally
    clients: Tally
    since_s: float | None


@dataclass(frozen=True, slots=True)
class State:
    """What the page shows.

    Attributes:
        there: by session id; None: the store does not answer.
        totals: of all sessions, published or not; None likewise.
        refusals: by HTTP status, since the start.
        relays: that peers are told of.
        load: of a relay in this process: connections, and pairs joined; None: there is none.
        now_s: seconds since 1970.
    """

    there: Mapping[bytes, There] | None
    totals: Totals | None
    refusals: Mapping[int, int]
    relays: Sequence[str]
    load: tuple[int, int] | None
    now_s: float


def style() -> bytes:
    """Returns the style sheet."""
    return resources.files("p2pl_tracker").joinpath("page.css").read_bytes()


def render(published: Mapping[bytes, Published], state: State) -> str:
    """Returns the page.

    Args:
        published: by session id.
        state: what there is to say of them.
    """
    sessions = "".join(
        _session(session, one, (state.there or {}).get(session), state)
        for session, one in sorted(published.items(), key=lambda pair: pair[1].name)
    )
    if not published:
        sessions = "<p>This tracker publishes no session. Ask whoever invited you for the file.</p>"
    lost = ""
    if state.there is None:
        lost = (
            '<p role="status" class="lost">The tracker cannot reach its store now, so nobody is '
            "counted. Peers go on with those they know, and try again by themselves.</p>"
        )
    return _PAGE.format(
        lost=lost,
        sessions=sessions,
        state=_list(_facts(state)),
        version=html.escape(__version__),
        time=_time(state.now_s),
    )


def _session(session: bytes, one: Published, there: There | None, state: State) -> str:
    name, file = html.escape(one.name), f"sessions/{session.hex()}.torrent"
    facts = [
        ("Task", html.escape(one.task)),
        ("Rounds", f"{one.rounds}, a cohort of {one.cohort}"),
        ("Checkpoint", _bytes(one.size)),
    ]
    if there is not None:
        done = there.tally.alive - there.tally.training
        facts += [
            ("Peers there", str(there.tally.alive)),
            ("Training", str(there.tally.training)),
            ("Done", str(done)),
            ("Since", _time(there.since_s) if there.since_s is not None else "nobody is there"),
        ]
        if there.clients.alive:
            seeds = there.clients.alive - there.clients.training
            facts.append(("BitTorrent", f"{there.clients.alive} clients, {seeds} have all of it"))
    if one.is_private:
        facts.append(("Who", "whoever its author has invited"))
    about = f"<p>{html.escape(printable(one.comment))}</p>" if one.comment else ""
    command = f"p2pl join {name}.torrent --data YOUR_DATA"
    return (
        f'<article aria-labelledby="s-{session.hex()[:16]}">'
        f'<h3 id="s-{session.hex()[:16]}">{name}</h3>{about}{_list(facts)}'
        f'<p><a href="{file}" download="{name}.torrent">Session file of {name}</a></p>'
        f"<pre><code>{command}</code></pre></article>"
    )


def _facts(state: State) -> Iterable[tuple[str, str]]:
    if state.totals is not None:
        yield "Sessions with a peer", str(state.totals.sessions)
        yield "Peers", str(state.totals.peers)
    refused = ", ".join(
        f"{count} with {status}" for status, count in sorted(state.refusals.items())
    )
    yield "Refused since the start", refused or "nothing"
    if state.relays:
        yield "Relays", " ".join(f"<code>{html.escape(relay)}</code>" for relay in state.relays)
    if state.load is not None:
        yield "Relay here", f"{state.load[0]} connections, {state.load[1]} pairs joined"


def _list(facts: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return f"<dl>{rows}</dl>"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _time(seconds: float) -> str:
    moment = time.gmtime(seconds)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", moment)
    return f'<time datetime="{stamp}">{time.strftime("%Y-%m-%d %H:%M", moment)} UTC</time>'


class Pages:
    """Makes the page, at most so often.

    Args:
        published: by session id.
        now: a clock that never steps back, in seconds.
    """

    def __init__(self, published: Mapping[bytes, Published], *, now: Callable[[], float]) -> None:
        self.published = published
        self._now = now
        self._made: tuple[float, str] | None = None
        self._since_s: dict[bytes, float] = {}

    def fresh(self) -> str | None:
        """Returns the page where it was made a moment ago."""
        if self._made is None or self._now() - self._made[0] >= FRESH_S:
            return None
        return self._made[1]

    def since(self, session: bytes, tally: Tally, now_s: float) -> float | None:
        """Returns since when somebody is in a session, as far as this process has seen.

        Args:
            session: its id.
            tally: who is in it now.
            now_s: seconds since 1970.
        """
        if not tally.alive:
            self._since_s.pop(session, None)
            return None
        return self._since_s.setdefault(session, now_s)

    def make(self, state: State) -> str:
        """Returns the page as things are now."""
        text = render(self.published, state)
        self._made = (self._now(), text)
        return text


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>p2pl tracker</title>
<link rel="stylesheet" href="style.css">
</head>
<body>
<a class="skip" href="#sessions">To the sessions</a>
<header>
<h1>p2pl tracker</h1>
<p>It tells the peers of a session about each other. It never sees data, and never a parameter.</p>
</header>
<main>
{lost}<section aria-labelledby="sessions">
<h2 id="sessions" tabindex="-1">Sessions</h2>
{sessions}
</section>
<section aria-labelledby="join">
<h2 id="join">How to join</h2>
<ol>
<li>Install p2pl, and save the session file.</li>
<li>Look at what it asks for: <code>p2pl inspect NAME.torrent</code></li>
<li>Try it with your own data alone:
<code>p2pl join NAME.torrent --data YOUR_DATA --alone</code></li>
<li>Join: <code>p2pl join NAME.torrent --data YOUR_DATA</code>. Your data stay with you; other peers
get your model's parameters.</li>
</ol>
</section>
<section aria-labelledby="state">
<h2 id="state">This tracker</h2>
{state}
</section>
</main>
<footer>
<p>p2pl {version}, at {time}. <a href="./">Look again</a></p>
</footer>
</body>
</html>
"""
