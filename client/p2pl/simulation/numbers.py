"""What several seeds of one simulation come to: the object that `p2pl simulate --json` prints."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from p2pl.metric import ACCURACY, Metric
from p2pl.privacy.trainer import PrivateTrainer
from p2pl.report.classes import ClassScore, class_scores, macro_score
from p2pl.run.log import RoundEntry, measured
from p2pl.simulation.engine import Result, SimulatedRound
from p2pl.simulation.everybody import brief

OVER_PEERS = ("mean", "std_over_seeds", "std_over_peers", "worst_peer", "per_seed")


def numbers(results: Sequence[Result]) -> dict[str, Any]:
    """Returns the figures of a simulation, for JSON.

    Metrics are on the test set, after the last mix, over the honest peers: `mean` of the seeds'
    means; `std_over_seeds` of those means (n - 1 below the line; 0 for one seed); `std_over_peers`
    and `worst_peer` within a seed, then the mean over the seeds. `primary` is the first one of
    `metrics`, `accuracy` the same where that is the accuracy, in percent, else null.

    Args:
        results: one a seed, of setups that differ in the seed alone.
    """
    setup, session = results[0].setup, results[0].setup.session
    known = _metrics(results)
    metrics = {metric.name: _measured(results, metric) for metric in known}
    metric, is_accuracy = known[0], known[0] == ACCURACY
    primary = metrics[metric.name]
    confusions = [
        torch.stack([result.scores[peer].confusion for peer in result.honest]).sum(0)
        for result in results
    ]
    classes = [class_scores(confusion.numpy()) for confusion in confusions]
    curve = [_by_round(same, results[0].honest, metric) for same in _aligned(results)]
    rounds = [one for result in results for one in result.rounds]
    return {
        "peers": setup.peers,
        "rounds": session.exchange.rounds,
        "partition": setup.partition,
        "mixing": session.mixing.rule,
        "seeds": len(results),
        "accuracy": {name: primary[name] for name in OVER_PEERS} if is_accuracy else None,
        "primary": primary,
        "metrics": metrics,
        "personal": _personal(results),
        "seconds": sum(result.seconds for result in results),
        "cpu_seconds": sum(result.cpu_seconds for result in results),
        "first_round": {
            "time": results[0].began,  # seconds since 1970
            "cpu_seconds": results[0].cpu_seconds_before,  # since the process was started
        },
        "bytes_per_peer_round": round(_bytes_in(results)),
        "session_id": setup.session_id,
        "model": session.model.name,
        "baseline": setup.baseline,
        "exchange": session.exchange.kind,
        "cohort": setup.pulls,
        "local_epochs": session.training.local_epochs,
        "partition_seed": setup.partition_seed,
        "first_seed": setup.seed,
        "scoring": {
            "curves": setup.curves,
            "every": setup.scoring.every,
            "peers": min(setup.scoring.peers, setup.peers),
            "examples": results[0].scored_examples,
        },
        "engine": results[0].engine.kind,
        "training_threads": results[0].engine.threads,
        "precision": setup.precision,
        **_privacy(results),
        "precision_macro": _macro(classes, "precision"),
        "recall_macro": _macro(classes, "recall"),
        "f1_macro": _macro(classes, "f1"),
        "accuracy_before_mix": primary["before_mix"] if is_accuracy else None,
        "accuracy_of_mean_model": primary["of_mean_model"] if is_accuracy else None,
        "consensus_distance": curve[-1]["consensus_distance"],
        "attack": setup.attack.name if setup.attack else None,
        "bad_peers": setup.bad,
        **_of_the_bad(results),
        "backdoor": _backdoor(results),
        **_of_reality(results),
        "by_round": curve,
        "confusion": torch.stack(confusions).sum(0).tolist(),
        "seconds_by_phase": _by_phase(one.seconds for one in rounds),
        "cpu_seconds_by_phase": _by_phase(one.cpu_seconds for one in rounds),
    }


def _by_phase(rounds: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Returns what each phase took in all rounds together."""
    took: dict[str, float] = {}
    for one in rounds:
        for phase, seconds in one.items():
            took[phase] = took.get(phase, 0.0) + seconds
    return took


def _metrics(results: Sequence[Result]) -> tuple[Metric, ...]:
    """Returns what is measured, the primary metric first."""
    last = [brief(result.rounds[-1].entries)[peer] for result in results for peer in result.honest]
    return measured(results[0].learners[0].trainer.metrics, last)


