"""The security of a session or of runs, in figures: what is protected against what.

What each figure means, and where it is from, is in docs/security-metric.md. A figure that is not
known, or that nothing bounds, is None: it is never guessed.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pl import regular
from p2pl.api.files import read_session
from p2pl.api.ledger import Log, counted, read_log, verified
from p2pl.api.provenance import provenance
from p2pl.api.simulate import session_to_simulate
from p2pl.errors import InputError, LogError, wrong
from p2pl.mixing.fixed import MAX_SAMPLE_RATIO
from p2pl.mixing.size import MAX_RATIO
from p2pl.protocol.session import Session, SessionFile
from p2pl.protocol.updates.fault import fault_in
from p2pl.report.security import Detection, Measure, Security
from p2pl.run.log import ROUNDS_FILE, SESSION_FILE, LoggedRun, read_marker, read_run
from p2pl.updates.file import LOG_FILE
from p2pl.updates.watch import proof_file

NEGLIGIBLE = 1e-6  # a weight below is none: logs have millionths
MAX_AUDIT_BYTES = 1 << 20
FOUND_AFTER = 2  # rounds, where all honest peers meet: tests/hostile/test_histories.py
ROBUST = ("median", "trimmed-mean", "krum", "multi-krum")
ANCHORED = ("clipped-gossip", "balance", "ubar")


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs of one session that were read."""

    file: SessionFile
    honest: tuple[LoggedRun, ...]
    attacks: Mapping[str, str]  # by peer id, of those that say so
    proven: frozenset[str]  # peers of whose two histories a proof lies there
    logs: tuple[Log, ...]
    wrongs: tuple[str, ...]  # what does not hold

    @property
    def session(self) -> Session:
        """What all agreed on."""
        return self.file.session

    @property
    def bad(self) -> frozenset[str]:
        """The ids of the peers that are known to be bad."""
        return self.proven.union(self.attacks)

    @property
    def peers(self) -> frozenset[str]:
        """Everybody that the runs speak of."""
        met = {who for run in self.honest for entry in run.rounds for who in _named(entry)}
        return frozenset(met | {run.peer_id for run in self.honest} | set(self.attacks))


def security(
    paths: Sequence[Path], *, faulty: int | None = None, audited: Mapping[str, Any] | None = None
) -> Security:
    """Returns the figures of a session, or of runs of one session.

    Args:
        paths: a session file, run directories of one session or folders of them, those of attackers
            included, or both.
        faulty: how many peers together; None: those known to be bad, or the most below a half.
        audited: what `p2pl audit --json` printed of this session's training; None: nothing.

    Raises:
        InputError: they are not of one session, or cannot be read.
    """
    given = [session_to_simulate(path) for path in paths if not path.is_dir()]
    if len(given) > 1:
        raise InputError(wrong("--security", got=f"{len(given)} files", allowed="one session file"))
    folders = [run for path in paths if path.is_dir() for run in _runs_in(path)]
    if given and not folders:
        (file,) = given
        peers = max(file.session.exchange.min_peers, file.session.exchange.cohort + 1)
        many = _many(faulty, peers, 0)
        measures = (
            *_bounds(file.session, many),
            *_of_bytes(file, ()),
            *_of_histories(file.session, None),
            *_of_privacy(file.session, (), audited),
            *_of_sybils(file.session, peers),
        )
        detection = _promised(file.session, {})
        return Security(file.id, file.name, 0, peers, many, measures, detection)
    runs = _read(folders, given[0] if given else None)
    peers = len(runs.peers)
    many = _many(faulty, peers, len(runs.bad))
    measures = (
        *_of_weights(runs, many),
        *_of_influence(runs, many),
        *_bounds(runs.session, many),
        *_of_bytes(runs.file, runs.honest),
        *_of_histories(runs.session, runs),
        *_of_privacy(runs.session, runs.honest, audited),
        *_of_sybils(runs.session, peers - len(runs.bad)),
    )
    first = runs.honest[0]
    detection = _promised(runs.session, _found(runs))
    return Security(
        first.session_id, first.name, len(runs.honest), peers, many, measures, detection
    )


