import pytest
import torch
from support.objectives import objective
from torch import nn
from torch.func import functional_call

from p2pl.data.examples import Examples
from p2pl.errors import InputError
from p2pl.learning import precision
from p2pl.learning.batched.forward import Forward
from p2pl.learning.evaluate import evaluate
from p2pl.learning.train import Start, train
from p2pl.learning.weights import Layout, flatten, load_into
from p2pl.protocol.session import Training
from p2pl.seeds import seeded
from p2pl.tasks.probe import Probe

CPU = torch.device("cpu")
ROUNDING = 2**-8  # of bfloat16, relative


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)
        )


def examples(count: int = 96) -> Examples:
    draw = torch.Generator().manual_seed(2)
    labels = torch.arange(count) % 3
    x = torch.randn(count, 1, 8, 8, generator=draw) + labels.view(-1, 1, 1, 1)
    return Examples(x, labels)


def reduced() -> nn.Module:
    model = network()
    precision.compute_in("bfloat16", model, CPU)
    return model


def is_rounded(values: torch.Tensor) -> bool:
    return torch.equal(values, values.bfloat16().float())


def test_logits_are_those_of_float32_rounded() -> None:
    exact, model, x = network(), reduced(), examples().x
    logits, wanted = model(x), exact(x)
    assert logits.dtype == torch.float32
    assert is_rounded(logits)
    assert not is_rounded(wanted)
    assert (logits - wanted).abs().max() < 8 * ROUNDING * wanted.abs().max()


def test_float32_leaves_the_model_as_it_is() -> None:
    model = network()
    precision.compute_in("float32", model, CPU)
    assert torch.equal(model(examples().x), network()(examples().x))


def test_many_peers_at_once_compute_as_one_does() -> None:
    model, x = reduced(), examples().x
    vector = flatten(model)
    stacked = {name: value.detach().unsqueeze(0) for name, value in model.named_parameters()}
    logits = Forward(model)(stacked, x, shared=True)[0].t()
    alone = functional_call(model, Layout.of(model).unflatten(vector), x)
    assert logits.dtype == torch.float32
    assert (logits - alone).abs().max() < 8 * ROUNDING * alone.abs().max()
    assert not torch.equal(logits, Forward(network())(stacked, x, shared=True)[0].t())


def test_training_moves_float32_parameters_almost_as_without_it() -> None:
    training = Training(learning_rate=0.01, batch_size=16, local_epochs=2)
    made = []
    for model in (network(), reduced()):
        start = Start(flatten(model))
        made.append(train(objective(model), start, examples(), training, seeded("", "", 1, "x")))
        assert made[-1].vector.dtype == torch.float32
        assert not is_rounded(made[-1].vector)
    moved = made[0].vector - flatten(network())
    apart = made[1].vector - made[0].vector
    assert 0 < apart.norm() < 0.1 * moved.norm()


def test_scores_and_probes_are_those_of_the_reduced_model() -> None:
    exact, model, held = network(), reduced(), examples()
    vector = flatten(exact)
    other = vector + 0.05 * torch.randn(len(vector), generator=torch.Generator().manual_seed(3))
    scores = evaluate(objective(model, 3), vector, held)
    wanted = evaluate(objective(exact, 3), vector, held)
    assert scores.loss != wanted.loss
    assert scores.loss == pytest.approx(wanted.loss, rel=0.05)
    harm, sure = Probe(model, held).harm(vector, other), Probe(exact, held).harm(vector, other)
    assert harm != sure
    assert harm[0] == pytest.approx(sure[0], abs=0.01)


def test_loaded_parameters_are_not_a_cast_of_older_ones() -> None:
    model, x = reduced(), examples().x
    before = model(x)
    load_into(model, flatten(model) * 2)
    assert not torch.equal(model(x), before)


@pytest.mark.parametrize(
    ("name", "private", "said"),
    [
        ("float16", False, r"--precision.*'float16', allowed float32, bfloat16"),
        ("bfloat16", True, r"--precision.*'bfloat16', allowed float32 with --dp-epsilon"),
    ],
)
def test_what_cannot_be_is_refused(name: str, private: bool, said: str) -> None:
    with pytest.raises(InputError, match=said):
        precision.check(name, private=private)
    precision.check("bfloat16", private=False)
    precision.check("float32", private=True)
