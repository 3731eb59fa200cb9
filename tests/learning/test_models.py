import pytest
import torch
from torch import nn

from p2pl.errors import ModelError
from p2pl.learning import models
from p2pl.learning.models import MODELS, build, initial_vector
from p2pl.learning.weights import Layout, flatten
from p2pl.protocol.session import Argument, Exchange, Model, Session, Task, Training

MNIST = Task(input=(1, 28, 28), classes=10)
PIXELS = Task(kind="segmentation", input=(3, 16, 32), classes=4)
SHAPES = Task(kind="segmentation", input=(1, 32, 32), classes=3)


def session(
    name: str,
    arguments: dict[str, Argument] | None = None,
    *,
    task: Task = MNIST,
    seed: int = 0,
) -> Session:
    return Session(
        task=task,
        model=Model(name=name, arguments=arguments or {}),
        training=Training(learning_rate=0.1),
        exchange=Exchange(rounds=1, cohort=1),
        seed=seed,
    )


NO_CLASSIFIERS = {"arrays", "gpt", "transformers", "unet"}


@pytest.mark.parametrize("name", sorted({*models.BUILT_IN} - NO_CLASSIFIERS))
@pytest.mark.parametrize("task", [MNIST, Task(input=(3, 32, 32), classes=7)])
def test_every_model_gives_a_number_for_each_class(name: str, task: Task) -> None:
    model = build(session(name, task=task))
    assert model(torch.rand(2, *task.input)).shape == (2, task.classes)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_unet_gives_a_number_for_each_class_of_each_pixel(depth: int) -> None:
    model = build(session("unet", {"depth": depth}, task=PIXELS))
    outputs = model(torch.rand(2, 3, 16, 32))
    assert outputs.shape == (2, 4, 16, 32)
    outputs.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_a_unet_sees_further_the_deeper_it_is() -> None:
    def reach(depth: int) -> int:
        x = torch.rand(1, 3, 16, 32, requires_grad=True)
        model = build(session("unet", {"depth": depth}, task=PIXELS))
        for part in model.modules():
            if isinstance(part, nn.GroupNorm):
                part.forward = lambda input: input  # type: ignore[method-assign]  # sees all of it
        model(x)[0, 0, 8, 16].backward()
        assert x.grad is not None
        return int(x.grad.abs().sum((0, 1, 2)).count_nonzero())

    assert reach(1) == 18
    assert reach(2) > reach(1)


def test_images_that_a_unet_cannot_halve_are_refused() -> None:
    task = Task(kind="segmentation", input=(1, 12, 16), classes=2)
    build(session("unet", task=task))
    with pytest.raises(ModelError, match=r"\(1, 12, 16\), allowed .*halved 3 times"):
        build(session("unet", {"depth": 3}, task=task))
    with pytest.raises(ModelError, match="then at least 2"):
        build(session("unet", {"depth": 3}, task=Task(input=(1, 8, 16), classes=2)))


def test_sizes_are_as_documented() -> None:
    assert Layout.of(build(session("logreg"))).total == 7_850
    assert Layout.of(build(session("mlp"))).total == 101_770
    assert Layout.of(build(session("mlp", {"hidden": (200, 200)}))).total == 199_210
    assert Layout.of(build(session("cnn"))).total == 114_314
    assert Layout.of(build(session("mlp", {"hidden": ()}))).total == 7_850
    assert Layout.of(build(session("unet", task=SHAPES))).total == 29_499


def test_arrays_have_the_shapes_that_the_session_gives_in_the_order_of_their_names() -> None:
    made = build(session("arrays", {"b": (3,), "a": (3, 4), "c": ()}))
    assert Layout.of(made).names == ("a", "b", "c")
    assert Layout.of(made).shapes == ((3, 4), (3,), ())
    first, rest = flatten(made)[:12], flatten(made)[12:]
    assert 0.1 < first.abs().max() <= 0.5
    assert not rest.any()


def test_arguments_change_the_model() -> None:
    shallow = Layout.of(build(session("resnet-gn"))).total
    assert Layout.of(build(session("resnet-gn", {"depth": 14}))).total > 2 * shallow
    assert Layout.of(build(session("resnet-gn", {"width": 8}))).total < shallow
    assert Layout.of(build(session("cnn", {"width": 8, "hidden": 32}))).total < 114_314


def test_a_seed_always_gives_the_same_numbers_and_another_seed_others() -> None:
    assert torch.equal(initial_vector(session("mlp")), initial_vector(session("mlp")))
    assert not torch.equal(initial_vector(session("mlp")), initial_vector(session("mlp", seed=1)))


def test_the_first_numbers_of_a_seed_stay_what_they_are() -> None:
    # A swarm whose peers disagree about them cannot rebuild the checkpoint from the seed.
    expected = [-0.009154587984085083, 0.0277395136654377, -0.0110241137444973]
    assert initial_vector(session("logreg"))[:3].tolist() == pytest.approx(expected, abs=1e-9)


def test_building_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    build(session("cnn"))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_model_names_those_there_are_and_what_to_do() -> None:
    known = ", ".join(sorted(models.BUILT_IN))
    with pytest.raises(ModelError, match=f"'vit', allowed {known}.*install"):
        build(session("vit"))