def read_audit(path: Path) -> Mapping[str, Any]:
    """Returns what `p2pl audit --json` has printed into a file; raises InputError."""
    allowed = "what `p2pl audit --json` prints"
    try:
        with regular.opened(path) as file:
            told = json.loads(file.read(MAX_AUDIT_BYTES))
    except (OSError, ValueError, RecursionError) as fault:
        raise InputError(wrong("--privacy-audit", got=str(path), allowed=allowed)) from fault
    if not isinstance(told, dict):
        raise InputError(wrong("--privacy-audit", got=str(path), allowed=allowed))
    return told


def _many(faulty: int | None, peers: int, bad: int) -> int:
    """Returns how many peers together are looked at; raises InputError where there are fewer."""
    if faulty is None:
        return bad or _most_faulty(peers)
    if faulty >= peers:
        allowed = f"0..{peers - 1}, for there are {peers} peers"
        raise InputError(wrong("--faulty", got=faulty, allowed=allowed))
    return faulty


def _most_faulty(peers: int) -> int:
    """Returns the most that are fewer than half: what robust rules tolerate at best."""
    return max(0, (peers - 1) // 2)


def _runs_in(path: Path) -> list[Path]:
    """Returns a run directory itself, or those in a folder of runs."""
    if (path / ROUNDS_FILE).is_file():
        return [path]
    return sorted(one.parent for one in path.glob(f"*/{ROUNDS_FILE}")) or [path]


def _read(paths: Sequence[Path], file: SessionFile | None) -> _Runs:
    attacks: dict[str, str] = {}
    honest: list[LoggedRun] = []
    proven: set[str] = set()
    for path in paths:
        if not (path / ROUNDS_FILE).is_file():
            allowed = "a session file, run directories, or a folder of them"
            raise InputError(wrong("--security", got=str(path), allowed=allowed))
        run, marker = read_run(path), read_marker(path)
        if marker is not None and marker.attack:
            attacks[run.peer_id] = marker.attack
            continue
        honest.append(run)
        proven |= _proven_in(path)
    if not honest:
        raise InputError("--security: got runs of attackers alone, allowed one of an honest peer")
    sessions = sorted({run.session_id for run in honest})
    if len(sessions) > 1:
        got = f"runs of {len(sessions)} sessions"
        raise InputError(wrong("--security", got=got, allowed="runs of one session"))
    file = file or read_session(honest[0].directory / SESSION_FILE)
    logged = [run.directory for run in honest if (run.directory / LOG_FILE).exists()]
    wrongs = [f"{one.source}: {one.text}" for one in verified(logged) if not one.holds]
    logs = tuple(map(read_log, logged)) if not wrongs else ()
    return _Runs(
        file,
        tuple(honest),
        attacks,
        frozenset(proven),
        logs,
        tuple(wrongs),
    )


def _proven_in(path: Path) -> set[str]:
    """Returns the ids of the peers of whose two histories a run directory has a proof."""
    found: set[str] = set()
    for one in sorted(path.glob(proof_file("*"))):
        fault = fault_in(one.read_text(errors="replace"))
        try:
            fault.check()
        except LogError as why:
            raise InputError(f"{one}: {why}") from why
        found.add(fault.peer_id)
    return found


def _named(entry: Any) -> Iterable[str]:  # noqa: ANN401  # a round
    return (*entry.trust, *entry.cohort, *entry.received, *entry.rejected, *entry.resting)


# --- influence -----------------------------------------------------------------------------------


def _of_weights(runs: _Runs, many: int) -> list[Measure]:
    """Returns the weights that others had in the mixes of honest peers, by round."""
    single: list[float] = []
    together: list[float] = []
    bad: list[float] = []
    last: list[float] = []
    for run in runs.honest:
        for entry in run.rounds:
            others = sorted(
                (weight for who, weight in entry.trust.items() if who != run.peer_id), reverse=True
            )
            single.append(others[0] if others else 0.0)
            together.append(sum(others[:many]))
            bad.append(sum(weight for who, weight in entry.trust.items() if who in runs.bad))
        if run.rounds:
            last.append(bad[-1])
    if not single:
        return []
    count = f"over {len(single)} rounds of {len(runs.honest)} peers"
    made = [
        _share("peer_weight_mean", math.fsum(single) / len(single), "run log", count),
        _share("peer_weight_max", max(single), "run log", count),
        _share("f_weight_mean", math.fsum(together) / len(together), "run log", f"f = {many}"),
        _share("f_weight_max", max(together), "run log", f"f = {many}"),
    ]
    if runs.bad:
        who = f"{len(runs.bad)} known to be bad, together"
        made.append(_share("bad_weight_mean", math.fsum(bad) / len(bad), "run log", who))
        made.append(_share("bad_weight_last", max(last), "run log", f"{who}, in the last round"))
    return made


def _of_influence(runs: _Runs, many: int) -> list[Measure]:
    """Returns the share of all training in a final model that others did."""
    if not runs.logs:
        return []
    single, together, unknown, bad = 0.0, 0.0, 0, 0.0
    for log in runs.logs:
        if not log.records:
            continue
        made = provenance(log, runs.logs)
        others = sorted(
            (share for who, share in made.influence.items() if who != log.peer_id), reverse=True
        )
        single = max(single, others[0] if others else 0.0)
        together = max(together, sum(others[:many]))
        bad = max(bad, sum(share for who, share in made.influence.items() if who in runs.bad))
        unknown += made.unknown
    models = counted(len(runs.logs), "final model", "final models")
    if unknown:  # nobody can say what is not in the logs that are there
        missing = f"of {models}; the logs of {counted(unknown, 'version', 'versions')} are missing"
        made_of = [
            _share("peer_influence", None, "not known", missing),
            _share("f_influence", None, "not known", f"f = {many}; logs are missing"),
        ]
    else:
        made_of = [
            _share("peer_influence", single, "update log", f"of {models}"),
            _share("f_influence", together, "update log", f"f = {many}"),
        ]
    if runs.bad:
        made_of.append(_share("bad_influence", bad, "update log", "as far as their logs are given"))
    return made_of


def _share(name: str, value: float | None, source: str, about: str = "") -> Measure:
    return Measure(name, None if value is None else round(value, 6), "share", source, about)


def _bounds(session: Session, many: int) -> list[Measure]:
    """Returns the most weight that one peer, and f of them, can have in a mix by the rule alone."""
    most, about = _by_rule(session)
    return [
        _share("peer_weight_by_rule", most and most(1), "session", about),
        _share("f_weight_by_rule", most and most(many), "session", f"f = {many}; {about}"),
    ]


def _by_rule(session: Session) -> tuple[Callable[[int], float] | None, str]:
    """Returns the most weight that so many peers can have in a full mix; None: no bound."""
    rule, exchange = session.mixing.rule, session.exchange
    full = exchange.cohort + 1
    if exchange.kind == "raft":
        return lambda _: 1.0, "the leader of a term is trusted for its term"
    if rule == "none":
        return lambda _: 0.0, "others' models are thrown away"
    if exchange.kind == "braintorrent":
        return None, "everybody is asked, and nobody knows beforehand how many there are"
    if rule == "uniform":
        about = f"{full} models in a full mix; more weight where some do not come"
        return lambda many: min(many, full - 1) / full, about
    if rule == "samples":
        # The liar's count is the most that is taken, and everybody else's the least.
        ratio = MAX_SAMPLE_RATIO**2
        about = f"counts of examples are kept within {MAX_SAMPLE_RATIO:g} times their median"

        def share(many: int) -> float:
            bad = min(many, full - 1)
            return ratio * bad / (ratio * bad + full - bad)

        return share, about
    if rule == "age":
        return None, "by age, which each peer says of its own model"
    if rule.removeprefix("nnm-") in ROBUST:
        return None, "no weight bounds it: fewer than half of a mix are outvoted, more are not"
    if rule in ANCHORED:
        return None, "no weight bounds it: it goes by the distance to the peer's own model"
    return None, "learned, or of a rule of somebody's own: nothing bounds it beforehand"


# --- detection -----------------------------------------------------------------------------------


def _found(runs: _Runs) -> dict[str, Detection]:
    """Returns how long each bad peer had a weight with the honest, by kind of attack."""
    found: dict[str, Detection] = {}
    for who in sorted(runs.bad):
        attack = runs.attacks.get(who) or "two histories"
        spans = [span for run in runs.honest if (span := _span(run, who)) is not None]
        if not spans:
            continue
        ends, weighted = zip(*spans, strict=True)
        rounds = None if any(ends) else max(weighted)
        before = found.get(attack)
        if before is not None and (rounds is None or before.rounds is None):
            rounds = None
        elif before is not None and before.rounds is not None and rounds is not None:
            rounds = max(rounds, before.rounds)
        late = f"; with {sum(ends)} it had a weight in the last round that it took part in"
        about = f"{len(spans)} honest peers met it{late if any(ends) else ''}"
        found[attack] = Detection(attack, rounds, measured=True, about=about)
    return found


def _span(run: LoggedRun, who: str) -> tuple[bool, int] | None:
    """Returns whether a peer still had a weight at the end, and in how many rounds it had one.

    None where it was never met.
    """
    met = [entry for entry in run.rounds if who in _named(entry)]
    weighted = [entry.trust.get(who, 0.0) > NEGLIGIBLE for entry in met]
    return (weighted[-1], sum(weighted)) if met else None


def _promised(session: Session, found: Mapping[str, Detection]) -> tuple[Detection, ...]:
    """Returns what was measured, and of the other kinds of attack what is promised."""
    logged, rule = session.ledger, session.mixing.rule
    learned = "degroot" in rule
    no_log = "not looked for: the session has no update logs (ledger = true)"
    usual = "rejected by what it costs on the peer's own examples; no bound is promised"
    outvoted = f"not found, but outvoted where it is fewer than half of a mix ({rule})"
    lies = usual if learned else outvoted if rule.removeprefix("nnm-") in ROBUST else ""
    bounds = (
        ("bytes changed on the way", 0, "the connection authenticates each byte"),
        ("other bytes than offered", 0, "their hash is compared before they are decoded"),
        ("nan", 0, "no number that is not finite is decoded"),
        ("huge", 0, f"nothing above {MAX_RATIO:g} times the usual norm is mixed"),
        ("a version that was not committed to", 0 if logged else None, "" if logged else no_log),
        (
            "two histories",
            FOUND_AFTER if logged else None,
            "where all honest peers meet; parts that never meet find nothing" if logged else no_log,
        ),
        (
            "a log that was cut or rewritten",
            1 if logged else None,
            "at the next pull, by each that has seen more of it" if logged else no_log,
        ),
        ("poisoned models of usual size", None, lies or f"not found: {rule} looks at no model"),
        ("a backdoor", None, "not found: no example of the peer's has the mark"),
        ("free-rider", None, "not looked for"),
    )
    promised = [
        Detection(attack, rounds, measured=False, about=about)
        for attack, rounds, about in bounds
        if attack not in found
    ]
    return (*found.values(), *promised)


# --- bytes, histories, privacy, identities -------------------------------------------------------


def _of_bytes(file: SessionFile, runs: Sequence[LoggedRun]) -> list[Measure]:
    """Returns the shares of bytes that are authenticated, and committed to."""
    logged = file.session.ledger
    safe = all(url.startswith("https://") for tier in file.trackers for url in tier)
    between = sum(one.bytes_in + one.bytes_out for run in runs for one in run.rounds)
    tracker = sum(one.tracker_bytes for run in runs for one in run.rounds)
    counted = between + (0 if safe else tracker)
    about = "all bytes between peers; those of a tracker without HTTPS are not"
    made = [_share("bytes_authenticated", between / counted, "run log", about)] if counted else []
    return [
        *made,
        _share("parameters_authenticated", 1.0, "protocol", "CURVE, each peer by its key"),
        _share(
            "versions_committed",
            float(logged),
            "session",
            "signed before they are served; what is not is never mixed" if logged else "",
        ),
    ]


def _of_histories(session: Session, runs: _Runs | None) -> list[Measure]:
    """Returns whether two histories are looked for, and what the logs of a run say."""
    made = [Measure("equivocation_checked", session.ledger, "", "session")]
    if runs is None or not runs.logs:
        if runs is not None and runs.wrongs:
            made.append(
                Measure("logs_wrong", len(runs.wrongs), "", "update log", runs.wrongs[0][:200])
            )
        return made
    digests = {log.peer_id: {one.signed.entry.digest for one in log.records} for log in runs.logs}
    parts = [
        part.digest in digests[part.peer.hex()]
        for log in runs.logs
        for record in log.records
        for part in (record.mix.parts if record.mix else ())
        if part.peer.hex() in digests and part.peer.hex() != log.peer_id
    ]
    held = sum(parts) / len(parts) if parts else None
    witnesses = [len({one.witness for _, one in log.cosigned}) for log in runs.logs]
    return [
        *made,
        _share("mixed_versions_in_logs", held, "update log", f"of {len(parts)} that were mixed"),
        Measure("witnesses_least", min(witnesses), "peers", "update log", "of the logs given"),
        Measure("proofs_of_two_histories", len(runs.proven), "peers", "update log"),
        Measure("logs_wrong", 0, "", "update log", f"of {len(runs.logs)}"),
    ]


def _of_privacy(
    session: Session, runs: Sequence[LoggedRun], audited: Mapping[str, Any] | None
) -> list[Measure]:
    """Returns what of privacy was spent, and what an audit found."""
    spent = [
        max(one.epsilon or 0.0, one.trust_epsilon or 0.0)
        for run in runs
        for one in run.rounds[-1:]
        if one.epsilon is not None
    ]
    made: list[Measure] = []
    if runs:
        epsilon = max(spent) if spent and len(spent) == len(runs) else None
        about = f"the most of {len(runs)} peers"
        if epsilon is None:
            about = f"{len(runs) - len(spent)} of {len(runs)} peers train without privacy"
        made.append(Measure("epsilon", epsilon, "", "run log", about))
        deltas = [run.summary.delta for run in runs if run.summary and run.summary.delta]
        made.append(Measure("delta", max(deltas, default=None), "", "run log"))
    else:
        about = "demanded of everybody" if session.privacy.required else "nobody has to be private"
        limit = session.privacy.max_epsilon if session.privacy.required else None
        made.append(Measure("epsilon", limit, "", "session", about))
    if audited is not None:
        made.append(_audited(audited))
    else:
        about = (
            "run `p2pl audit SESSION --data … --json`, and give what it prints to --privacy-audit"
        )
        made.append(Measure("epsilon_audited", None, "", "audit", about))
    return made


def _audited(told: Mapping[str, Any]) -> Measure:
    try:
        bound, confidence, word = float(told["bound"]), float(told["confidence"]), told["verdict"]
        if not (0 <= bound < math.inf and 0 <= confidence <= 1):  # NaN neither
            raise ValueError(bound, confidence)
    except (KeyError, TypeError, ValueError, OverflowError) as fault:
        allowed = "what `p2pl audit --json` prints"
        raise InputError(wrong("--privacy-audit", got=dict(told), allowed=allowed)) from fault
    about = f"at least, with {100 * confidence:g} % confidence: {str(word)[:40]}"
    return Measure("epsilon_audited", bound, "", "audit", about)


def _of_sybils(session: Session, honest: int) -> list[Measure]:
    """Returns who may take part, and how many identities half of the listed peers are."""
    voters = session.exchange.kind == "raft" and session.exchange.raft.members
    admission = "private" if session.private else "open"
    about = (
        f"by invitation of the author {session.author[:8]}"
        if session.private
        else "anybody with the session file; an identity costs nothing"
    )
    if voters:
        about += f"; who votes is named: {len(voters)} members"
    cost = "invitations" if session.private else "identities that cost nothing"
    half = f"as many as there are honest peers: a cohort is drawn evenly; {cost}"
    return [
        Measure("admission", admission, "", "session", about),
        Measure("identities_for_half", honest, "identities", "protocol", half),
        Measure("invitations_for_half", honest if session.private else 0, "", "protocol"),
    ]