def _measured(results: Sequence[Result], metric: Metric) -> dict[str, Any]:
    """Returns what the peers reached by one metric."""
    finals = [
        [result.scores[peer].metrics.get(metric.name, math.nan) for peer in result.honest]
        for result in results
    ]
    last = [result.rounds[-1].mean_model for result in results]
    return {
        "metric": metric.name,
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "before_mix": _before_mix(results, metric.name),
        "of_mean_model": _finite(_mean([one.get(metric.name, math.nan) for one in last])),
        **_over_peers_and_seeds(finals, min if metric.higher_is_better else max),
    }


def _over_peers_and_seeds(
    finals: Sequence[Sequence[float]], worst: Callable[[Sequence[float]], float]
) -> dict[str, Any]:
    """Returns a metric after the last mix, over the peers of each seed, and over the seeds."""
    means = [_mean(final) for final in finals]
    return {
        "mean": _finite(_mean(means)),
        "std_over_seeds": _finite(_std(means)),
        "std_over_peers": _finite(_mean([_std(final, of_these=True) for final in finals])),
        "worst_peer": _finite(_mean([worst(final) for final in finals])),
        "per_seed": [_finite(mean) for mean in means],
    }


def _before_mix(results: Sequence[Result], metric: str) -> float | None:
    """Returns a metric before the last mix, mean over the honest peers that were scored."""
    entries = [brief(one.rounds[-1].entries)[peer] for one in results for peer in one.honest]
    before = [entry.metrics_before_mix.get(metric) for entry in entries]
    known = [value for value in before if value is not None]
    return _mean(known) if known else None


def _macro(classes: Sequence[Sequence[ClassScore]], score: str) -> float | None:
    """Returns the mean over the classes, then over the seeds; None where there are no classes."""
    by_seed = [macro_score(of_seed) for of_seed in classes]
    known = [getattr(one, score) for one in by_seed if one is not None]
    return _mean(known) if len(known) == len(by_seed) else None


def _personal(results: Sequence[Result]) -> dict[str, Any] | None:
    """Returns how good models are where labels are as frequent as a peer's own; None: not asked.

    `mean` is of the personal models after the last round, `shared` of the shared model after the
    last mix, `fine_tuned` of the shared model after the last local training.
    """
    if not results[0].setup.personal:
        return None

    def of(field: str) -> list[list[float]]:
        last = [
            [brief(result.rounds[-1].entries)[peer] for peer in result.honest] for result in results
        ]
        values = [[getattr(entry, field) for entry in entries] for entries in last]
        return [[value for value in one if value is not None] or [math.nan] for one in values]

    finals = of("personal_score")
    worst = min if _metrics(results)[0].higher_is_better else max
    return {
        "mean": _finite(_mean([_mean(final) for final in finals])),
        "std_over_seeds": _finite(_std([_mean(final) for final in finals])),
        "worst_peer": _finite(_mean([worst(final) for final in finals])),
        "shared": _finite(_mean([_mean(one) for one in of("own_score")])),
        "fine_tuned": _finite(_mean([_mean(one) for one in of("own_score_before_mix")])),
    }


def _privacy(results: Sequence[Result]) -> dict[str, float | None]:
    """Returns what the peer that spent most has spent, over all seeds; null without privacy.

    `epsilon` is of the examples trained on, `trust_epsilon` of those held back and asked; an
    example pays for one of them. `delta` is the largest of any peer.
    """
    learners = [learner for result in results for learner in result.learners]
    trainers = [learner.trainer for learner in learners]
    private = [one.private for one in trainers if isinstance(one, PrivateTrainer)]
    spent = [one.spent for one in trainers if one.spent]
    most: dict[str, Sequence[float | None]] = {
        "epsilon": [one.epsilon for one in spent],
        "trust_epsilon": [one.trust_epsilon for one in spent],
        "delta": [one.accountant.account.delta for one in private],
        "noise_multiplier": [one.accountant.account.noise_multiplier for one in private],
    }
    known = {name: [v for v in values if v is not None] for name, values in most.items()}
    return {name: max(values) if values else None for name, values in known.items()}


def _aligned(results: Sequence[Result]) -> list[tuple[SimulatedRound, ...]]:
    """Returns, for each round, that round of every seed."""
    return list(zip(*(result.rounds for result in results), strict=True))


