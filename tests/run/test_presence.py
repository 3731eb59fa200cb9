"""Who comes and goes, on numbers small enough to check by hand."""

from pathlib import Path

from p2pl.run.log import LoggedRun, RoundEntry
from p2pl.run.presence import Changes, Presence, churn_of


def test_a_stay_lasts_from_the_first_to_the_last_sign_of_life() -> None:
    presence = Presence()
    assert presence.look(10.0, ["a", "b"], ["c"]) == Changes(("a", "b"), {})
    assert presence.look(14.0, ["a"], []) == Changes((), {})
    assert presence.look(20.0, ["b"], ["a"]) == Changes((), {"a": 4.0})
    assert presence.look(21.0, ["a"], []) == Changes(("a",), {})


def entry(number: int, joined: tuple[str, ...] = (), **left: float) -> RoundEntry:
    """Returns a round that ended at second 10 x its number."""
    return RoundEntry(round=number, time=10.0 * number, joined=joined, left=left)


def run(peer: str, *rounds: RoundEntry) -> LoggedRun:
    return LoggedRun(Path(peer), "ab" * 32, "digits", peer, rounds, None)


def test_churn_counts_joins_leaves_and_how_long_a_peer_stayed() -> None:
    one = run("one", entry(1, ("a", "b")), entry(3, a=15.0), entry(5, ("a",)), entry(9))
    two = run("two", entry(1), entry(2, ("a",)), entry(6, ("a",)), entry(10))  # was started again
    steadiest_last = churn_of([one, two])
    assert [each.peer_id for each in steadiest_last] == ["a", "b"]
    a, b = steadiest_last
    assert (a.seen_by, a.joins, a.leaves) == (2, 2, 1)
    assert (a.median_stay_s, a.longest_stay_s) == (40.0, 80.0)  # of 15, 40 and 80
    assert a.there == ((15 + 40) / 80 + 1) / 2
    assert (b.seen_by, b.joins, b.leaves, b.longest_stay_s, b.there) == (1, 1, 0, 80.0, 1.0)


def test_where_nobody_looked_there_is_no_churn() -> None:
    assert churn_of([run("one", entry(1), entry(2))]) == ()