def test_a_session_cannot_name_an_importable_path() -> None:
    with pytest.raises(ModelError, match=r"model.name"):
        build(session("os.system"))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("logreg", {"hidden": 3}, "'hidden', allowed no arguments"),
        ("mlp", {"width": 3}, "'width', allowed hidden"),
        ("mlp", {"task": 3}, "'task', allowed hidden"),
        ("mlp", {"hidden": 64}, "hidden: got 64"),
        ("mlp", {"hidden": (0,)}, r"hidden: got \(0,\)"),
        ("mlp", {"hidden": (64, 32.0)}, r"hidden: got \(64, 32.0\)"),
        ("mlp", {"hidden": ("64",)}, r"hidden: got \('64',\)"),
        ("arrays", {"weight": (3, 2.0)}, r"weight: got \(3, 2.0\)"),
        ("mlp", {"hidden": (10**9,)}, "hidden: got"),
        ("mlp", {"hidden": (1,) * 65}, "hidden: got"),
        ("cnn", {"width": "wide"}, "width"),
        ("resnet-gn", {"depth": 9}, "depth: got 9, allowed 8, 14"),
        ("resnet-gn", {"depth": 2}, "depth: got 2"),
        ("resnet-gn", {"depth": 6 * 65 + 2}, "depth: got 392"),
        ("resnet-gn", {"depth": "8"}, "depth and width"),
        ("resnet-gn", {"width": 0}, "width"),
        ("unet", {"depth": 0}, "depth and width"),
        ("unet", {"width": "8"}, "depth and width"),
        ("unet", {"depth": 65_536}, "halved 65536 times"),
        ("arrays", {"a": 3}, "a: got 3"),
        ("arrays", {"a": (0,)}, r"a: got \(0,\)"),
        ("arrays", {"a..b": (1,)}, "dots"),
        ("arrays", {"training": (1,)}, "'training', allowed names that a module can have"),
        ("arrays", {"forward.x": (1,)}, "'forward.x', allowed names that a module can have"),
        ("arrays", {"a": (1,), "a.b": (1,)}, "'a.b', allowed names that a module can have"),
        ("arrays", {"a": (1 << 20, 1 << 20)}, "parameters', allowed at most"),
        ("arrays", {"a": (1 << 30,) * 3}, "parameters', allowed at most"),
    ],
)
def test_an_unusable_argument_is_named(
    name: str, arguments: dict[str, Argument], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build(session(name, arguments))


@pytest.mark.parametrize("name", ["cnn", "resnet-gn", "unet"])
@pytest.mark.parametrize("shape", [(64,), (1, 3, 28), (1, 1, 8, 8)])
def test_an_image_model_refuses_other_inputs(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"task\.input"):
        build(session(name, task=Task(input=shape, classes=2)))


def test_a_model_that_would_fill_the_memory_is_refused_before_it_does() -> None:
    for shape in [(65_536, 65_536), (65_536,) * 4]:
        with pytest.raises(ModelError, match="parameters', allowed at most"):
            build(session("logreg", task=Task(input=shape, classes=100_000)))


class Point:
    """An entry point as importlib.metadata gives it."""

    name = "mine"

    def __init__(self, made: object) -> None:
        self._made = made

    def load(self) -> object:
        if isinstance(self._made, Exception):
            raise self._made
        return self._made


def install(monkeypatch: pytest.MonkeyPatch, made: object) -> None:
    def found(group: str) -> list[Point]:
        return [Point(made)] if group == "p2pl.models" else []

    monkeypatch.setattr("p2pl.registry.entry_points", found)
    monkeypatch.setattr(MODELS, "_installed", {})


def tiny(task: Task, *, bias: int = 1) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, task.classes, bias=bool(bias)))


def test_an_installed_model_is_found_and_given_the_task_and_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, tiny)
    assert flatten(build(session("mine", {"bias": 0}))).shape == (7_840,)
    assert torch.equal(initial_vector(session("mine")), initial_vector(session("logreg")))


def test_an_installed_model_cannot_take_the_place_of_a_built_in_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, tiny)
    monkeypatch.setattr(Point, "name", "mlp")
    assert Layout.of(build(session("mlp"))).total == 101_770


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (ModuleNotFoundError("No module named 'gone'"), "cannot be imported.*gone"),
        (AttributeError("no attribute 'make'"), "cannot be imported.*make"),
        (lambda task: "not a module", "'str', allowed a torch.nn.Module"),
        (lambda: None, "refuses its arguments"),
        (
            lambda task: dict[str, nn.Module]()["weights"],
            r"cannot be made: KeyError: 'weights' \(test_models.py, line",
        ),
    ],
)
def test_a_broken_installed_model_is_an_error_of_the_person(
    monkeypatch: pytest.MonkeyPatch, made: object, message: str
) -> None:
    install(monkeypatch, made)
    with pytest.raises(ModelError, match=message):
        build(session("mine"))


@pytest.mark.parametrize(
    ("side", "width", "refused"), [(4, 2, True), (4, 3, False), (5, 2, False), (4, 16, False)]
)
def test_a_group_of_one_number_is_refused_when_the_model_is_made(
    side: int, width: int, refused: bool
) -> None:
    wanted = session("resnet-gn", {"width": width}, task=Task(input=(1, side, side), classes=2))
    if refused:
        with pytest.raises(ModelError, match=r"width of resnet-gn: got 2.*4x4 these leave one"):
            build(wanted)
    else:
        build(wanted)(torch.zeros(1, 1, side, side)).sum().backward()
