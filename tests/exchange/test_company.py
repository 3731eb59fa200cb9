"""Who trains alone is told, and told what to do where nobody can dial it."""

from p2pl.events import Event, Merged, Reachable, RoundEnded
from p2pl.exchange.company import ADVICE, FIRST_TOLD, GONE, Company, why_alone
from p2pl.run.log import LeftOut, RoundEntry, Totals

ALICE = "a" * 64


def told(*before: Event) -> list[str]:
    said: list[str] = []
    company = Company(Totals(), said.append)
    for event in before:
        company(event)
    for number in range(1, FIRST_TOLD + 1):
        company(RoundEnded(RoundEntry(round=number)))
    return said


def test_who_meets_nobody_is_told_what_is_in_the_way() -> None:
    shut = Reachable("192.0.2.1:4000", False, "nobody can dial this peer; forward the port")
    fine = Reachable("192.0.2.1:4000", True, "others can dial this peer")
    first = f"nobody met in {FIRST_TOLD} rounds, training alone; "
    assert told() == told(fine) == told(shut, fine) == [first + ADVICE]
    assert told(shut) == [first + shut.text]


def test_who_could_meet_nobody_that_is_there_is_told_why() -> None:
    said: list[str] = []
    company = Company(Totals(), said.append)
    peers = {letter * 64: f"unreachable: {letter}" for letter in "abc"}
    company(Reachable("192.0.2.1:4000", False, "nobody can dial this peer"))
    for number in range(1, FIRST_TOLD + 1):
        company(RoundEnded(RoundEntry(round=number, rejected=peers if number == 1 else {})))
    why = "others are there, and none could be met (aaaaaaaa: unreachable: a; "
    why += "bbbbbbbb: unreachable: b, and 1 more)"
    first = f"nobody met in {FIRST_TOLD} rounds, training alone; "
    assert said == [f"{first}{why}; nobody can dial this peer"]
    assert why_alone({peer_id: LeftOut(why=one) for peer_id, one in peers.items()}) == why
    assert "--listen" in why_alone({})


def test_who_takes_the_models_of_others_before_its_first_round_has_met_them() -> None:
    assert told(Merged((ALICE,), "the swarm is at round 5: taking its model")) == []
    assert len(told(Merged((), "its model is no good"))) == 1


def test_who_loses_all_others_is_told_once_until_somebody_is_there_again() -> None:
    said: list[str] = []
    company = Company(Totals(), said.append)
    met = RoundEntry(round=1, received=(ALICE,))
    quiet, cut = RoundEntry(round=2), RoundEntry(round=2, rejected={ALICE: "unreachable"})
    for entry in [met, *[quiet] * FIRST_TOLD, *[cut] * (FIRST_TOLD + 2), met, *[cut] * FIRST_TOLD]:
        company(RoundEnded(entry))
    assert said == [f"nobody reached in {FIRST_TOLD} rounds, training alone; {GONE}"] * 2
