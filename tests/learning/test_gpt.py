import pytest
import torch

from p2pl.errors import ModelError
from p2pl.learning.gpt import gpt
from p2pl.learning.weights import Layout
from p2pl.protocol.session import Task

TEXT = Task(input=(64,), classes=257, kind="language")


def test_it_has_the_documented_size_and_tells_a_token_for_each_place() -> None:
    model = gpt(TEXT)
    assert Layout.of(model).total == 137_345
    assert model(torch.randint(257, (2, 64))).shape == (2, 64, 257)


def test_no_place_sees_what_follows_it() -> None:
    torch.manual_seed(0)
    model = gpt(TEXT, depth=2, width=16, heads=2)
    tokens = torch.randint(257, (1, 64))
    other = tokens.clone()
    other[0, 40] = (other[0, 40] + 1) % 257
    apart = (model(tokens) - model(other)).abs().amax(2)[0]
    assert not apart[:40].any()
    assert apart[40:].all()


@pytest.mark.parametrize(
    ("task", "arguments", "said"),
    [
        (TEXT, {"heads": 5}, "divisor of width, 64"),
        (TEXT, {"depth": 65}, r"1\.\.64"),
        (TEXT, {"width": 0}, r"1\.\.16384"),
        (Task(input=(1, 8, 8), classes=10), {}, "how many tokens stand in a row"),
    ],
)
def test_what_it_cannot_be_is_refused(task: Task, arguments: dict[str, int], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        gpt(task, **arguments)
