"""A model card: what a model is, of what and of whom it was learned, and how good it was then."""

import math
from collections.abc import Iterator, Mapping

import msgspec

from p2pl import __version__
from p2pl.api.ledger import inclusion, read_log
from p2pl.api.run import Run
from p2pl.learning.task import task_of
from p2pl.metric import Metric, figure
from p2pl.report.tables import markdown_table, markdown_text
from p2pl.run.log import MODEL_FILE, RoundEntry
from p2pl.terminal import percent, short_id
from p2pl.updates.file import LOG_FILE
from p2pl.updates.keeper import sha256

TRUSTED = 20  # peers that are listed, those with the greatest weight


def card_of(run: Run, file: str) -> str:
    """Returns the model card of a run's model, in Markdown.

    Args:
        run: whose model it is.
        file: name of the file with the model, beside the card.
    """
    parts = (
        f"---\nlibrary_name: p2pl\ntags:\n- federated-learning\n- peer-to-peer\n---\n"
        f"# {markdown_text(run.session.name)}",
        f"`{file}`: {_about(run)}",
        "## Session\n" + _table(_session(run)),
        "## Data\n" + _table(_data(run)),
        "## How good\n" + _scores(run),
        "## Privacy\n" + _privacy(run),
        "## Peers and trust\n" + _trust(run),
        *_update_log(run),
    )
    return "\n\n".join(parts) + "\n"


def _about(run: Run) -> str:
    """Returns which model of which peer it is."""
    entry = _entry(run)
    after = f"of round {entry.round}" if entry else "of no finished round"
    said = {
        "last": f"the model {after}, the last one",
        "best": f"the model {after}, which did best on the peer's own validation examples",
        "personal": f"the personal model {after}, fitted to the peer's own distribution",
    }
    met = len(run.summary.peers_met) if run.summary else 0
    company = f"together with {met} others" if met else "by itself"
    return (
        f"{said[run.kind]}, of peer `{short_id(run.peer_id)}`, which learned it {company}. Written "
        f"by p2pl {__version__}."
    )


def _entry(run: Run) -> RoundEntry | None:
    """Returns the round that the model is of; None where none is in the log."""
    best = run.summary.best_round if run.summary else None
    if run.kind == "best" and best is not None:
        return next((one for one in run.rounds if one.round == best), None)
    return run.rounds[-1] if run.rounds else None


def _table(rows: Mapping[str, str]) -> str:
    return markdown_table(("what", "is"), list(rows.items()))


def _session(run: Run) -> dict[str, str]:
    session = run.session.session
    task, model = session.task, session.model
    total = sum(parameter.numel() for parameter in run.model.parameters())
    arguments = "" if model.name == "arrays" else _said(model.arguments)
    rows = {
        "session id": run.session.id,
        "task": f"{task.kind}{_said(task.arguments)}",
        "input": f"{[*task.input]}{_scaling(task.mean, task.std)}",
        "model": f"{model.name}{arguments}, {total:,} parameters",
        "exchange": f"{session.exchange.kind}, {session.exchange.rounds} rounds",
        "mixing": session.mixing.rule,
    }
    if task.labels:
        rows["classes"] = ", ".join(task.labels)
    return rows


def _said(arguments: Mapping[str, object]) -> str:
    told = ", ".join(f"{name} {value}" for name, value in arguments.items())
    return f" ({told})" if told else ""


