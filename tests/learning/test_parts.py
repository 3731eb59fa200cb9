"""Which numbers of a module are trained, kept, frozen or tied; and the whole module as a file."""

import pytest
import torch
from safetensors.torch import load
from support.modules import Tied, batchnorm, frozen
from support.objectives import objective
from torch import nn

from p2pl.data.examples import Examples
from p2pl.errors import FrameError, ModelError
from p2pl.learning import weights, whole
from p2pl.learning.evaluate import evaluate
from p2pl.learning.parts import Layout, flatten, load_into
from p2pl.learning.train import Start, train
from p2pl.protocol.session import Task, Training
from p2pl.seeds import seeded

TASK = Task(input=(1, 8, 8), classes=10)
TRAINING = Training(learning_rate=0.1, momentum=0.9, weight_decay=0.1, batch_size=8)


def examples(count: int = 32) -> Examples:
    """Returns images whose mean is not 0."""
    torch.manual_seed(1)
    return Examples(torch.rand(count, 1, 8, 8) + 3, torch.arange(count) % 10)


def test_buffers_stand_behind_the_parameters_and_those_of_batchnorm_before_them() -> None:
    layout = Layout.of(batchnorm(TASK, width=4))
    assert layout.names == (
        *("1.bias", "1.weight", "4.bias", "4.weight"),
        *("2.bias", "2.weight"),
        *("2.running_mean", "2.running_var"),
    )
    assert layout.trained == layout.total - 8
    assert layout.travelling.names == ("1.bias", "1.weight", "4.bias", "4.weight")


def test_what_is_frozen_and_what_is_tied_is_in_no_vector() -> None:
    assert Layout.of(frozen(TASK)).names == ("5.bias", "5.weight")
    assert Layout.of(frozen(TASK)).frozen == ("2.bias", "2.weight")
    assert Layout.of(Tied()).names == ("a.weight", "out.bias", "out.weight")
    assert Layout.of(Tied()).tied == ("b.weight",)


def test_a_buffer_that_is_not_saved_belongs_to_the_code() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("sines", torch.ones(3), persistent=False)
    assert Layout.of(model).is_plain


def test_a_module_that_is_frozen_altogether_or_has_no_shapes_yet_is_refused() -> None:
    model = nn.Linear(2, 2).requires_grad_(requires_grad=False)
    with pytest.raises(ModelError, match="2 parameters, all of them frozen"):
        Layout.of(model)
    with pytest.raises(ModelError, match=r"0\.weight.*not known yet.*use it once"):
        Layout.of(nn.Sequential(nn.LazyLinear(2)))


def test_training_moves_the_statistics_as_pytorch_does_and_decays_none_of_them() -> None:
    model, data = batchnorm(TASK), examples()
    layout, start = Layout.of(model), flatten(model)
    made = train(objective(model), Start(start), data, TRAINING, seeded("", "", 1, "x"))
    theirs = batchnorm(TASK)
    load_into(theirs, start)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    order = torch.randperm(32, generator=seeded("", "", 1, "x"))
    for rows in torch.split(order, 8):
        optimizer.zero_grad()
        batch = data.take(rows)
        loss = nn.functional.cross_entropy(theirs(batch.x), batch.y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.testing.assert_close(made.vector, flatten(theirs))
    assert not torch.equal(layout.unflatten(made.vector)["2.running_mean"], torch.zeros(8))
    assert int(made.optimizer["count.2.num_batches_tracked"]) == 4


def test_scoring_moves_no_statistics_and_each_peer_keeps_its_own_count() -> None:
    model, data = batchnorm(TASK), examples()
    one = objective(model)
    before = flatten(model)
    evaluate(one, before, data)
    assert torch.equal(flatten(model), before)
    first = train(one, Start(before), data, TRAINING, seeded("", "", 1, "x"))
    other = train(one, Start(before), data, TRAINING, seeded("", "", 1, "y"))
    again = train(one, Start(first.vector, first.optimizer), data, TRAINING, seeded("", "", 2, "x"))
    counts = [int(one.optimizer["count.2.num_batches_tracked"]) for one in (first, other, again)]
    assert counts == [4, 4, 8]


def test_a_whole_module_is_read_back_to_the_last_bit_with_what_is_frozen() -> None:
    model, other = frozen(TASK), frozen(TASK)
    layout = Layout.of(model)
    payload = bytes(whole.encode(model, layout, flatten(model)))
    assert len(payload) == whole.size_of(model, layout)
    assert torch.equal(load(payload)["2.weight"], model[2].weight)  # type: ignore[index]
    assert not torch.equal(other[2].weight, model[2].weight)  # type: ignore[index]
    load_into(other, whole.decode(payload, other, layout))
    for name, values in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], values)
        assert other.state_dict()[name].dtype == values.dtype


def test_what_differs_between_modules_is_named_with_both_shapes_or_both_roles() -> None:
    model = frozen(TASK)
    thawed = frozen(TASK).requires_grad_()
    for one in thawed.parameters():
        one.data = one.data.float()
    plain = bytes(whole.encode(thawed, Layout.of(thawed), flatten(thawed)))
    with pytest.raises(FrameError, match=r"'2.bias'.*'F32'.*'F16'"):
        whole.decode(plain, model, Layout.of(model))
    wide = batchnorm(TASK, width=5)
    narrow = batchnorm(TASK, width=4)
    told = bytes(whole.encode(narrow, Layout.of(narrow), flatten(narrow)))
    with pytest.raises(FrameError, match=r"'1.bias'.*\[4\].*\[5\]"):
        whole.decode(told, wide, Layout.of(wide))


def test_the_same_shapes_with_other_roles_are_another_module() -> None:
    open_, shut = (
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
    )
    shut[0].requires_grad_(requires_grad=False)
    open_[1].requires_grad_(requires_grad=False)
    for mine, theirs in ((open_, shut), (nn.Sequential(*open_).requires_grad_(), shut)):
        payload = bytes(whole.encode(theirs, Layout.of(theirs), flatten(theirs)))
        with pytest.raises(FrameError, match="got 'frozen', allowed trained"):
            whole.decode(payload, mine, Layout.of(mine))


def test_a_variance_below_zero_from_another_peer_is_refused() -> None:
    model = batchnorm(TASK)
    layout, vector = Layout.of(model), flatten(model)
    layout.unflatten(vector)["2.running_var"][3] = -1e-3
    with pytest.raises(FrameError, match=r"2\.running_var.*below 0"):
        weights.decode(weights.encode(vector, layout, "float32"), layout, "float32")
