"""Modules with BatchNorm and frozen layers in a simulation."""

import pytest
import torch
from support.modules import session_of

from p2pl.api.simulate import simulate
from p2pl.learning import models
from p2pl.simulation.peers import torch_trainer

pytestmark = pytest.mark.usefixtures("own_models")


@pytest.mark.parametrize("rule", ["uniform", "degroot"])
@pytest.mark.parametrize("buffers", ["mix", "local"])
def test_virtual_peers_mix_statistics_or_keep_their_own(buffers: str, rule: str) -> None:
    file = session_of("own-batchnorm", ("training.buffers", buffers), ("mixing.rule", rule))
    found = simulate(file, "digits", 3, partition="dirichlet:0.5").results[0]
    layout = found.learners[0].trainer.layout
    one, other, _ = found.vectors
    home = slice(layout.travelling.total, None)
    assert torch.allclose(one[home], other[home], atol=1e-5) == (
        (buffers, rule) == ("mix", "uniform")
    )
    assert found.engine.kind == "sequential"
    assert found.payload_bytes < 4 * (layout.total if buffers == "mix" else layout.total - 30) + 600
    assert min(scored.primary for scored in found.scores) > 30


def test_frozen_layers_stay_frozen_and_tied_ones_are_trained_one_after_another() -> None:
    for name in ("own-frozen", "own-tied"):
        file = session_of(name)
        found = simulate(file, "digits", 3).results[0]
        assert found.engine.kind == "sequential"
        module = torch_trainer(found.learners[0]).model
        begun = models.build(file.session).state_dict()
        if name == "own-frozen":
            assert torch.equal(module.state_dict()["2.weight"], begun["2.weight"])