def _scaling(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    if not mean:
        return ", as the data have it; images in 0..1"
    return f", in 0..1, less {list(mean)}, divided by {list(std)}, by channel"


def _data(run: Run) -> dict[str, str]:
    summary = run.summary
    own = summary.samples if summary else None
    tested = sum(map(sum, summary.confusion)) if summary else 0
    rows = {"examples that this peer trained on": "not known" if own is None else f"{own:,}"}
    if tested:
        rows["examples that it was tested on"] = f"{tested:,}"
    if summary and summary.labels:
        rows["classes in the data"] = ", ".join(summary.labels)
    return rows


def _scores(run: Run) -> str:
    entry, summary = _entry(run), run.summary
    told = entry.metrics if entry else {}
    if run.kind == "last" and summary:
        told = summary.metrics
    rows = {f"{name} on the test set": _shown(run, name, value) for name, value in told.items()}
    if run.kind == "personal":
        rows = {f"{name} of the shared model": value for name, value in rows.items()}
        metric = task_of(run.session.session.task).metrics[0]
        own = summary.personal_score if summary else None
        if own is not None:
            rows = {f"{metric.name} on data like the peer's own": metric.shown(own), **rows}
    if entry and entry.validation_loss is not None and run.kind != "personal":
        rows["loss on the peer's own validation examples"] = figure(entry.validation_loss)
    return _table(rows) if rows else "Not known."


def _shown(run: Run, name: str, value: float) -> str:
    known = {metric.name: metric for metric in task_of(run.session.session.task).metrics}
    return known.get(name, Metric(name)).shown(value)


def _privacy(run: Run) -> str:
    summary = run.summary
    if summary is None or summary.epsilon is None or not math.isfinite(summary.epsilon):
        return (
            "Training was not differentially private: assume that whoever has this model can learn "
            "whether a particular example was in the peer's data."
        )
    rows = {"epsilon of the examples trained on": figure(summary.epsilon)}
    if summary.trust_epsilon is not None:
        rows["epsilon of the examples held back"] = figure(summary.trust_epsilon)
    if summary.delta is not None:
        rows["delta"] = figure(summary.delta)
    demanded = msgspec.to_builtins(run.session.session.privacy)
    rows["demanded by the session"] = ", ".join(f"{name} {one}" for name, one in demanded.items())
    return _table(rows) + "\n\nThe figures above were measured without noise."


def _trust(run: Run) -> str:
    met = [short_id(peer) for peer in (run.summary.peers_met if run.summary else ())]
    listed = ", ".join(f"`{peer}`" for peer in met[:TRUSTED]) + (", …" if met[TRUSTED:] else "")
    who = f"The peer met {len(met)} others: {listed}." if met else "The peer met no others."
    return "\n\n".join([who, *_row(_entry(run))])


def _update_log(run: Run) -> Iterator[str]:
    """Yields what the peer's update log says of the model, where it has one.

    That is its checkpoint, with what witnesses signed, and the proof that the model is in it.
    """
    if not (run.directory / LOG_FILE).exists():
        return
    log = read_log(run.directory)
    digest = sha256((run.directory / MODEL_FILE).read_bytes())
    at = [one.signed.entry.index for one in log.records if one.signed.entry.digest == digest]
    if run.kind != "last":
        return
    if not at or log.head is None:
        yield (
            f"## Update log\nNo entry of the peer's update log is of this model: the file "
            f"`{MODEL_FILE}` of the run has SHA-256 `{digest.hex()}`."
        )
        return
    yield (
        f"## Update log\nThe file `{MODEL_FILE}` of the run, SHA-256 `{digest.hex()}`, is entry "
        f"{at[-1]} of the peer's update log. Its checkpoint:\n\n```\n{log.checkpoint}```\n\n"
        f"The newest that others have signed:\n\n```\n{log.witnessed}```\n\nThe proof, for "
        f"`p2pl ledger verify`:\n\n```json\n{inclusion(log, at[-1])}```"
    )


def _row(entry: RoundEntry | None) -> Iterator[str]:
    """Yields the weights of the mix that the model came of, if they are known."""
    if entry is None or not entry.trust:
        return
    by_weight = sorted(entry.trust.items(), key=lambda one: -one[1])
    rows = [(short_id(peer), percent(100 * weight)) for peer, weight in by_weight[:TRUSTED]]
    yield f"Weights in the mix of round {entry.round}:"
    yield markdown_table(("peer", "weight"), rows)
