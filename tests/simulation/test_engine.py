"""Many virtual peers, through the same learner as a networked one."""

import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from support.simulations import digits, small_setup
from torch import nn

from p2pl.data.examples import Examples, Source
from p2pl.data.load import Data
from p2pl.errors import DataError, InputError, TrainingDiverged
from p2pl.learning import evaluate as evaluating
from p2pl.learning import torch_trainer as torch_trainers
from p2pl.learning.batched import stacked
from p2pl.learning.objective import Objective
from p2pl.learning.task import Scores
from p2pl.learning.train import Start
from p2pl.learning.weights import flatten
from p2pl.protocol.session import Session, changed
from p2pl.simulation.engine import Result, run
from p2pl.simulation.numbers import numbers
from p2pl.simulation.peers import peers_of, torch_trainer
from p2pl.simulation.scoring import Scoring
from p2pl.simulation.setup import ENGINES, Setup, draw_cohort

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> Data:
    return digits()


def finals(result: Result) -> torch.Tensor:
    """Returns the final parameters of all peers, [N, P]."""
    return torch.stack(result.vectors)


def test_the_same_setup_gives_the_same_numbers(data: Data) -> None:
    setup = replace(small_setup(), engine="stacked")  # `auto` takes what is faster just now
    assert torch.equal(finals(run(setup, data, CPU)), finals(run(setup, data, CPU)))


def test_another_seed_changes_start_shards_and_cohorts_but_not_the_rule(data: Data) -> None:
    zero, one = small_setup(), replace(small_setup(), seed=1)
    assert zero.name == zero.session_id != one.name
    assert zero.seeded_session == zero.session
    first, second = (peers_of(setup, data, CPU)[0] for setup in (zero, one))
    assert not torch.equal(*(flatten(torch_trainer(one).model) for one in (first, second)))
    shards = [torch_trainer(one).own.take(torch.arange(9)).x for one in (first, second)]
    assert not torch.equal(*shards)
    drawn = {
        seed: [draw_cohort(replace(zero, seed=seed), me, 1) for me in range(4)] for seed in (0, 1)
    }
    assert drawn[0] != drawn[1]


def test_two_rules_see_the_same_start_shards_and_cohorts(data: Data) -> None:
    learned = replace(small_setup(rounds=1), engine="stacked")
    even = learned.changed(("mixing", "rule", "uniform"))
    rounds = [run(setup, data, CPU).rounds[0] for setup in (learned, even)]
    assert [entry.cohort for entry in rounds[0].entries] == [e.cohort for e in rounds[1].entries]
    losses = [[entry.train_loss for entry in one.entries] for one in rounds]
    assert losses[0] == losses[1]


def test_a_cohort_is_drawn_from_the_others_each_at_most_once() -> None:
    setup = small_setup(("exchange", "cohort", 3), peers=6)
    seen = [0] * 6
    for index in range(300):
        cohort = draw_cohort(setup, 2, index)
        assert len(set(cohort)) == 3
        for peer in cohort:
            seen[peer] += 1
    assert seen[2] == 0
    assert all(120 < count < 240 for peer, count in enumerate(seen) if peer != 2)  # 180 expected


def test_a_round_is_the_even_mean_of_what_the_cohort_trained_in_it(data: Data) -> None:
    setup = small_setup(("mixing", "rule", "uniform"), peers=3, rounds=1)
    learners = peers_of(setup, data, CPU)
    start = Start(flatten(torch_trainer(learners[0]).model))
    trained = [one.fit(start, 1).vector for one in learners]
    expected = torch.stack(trained).mean(0)  # a cohort of 2 is everybody else
    for vector in run(setup, data, CPU).vectors:
        torch.testing.assert_close(vector, expected)


def test_isolated_peers_exchange_nothing(data: Data) -> None:
    result = run(replace(small_setup(), baseline="isolated"), data, CPU)
    for number, entry in enumerate(result.rounds[-1].entries):
        assert entry.trust == {result.setup.ids[number]: 1.0}
        assert (entry.bytes_in, entry.bytes_out, entry.cohort) == (0, 0, ())
    assert numbers([result])["bytes_per_peer_round"] == 0