def _by_round(
    same: Sequence[SimulatedRound], honest: Sequence[int], metric: Metric
) -> dict[str, Any]:
    """Returns one point of each curve: means over the seeds."""

    def mean(of: Callable[[RoundEntry], float | None]) -> float | None:
        values = [of(brief(one.entries)[peer]) for one in same for peer in honest]
        known = [value for value in values if value is not None]
        return _mean(known) if known else None

    of_mean = [one.mean_model.get(metric.name, math.nan) for one in same]
    scores = {
        "primary": mean(lambda entry: entry.value(metric)),
        "primary_std_over_seeds": _spread(same, honest, metric),
        "primary_before_mix": mean(lambda entry: entry.value_before_mix(metric)),
        "primary_of_mean_model": _finite(_mean(of_mean)),
    }
    accuracies = {name.replace("primary", "accuracy"): value for name, value in scores.items()}
    return {
        "round": same[0].index,
        **(accuracies if metric == ACCURACY else {}),
        **scores,
        "consensus_distance": _finite(_mean([one.consensus_distance for one in same])),
        "train_loss": mean(lambda entry: entry.train_loss),
        "bad_weight": _bad_weight(same),
        "seconds": _mean([sum(one.seconds.values()) for one in same]),
    }


def _spread(same: Sequence[SimulatedRound], honest: Sequence[int], metric: Metric) -> float:
    """Returns the standard deviation over the seeds of their means."""
    known = [
        [value for peer in honest if (value := brief(one.entries)[peer].value(metric)) is not None]
        for one in same
    ]
    return _std([_mean(values) for values in known if values])


def _bad_weight(same: Sequence[SimulatedRound]) -> float | None:
    """Returns the bad peers' share in an honest one's mix, percent; None where there are none."""
    weights = [one.liars.weight for one in same if one.liars]
    return 100 * _mean(weights) if weights else None


def _of_the_bad(results: Sequence[Result]) -> dict[str, float | None]:
    """Returns what came of the bad peers: null where there are none, or none was ever asked.

    `bad_weight` is their share in an honest peer's mix, together, in percent, in the last round;
    `bad_weight_after_5` the mean of the rounds after the fifth. `bad_rejected` and `good_rejected`
    are the percentages of the bad and of the honest models, of all rounds, that were rejected.
    """
    rounds = [(one.index, one.liars) for r in results for one in r.rounds if one.liars]
    last = results[0].setup.session.exchange.rounds
    named: dict[str, list[float | None]] = {
        "bad_weight": [liars.weight for index, liars in rounds if index == last],
        "bad_weight_after_5": [liars.weight for index, liars in rounds if index > 5],
        "bad_rejected": [liars.rejected for _, liars in rounds],
        "good_rejected": [liars.wrongly_rejected for _, liars in rounds],
    }
    known = {name: [v for v in values if v is not None] for name, values in named.items()}
    return {name: 100 * _mean(values) if values else None for name, values in known.items()}


def _backdoor(results: Sequence[Result]) -> dict[str, Any] | None:
    """Returns how many marked test images honest peers take for the target, percent; None: none."""
    found = [result.taken_in for result in results if result.taken_in is not None]
    if not found:
        return None
    return {"mean": _mean(found), "std_over_seeds": _std(found), "per_seed": found}


def _of_reality(results: Sequence[Result]) -> dict[str, float | int | None]:
    """Returns how far the network was from an ideal one, as asked for and as drawn.

    `took_part` is the percentage of all peers, over all rounds; `pulls_failed` that of the models
    which those asked for and did not get, null where none was asked for.
    """
    reality = results[0].setup.reality
    rounds = [(one, len(result.learners)) for result in results for one in result.rounds]
    asked, came = (
        sum(values) for values in zip(*((o.asked, o.came) for o, _ in rounds), strict=True)
    )
    return {
        "participation": reality.participation,
        "lost_links": reality.lost_links,
        "delay_rounds": reality.delay_rounds,
        "took_part": 100 * _mean([one.present / peers for one, peers in rounds]),
        "pulls_failed": 100 * (1 - came / asked) if asked else None,
    }


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _finite(value: float) -> float | None:
    """Returns the value; None where it is not finite, which JSON cannot hold."""
    return value if math.isfinite(value) else None


def _std(values: Sequence[float], *, of_these: bool = False) -> float:
    """Returns the standard deviation; NaN where a value is not finite, which `statistics` refuses.

    Args:
        values: at least one.
        of_these: whether it is of these values, and not an estimate for others (n below the line).
    """
    if not all(map(math.isfinite, values)):
        return math.nan
    if of_these:
        return statistics.pstdev(values)
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _bytes_in(results: Sequence[Result]) -> float:
    """Returns how much a peer pulls in a round, on average; push-pull may pull a neighbour once."""
    rounds = [one for result in results for one in result.rounds]
    return _mean([entry.bytes_in for one in rounds for entry in brief(one.entries)])
