"""Everybody pulls from everybody: what is said in a few words is what the lists would say."""

import gc
from dataclasses import replace
from unittest.mock import patch

import msgspec
import pytest
import torch
from support.simulations import digits, small_setup

from p2pl import garbage
from p2pl.data.load import Data
from p2pl.errors import InputError
from p2pl.learner import Learner
from p2pl.mixing import size
from p2pl.mixing.base import PeerModel
from p2pl.run.log import RoundEntry
from p2pl.simulation import compute, engine, scoring
from p2pl.simulation.engine import Result, run
from p2pl.simulation.everybody import AllBut, Entries, Others
from p2pl.simulation.numbers import numbers
from p2pl.simulation.scoring import Scoring, on_fewer
from p2pl.simulation.setup import Setup, draw_cohort

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> Data:
    return digits()


def everybody(rule: str = "uniform", peers: int = 6) -> Setup:
    """Returns a simulation in which all pull from all."""
    rules = (("mixing", "rule", rule), ("exchange", "cohort", peers - 1))
    return replace(small_setup(*rules, peers=peers, rounds=2), engine="stacked")


def test_the_others_are_all_but_one_in_order() -> None:
    for me in range(4):
        others = Others(4, me)
        listed = [number for number in range(4) if number != me]
        assert list(others) == [others[at] for at in range(3)] == listed
        assert others[:2] == tuple(listed[:2])
        assert others[-1] == listed[-1]
        assert len(others) == 3
        assert [number in others for number in range(5)] == [n != me and n < 4 for n in range(5)]
        with pytest.raises(IndexError):
            others[3]


def test_a_peer_does_not_get_what_it_serves_itself() -> None:
    served = {name: PeerModel(1, 1, torch.zeros(1)) for name in "abc"}
    got = AllBut(served, "b")
    assert list(got) == ["a", "c"]
    assert len(got) == 2
    assert "b" not in got
    assert got["a"] is served["a"]


def test_an_entry_names_the_others_when_it_is_asked_for() -> None:
    brief = [RoundEntry(round=1) for _ in "abc"]
    entries = Entries(brief, "abc", {"a": 0.2, "b": 0.3, "c": 0.5})
    assert entries[1].cohort == entries[1].received == ("a", "c")
    assert [entry.trust for entry in entries[:2]] == 2 * [{"a": 0.2, "b": 0.3, "c": 0.5}]
    assert len(entries) == 3


@pytest.mark.parametrize("rule", ["uniform", "samples"])
def test_one_mix_for_all_is_what_each_comes_to_alone(
    rule: str, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = run(everybody(rule), data, CPU)
    assert isinstance(together.rounds[0].entries, Entries)
    monkeypatch.setattr(engine, "_all_pulled", lambda *_: [])
    apart = run(everybody(rule), data, CPU)
    assert not isinstance(apart.rounds[0].entries, Entries)
    for one, other in zip(together.vectors, apart.vectors, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert list(map(lasting, together.rounds[1].entries)) == [
        lasting(entry) for entry in apart.rounds[1].entries
    ]


def lasting(entry: RoundEntry) -> tuple[object, ...]:
    """Returns what of an entry neither rounding nor clocks change."""
    trust = {who: round(share, 6) for who, share in sorted(entry.trust.items())}
    told = (entry.bytes_in, entry.bytes_out, entry.samples, entry.rejected)
    return trust, set(entry.cohort), set(entry.received), told


def test_what_is_rounded_on_its_way_is_mixed_peer_by_peer(data: Data) -> None:
    session = everybody().session
    wire = msgspec.structs.replace(session.wire, dtype="float16")
    half = replace(everybody(), session=msgspec.structs.replace(session, wire=wire))
    result = run(half, data, CPU)
    assert not torch.equal(result.vectors[0], result.vectors[1])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("cohort", [0, 2, 9])
def test_mixing_a_few_at_once_is_what_each_comes_to_alone(
    cohort: int, dtype: str, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_round = everybody(peers=20).changed(("exchange", "rounds", 1), ("wire", "dtype", dtype))
    setup = replace(one_round, cohort=cohort, curves=False)
    with patch.object(Learner, "mix", autospec=True, side_effect=Learner.mix) as alone:
        together = run(setup, data, CPU)
    assert alone.call_count == (0 if cohort else 20)
    monkeypatch.setattr(compute, "_offered_to_all", lambda *_: None)
    apart = run(setup, data, CPU)
    for one, other in zip(together.vectors, apart.vectors, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    entries = (one.rounds[0].entries for one in (together, apart))
    for entry, by_itself in zip(*entries, strict=True):
        assert lasting(entry) == lasting(by_itself)


def test_where_models_are_out_of_proportion_each_peer_mixes_for_itself(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size, "MAX_RATIO", 0.0)
    monkeypatch.setattr(size, "MAX_LONE_RATIO", 0.0)
    result = run(everybody(), data, CPU)
    assert all(entry.rejected for entry in result.rounds[0].entries)


def test_python_looks_for_garbage_as_often_as_before(data: Data) -> None:
    before = gc.get_threshold()
    seen: list[tuple[int, int, int]] = []
    run(everybody(), data, CPU, on_round=lambda _: seen.append(gc.get_threshold()))
    assert gc.get_threshold() == before
    assert seen == 2 * [(garbage.RARELY * before[0], *before[1:])]


def test_a_cohort_may_be_larger_than_a_session_allows() -> None:
    setup = replace(small_setup(peers=400, rounds=1), cohort=300)
    assert setup.pulls == len(draw_cohort(setup, 7, 1)) == 300
    assert len(draw_cohort(replace(setup, cohort=1_000), 7, 1)) == 399


def scored(scoring: Scoring, data: Data, peers: int = 6) -> Result:
    return run(replace(small_setup(peers=peers, rounds=4), scoring=scoring), data, CPU)


def test_what_is_scored_between_rounds_changes_no_final_figure(data: Data) -> None:
    usual = scored(Scoring(), data)
    rarely = scored(Scoring(every=2, peers=2, examples=50), data)
    assert [one.mean_model != {} for one in rarely.rounds] == [False, True, False, True]
    counts = [
        sum(entry.accuracy_before_mix is not None for entry in one.entries) for one in rarely.rounds
    ]
    assert counts == [0, 2, 0, 2]
    assert [one.metrics for one in rarely.scores] == [one.metrics for one in usual.scores]
    assert numbers([rarely])["scoring"] == {
        "curves": True,
        "every": 2,
        "peers": 2,
        "examples": 50,
    }
    assert numbers([usual])["scoring"] == {
        "curves": True,
        "every": 1,
        "peers": 6,
        "examples": None,
    }


def test_of_many_peers_as_much_is_scored_as_is_a_third_of_a_round(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "MIN_EXAMPLES", 10)
    result = scored(Scoring(), data, peers=24)
    trained = result.setup.session.training.local_epochs * sum(result.samples)
    assert result.scored_examples == int(1.5 * trained / 41)
    fewer = on_fewer(result.learners, 10)
    assert fewer[0].judge(result.vectors[0]).confusion.sum() == 10
    assert result.learners[0].judge(result.vectors[0]).confusion.sum() > 10


@pytest.mark.parametrize("wrong", [Scoring(every=-1), Scoring(peers=0), Scoring(examples=0)])
def test_a_number_out_of_range_is_refused(wrong: Scoring, data: Data) -> None:
    with pytest.raises(InputError, match="--score-"):
        scored(wrong, data)