def test_the_centralised_baseline_sees_what_all_peers_see_together(data: Data) -> None:
    setup = small_setup(rounds=1)
    apart = run(setup, data, CPU).rounds[0].entries
    together = run(replace(setup, baseline="centralised"), data, CPU).rounds[0].entries
    assert len(together) == 1
    everybody = sum(entry.samples or 0 for entry in apart)
    assert together[0].samples == pytest.approx(everybody, rel=0.01)  # rounding of the shares


def test_the_figures_hold_what_the_command_promises(data: Data) -> None:
    setup = small_setup()
    results = [run(replace(setup, seed=seed), data, CPU) for seed in (0, 1)]
    figures = numbers(results)
    accuracy = figures["accuracy"]
    means = [sum(s.accuracy for s in result.scores) / 4 for result in results]
    assert accuracy["per_seed"] == pytest.approx(means)
    assert accuracy["mean"] == pytest.approx(sum(means) / 2)
    assert accuracy["std_over_seeds"] == pytest.approx(abs(means[0] - means[1]) / 2**0.5)
    assert accuracy["worst_peer"] < accuracy["mean"]
    learner = results[0].learners[0]
    assert figures["bytes_per_peer_round"] == 2 * learner.codec.payload_bytes
    entry = results[0].rounds[0].entries[0]
    assert entry.bytes_in == 2 * learner.codec.payload_bytes
    assert sum(e.bytes_out for e in results[0].rounds[0].entries) == 8 * learner.codec.payload_bytes
    assert len(figures["by_round"]) == 2
    for kind in ("seconds", "cpu_seconds"):
        phases = figures[f"{kind}_by_phase"]
        assert set(phases) == {"train", "mix", "evaluate"}
        assert min(phases.values()) > 0
        assert sum(phases.values()) < figures[kind]
    first, ended = figures["first_round"], results[0].rounds[0].entries[0].time
    assert ended is not None
    assert first["time"] < ended
    assert 0 < first["cpu_seconds"] < time.process_time()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peers": 1}, "--peers"),
        ({"partition": "evenly"}, "--partition"),
        ({"baseline": "alone"}, "--baseline"),
        ({"engine": "fast"}, "--engine"),
        ({"peer_ids": ("a", "b")}, "peer ids"),
    ],
)
def test_what_cannot_be_run_is_refused(data: Data, changes: dict[str, object], said: str) -> None:
    setup: Setup = replace(small_setup(), **changes)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(InputError, match=said):
        run(setup, data, CPU)


def test_data_without_a_test_split_is_refused(data: Data) -> None:
    with pytest.raises(DataError, match="test split"):
        run(small_setup(), replace(data, test=None), CPU)


def test_the_engines_agree(data: Data) -> None:
    for rule in ("degroot", "samples", "median"):  # `samples` as one matrix product
        setup = small_setup(("mixing", "rule", rule))
        results = [run(replace(setup, engine=kind), data, CPU) for kind in ENGINES[1:]]
        assert [result.engine.kind for result in results] == ["stacked", "sequential"]
        torch.testing.assert_close(*map(finals, results), rtol=1e-4, atol=1e-5)
        rows = [[e.trust for e in result.rounds[-1].entries] for result in results]
        for one, other in zip(*rows, strict=True):
            assert one == pytest.approx(other, abs=1e-4)


