"""Why a peer was left out of a round, in plain words.

A run log says it for people who know the rule: `harm: got 0.412 of the right class's probability`.
What comes before the colon, or the beginning of the text, says which case it is.
"""

from p2pl.errors import visible

MAX_CHARS = 300  # of a reason that is shown

_REASONS = (
    ("harm", "Its model made this peer's worse on examples that this peer holds back to test it."),
    ("not asked: its models did harm", "Its models did harm before; it is tried again later."),
    ("not asked", "It was not asked."),
    ("distance", "Its model is much further from this peer's than the models of the others are."),
    ("direction", "Its model points in another direction, as a reversed or random one does."),
    ("norm", "Its parameters are far too large beside this peer's."),
    ("size", "Its parameters are out of all proportion to this peer's."),
    ("apart", "Its model undoes what most of the others give."),
    ("repeated", "It sent parameters that were there before, so there is nothing to learn."),
    ("stale", "Its model is of a round that is long over."),
    ("out of step", "Its model is of another round than this peer's."),
    ("late", "Its model did not arrive in time."),
    ("unreachable", "It could not be reached."),
    ("cannot be reached", "It could not be reached."),
    ("no answer", "It did not answer in time."),
    ("busy", "It was busy with others."),
    ("refused", "It refused to give its model."),
    ("address", "Its address is none that can be dialled."),
    ("not of this private session", "It is not invited to this private session."),
    ("payload", "What it sent is not a model of this session."),
    ("digest", "What it sent is not what it had announced."),
    ("krum", "Its model has no near neighbours among those of the others."),
    ("multi-krum", "Its model has no near neighbours among those of the others."),
    ("clipped-gossip", "Its model is far away, and was taken only as far as is usual."),
    ("balance", "Its model is further from this peer's than the rule allows."),
    ("ubar: the validation loss", "Its model does worse than this peer's on held-back examples."),
    ("ubar", "Others are nearer to this peer."),
)


def plain(reason: str) -> str:
    """Returns a reason of the run log in plain words; as it stands, where it is not a known one.

    Args:
        reason: of the log; part of it may be a stranger's text.
    """
    for beginning, words in _REASONS:
        if reason.startswith(beginning):
            return words
    return shown(reason)


def shown(reason: str) -> str:
    """Returns a reason as the log has it, fit to be shown: on one line, and not too long."""
    text = visible(reason)
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 1] + "…"
