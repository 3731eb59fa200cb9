"""What a test of a mixing rule needs: the rule at work for a peer, and models to mix."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from p2pl.data.examples import Examples
from p2pl.learning.torch_trainer import TorchTrainer
from p2pl.mixing.base import Mixed, Mixer, Own, PeerModel, rule_of
from p2pl.protocol.session import Exchange, Mixing, Model, Session, Task, Training

EXAMPLES = Examples(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))
ME = "me"


def session_of(mixing: Mixing) -> Session:
    """Returns a small session with these settings of mixing, of the kind that knows ages."""
    return Session(
        task=Task(input=(1,), classes=2),
        model=Model(name="logreg"),
        training=Training(learning_rate=0.1),
        exchange=Exchange(rounds=3, cohort=2, kind="gossip"),
        mixing=mixing,
    )


def rule_at_work(mixing: Mixing) -> Mixer:
    """Returns the rule that these settings name, at work for `ME`."""
    session = session_of(mixing)
    return rule_of(session)(session, ME)


def own_of(vector: Tensor, *, round: int = 0, samples: int = 0) -> Own:
    """Returns a peer's own model; its trainer holds four examples of two classes."""
    session = session_of(Mixing(rule="uniform"))
    trainer = TorchTrainer.of(session, ("s", ME), nn.Linear(1, 2), EXAMPLES)
    return Own(vector, round, samples, trainer)


def models_of(vectors: Mapping[str, Sequence[float]]) -> dict[str, PeerModel]:
    """Returns models by peer id, all of round 0 and of one example."""
    return {peer: PeerModel(0, 1, torch.tensor(vector)) for peer, vector in vectors.items()}


def mix(mixing: Mixing, own: Sequence[float], others: Mapping[str, Sequence[float]]) -> Mixed:
    """Returns what a rule makes of a peer's own parameters and those of others, in one round."""
    mixer = rule_at_work(mixing)
    return mixer.mix(own_of(torch.tensor(own)), models_of(others), mixer.Memory())