def test_who_mixes_the_same_gets_the_same_bits_and_is_scored_once(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []

    def evaluate(
        model: nn.Module,
        vectors: Sequence[torch.Tensor],
        test: Examples,
        classes: int,
        workers: int,
    ) -> list[Scores]:
        scored.append(len(vectors))
        return judge(model, vectors, test, classes, workers)

    judge = stacked.evaluate
    monkeypatch.setattr(stacked, "evaluate", evaluate)
    setup = replace(
        small_setup(("mixing", "rule", "uniform"), ("exchange", "cohort", 4), peers=5, rounds=1),
        engine="stacked",
    )
    result = run(setup, data, CPU)
    assert all(torch.equal(vector, result.vectors[0]) for vector in result.vectors)
    assert scored == [5, 1]  # as trained, and as mixed
    apart = run(setup.changed(("exchange", "cohort", 2)), data, CPU)
    assert scored[2:] == [5, 5]
    alone = [one.judge(vector) for one, vector in zip(apart.learners, apart.vectors, strict=True)]
    assert [one.accuracy for one in apart.scores] == [one.accuracy for one in alone]


def test_convolving_peers_who_mixed_the_same_are_scored_once(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data.test is not None
    test, scored = len(data.test), []

    def counting(objective: Objective, vector: torch.Tensor, examples: Source) -> Scores:
        if len(examples) == test:
            scored.append(vector)
        return judge(objective, vector, examples)

    judge = evaluating.evaluate
    monkeypatch.setattr(torch_trainers, "evaluate", counting)
    small = (("model", "name", "cnn"), ("model", "arguments", {"width": 2, "hidden": 8}))
    alike = small_setup(
        *small, ("mixing", "rule", "uniform"), ("exchange", "cohort", 3), peers=4, rounds=1
    )
    alike = replace(alike, engine="stacked")
    run(alike, data, CPU)
    as_trained, as_mixed, mean_model = 4, 1, 1
    assert len(scored) == as_trained + as_mixed  # the mean of equal models is one of them
    scored.clear()
    of_one = replace(alike, scoring=Scoring(peers=1))
    run(of_one, data, CPU)
    assert len(scored) == 1 + as_mixed
    scored.clear()
    run(alike.changed(("mixing", "rule", "none")), data, CPU)
    assert len(scored) == as_trained + 4 + mean_model


@pytest.mark.parametrize("kind", ["stacked", "sequential"])
def test_a_loss_that_is_no_number_ends_the_run(kind: str, data: Data) -> None:
    hot = (("training", "learning_rate", 1e3), ("training", "weight_decay", 1.0))
    with pytest.raises(TrainingDiverged):
        run(replace(small_setup(*hot), engine=kind), data, CPU)


@pytest.mark.parametrize("kind", ["stacked", "sequential"])
def test_polish_rounds_only_mix(kind: str, data: Data) -> None:
    setup = small_setup(("exchange", "polish_rounds", 2), ("exchange", "rounds", 4))
    result = run(replace(setup, engine=kind), data, CPU)
    trained = [one.entries[0].samples for one in result.rounds]
    assert trained[0]
    assert trained == [trained[0], trained[0], 0, 0]
    assert result.rounds[-1].entries[0].train_loss is None
    plain = run(replace(small_setup(rounds=2), engine=kind), data, CPU)
    # Two rounds of pulling 2 of 3 others at random: 0.028 of the squared distance is left.
    assert result.rounds[-1].consensus_distance < plain.rounds[-1].consensus_distance / 5


@pytest.mark.parametrize("kind", ["stacked", "sequential"])
def test_quasi_global_momentum_follows_the_mix(kind: str, data: Data) -> None:
    changes = (("training", "quasi_global", True), ("mixing", "rule", "uniform"))
    setup = replace(small_setup(*changes, peers=3, rounds=1), engine=kind)
    training = setup.session.training
    learner = peers_of(setup, data, CPU)[0]
    start = Start(flatten(torch_trainer(learner).model))
    mixed = run(setup, data, CPU).vectors[0]
    trained = learner.fit(start, 1)
    assert not trained.optimizer
    step = training.learning_rate * trained.steps
    expected = (1 - training.momentum) * (start.vector - mixed) / step
    after = learner.follow(start, trained, mixed, 1)
    torch.testing.assert_close(after["quasi_global"], expected)
    again = run(replace(setup, session=session_with_rounds(setup, 2)), data, CPU).vectors[0]
    assert not torch.allclose(again, mixed)


def session_with_rounds(setup: Setup, rounds: int) -> Session:
    return changed(setup.session, ("exchange", "rounds", rounds))
