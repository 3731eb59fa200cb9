"""The models a session may name.

A session file names a model; what the name means is decided by what the joining person installed:
one of those here, or an entry point in the group `p2pl.models`, a callable
`(task, **arguments) -> nn.Module`. Nothing is ever imported because a session file says so.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor, nn

from p2pl.errors import ModelError, P2PLError, wrong
from p2pl.learning import faults
from p2pl.learning.gpt import gpt
from p2pl.learning.pretrained import pretrained
from p2pl.learning.weights import flatten
from p2pl.protocol.session import Session
from p2pl.protocol.session import Task as TaskSettings
from p2pl.registry import Registry

GROUP = "p2pl.models"
MAX_PARAMETERS = 1 << 30  # 4 GiB of float32; chosen: a session file must not exhaust the memory
MAX_WIDTH = 65_536
MAX_LAYERS = 64
_GROUP_NORM_GROUPS = 8  # chosen: narrow layers have 16 channels; 2 or more in each group

Make: TypeAlias = Callable[..., nn.Module]


def logreg(task: TaskSettings) -> nn.Module:
    """Returns multinomial logistic regression: one linear layer on the raw input."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(task.input), task.width))


def mlp(task: TaskSettings, *, hidden: tuple[int, ...] = (128,)) -> nn.Module:
    """Returns a multi-layer perceptron with ReLU.

    Args:
        task: any input shape.
        hidden: sizes of the hidden layers.

    Raises:
        ModelError: a size is out of range.
    """
    _check_sizes("hidden", hidden)
    sizes = (math.prod(task.input), *hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for inner, outer in pairwise(sizes):
        layers += [nn.Linear(inner, outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], task.width))


def cnn(task: TaskSettings, *, width: int = 16, hidden: int = 64) -> nn.Module:
    """Returns a small convolutional network in the manner of LeNet-5, with ReLU and max-pooling.

    Two 5x5 convolutions of `width` and `2 width` channels, each followed by 2x2 pooling, and one
    hidden linear layer. 28x28 grey images and the defaults: 114 314 parameters.

    Args:
        task: images of at least 4x4.
        width: channels of the first convolution.
        hidden: size of the hidden layer.

    Raises:
        ModelError: the task's inputs are no such images, or a size is out of range.
    """
    channels, height, breadth = _image(task, "cnn")
    _check_sizes("width and hidden", (width, hidden))
    # Pooling before ReLU: the greatest of four is the same either way, to the last bit, and ReLU
    # has a quarter of the work (measured: training takes 0.80 to 0.96 of the time).
    return nn.Sequential(
        nn.Conv2d(channels, width, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * (height // 4) * (breadth // 4), hidden),
        nn.ReLU(),
        nn.Linear(hidden, task.width),
    )


def resnet_gn(task: TaskSettings, *, depth: int = 8, width: int = 16) -> nn.Module:
    """Returns a residual network (He et al. 2016, section 4.2) with GroupNorm for BatchNorm.

    Args:
        task: images of at least 4x4.
        depth: 6 n + 2, with n blocks in each of three stages: 8, 14, 20, 26, …
        width: channels of the first stage; it doubles twice.

    Raises:
        ModelError: the task's inputs are no such images, or a size is out of range.
    """
    return _resnet(task, "resnet-gn", (depth, width), _group_norm)


def resnet_bn(task: TaskSettings, *, depth: int = 8, width: int = 16) -> nn.Module:
    """Returns a residual network (He et al. 2016, section 4.2) with BatchNorm.

    Args:
        task: images of at least 4x4.
        depth: 6 n + 2, with n blocks in each of three stages: 8, 14, 20, 26, …
        width: channels of the first stage; it doubles twice.
    """
    return _resnet(task, "resnet-bn", (depth, width), nn.BatchNorm2d)


def unet(task: TaskSettings, *, depth: int = 2, width: int = 8) -> nn.Module:
    """Returns a U-Net (Ronneberger et al. 2015): a score for each class of each pixel.

    Unlike theirs, its convolutions keep the size of an image, each is followed by GroupNorm, and
    nothing is dropped out. One channel, three classes and the defaults: 29 499 parameters.

    Args:
        task: images whose sides can be halved `depth` times and are then at least 2.
        depth: how often an image is halved, and doubled again.
        width: channels of the first convolutions; they double with each halving.

    Raises:
        ModelError: the task's inputs are no such images, or a size is out of range.
    """
    channels, *sides = _image(task, "unet")
    _check_sizes("depth and width", (depth, width))
    if any(side >> depth < 2 or side >> depth << depth != side for side in sides):
        allowed = f"images whose sides can be halved {depth} times and are then at least 2"
        raise ModelError(wrong("model unet: task.input", got=task.input, allowed=allowed))
    return nn.Sequential(_Level(channels, width, depth), nn.Conv2d(width, task.width, 1))


class _Level(nn.Module):
    """One level of a U-Net: what lies below it sees half of its size, and is put beside it."""

    def __init__(self, inner: int, width: int, depth: int) -> None:
        super().__init__()
        self.before = _two(inner, width)
        self.below = None
        if depth:
            self.below = nn.Sequential(
                nn.MaxPool2d(2),
                _Level(width, 2 * width, depth - 1),
                nn.ConvTranspose2d(2 * width, width, 2, 2),
            )
            self.after = _two(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.after(torch.cat([x, self.below(x)], 1)) if self.below else x


def _two(inner: int, outer: int) -> nn.Module:
    """Returns two 3x3 convolutions, each with GroupNorm and ReLU."""
    return nn.Sequential(
        *(_conv(inner, outer), _group_norm(outer), nn.ReLU()),
        *(_conv(outer, outer), _group_norm(outer), nn.ReLU()),
    )


Norm: TypeAlias = Callable[[int], nn.Module]


def _resnet(task: TaskSettings, name: str, size: tuple[int, int], norm: Norm) -> nn.Module:
    """Returns a residual network of this depth and width, with a normalisation by channels."""
    channels, height, breadth = _image(task, name)
    depth, width = size
    _check_sizes("depth and width", (depth, width))
    if norm is _group_norm:
        _check_groups(width, (height, breadth))
    blocks, rest = divmod(depth - 2, 6)
    if rest or not 1 <= blocks <= MAX_LAYERS:
        raise ModelError(
            wrong("model.arguments.depth", got=depth, allowed=f"8, 14, 20, … {6 * MAX_LAYERS + 2}")
        )
    layers: list[nn.Module] = [_conv(channels, width), norm(width), nn.ReLU()]
    inner = width
    for stage in range(3):
        for block in range(blocks):
            outer = width << stage
            stride = 2 if stage and not block else 1
            layers.append(_Residual(inner, outer, stride, norm))
            inner = outer
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, task.width)]
    return nn.Sequential(*layers, *pool)


def _check_groups(width: int, size: tuple[int, int]) -> None:
    """Raises ModelError where a group to be normalised has one number, whose deviation is none."""
    for stage in range(3):
        channels, pixels = width << stage, math.prod(-(-side // (1 << stage)) for side in size)
        if channels // math.gcd(channels, _GROUP_NORM_GROUPS) * pixels < 2:
            raise ModelError(
                wrong(
                    "model.arguments.width of resnet-gn",
                    got=width,
                    allowed="a larger one, or larger images, for GroupNorm needs two numbers in a "
                    f"group, and of {size[0]}x{size[1]} these leave one",
                )
            )


class _Residual(nn.Module):
    """Two 3x3 convolutions around which the input is added back."""

    def __init__(self, inner: int, outer: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(inner, outer, stride), norm(outer), nn.ReLU(), _conv(outer, outer), norm(outer)
        )
        same = inner == outer and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def _conv(inner: int, outer: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(channels, _GROUP_NORM_GROUPS), channels)


def _image(task: TaskSettings, name: str) -> tuple[int, int, int]:
    if len(task.input) != 3 or min(task.input[1:]) < 4:
        raise ModelError(
            wrong(
                f"model {name}: task.input",
                got=task.input,
                allowed="images as (channels, height, width), at least 4 high and wide",
            )
        )
    channels, height, breadth = task.input
    return channels, height, breadth


def _check_sizes(name: str, sizes: object) -> None:
    if (
        not isinstance(sizes, tuple)
        or not len(sizes) <= MAX_LAYERS
        or not all(isinstance(size, int) and 1 <= size <= MAX_WIDTH for size in sizes)
    ):
        raise ModelError(
            wrong(
                f"model.arguments.{name}",
                got=sizes,
                allowed=f"at most {MAX_LAYERS} whole numbers, each 1..{MAX_WIDTH}",
            )
        )


def arrays(task: TaskSettings, **shapes: tuple[int, ...]) -> nn.Module:
    """Returns parameters without a network: what is computed with them only their trainer knows.

    For clients of Flower, and for modules that a person brings: a name with dots is that of a
    parameter inside a module inside the module, as `named_parameters` says it. They start as those
    of a linear layer would: uniform within one over the root of the numbers in a row, and 0 where
    there is one dimension or none.

    Args:
        task: not read.
        shapes: of the arrays by name; their order is that of their names.

    Raises:
        ModelError: a name cannot be that of a parameter, or a shape is none.
    """
    del task
    made = nn.Module()
    for name, shape in sorted(shapes.items()):
        _check_shape(name, shape)
        values = torch.zeros(shape)
        if len(shape) > 1:
            bound = math.prod(shape[1:]) ** -0.5
            values.uniform_(-bound, bound)
        try:
            _place(made, name, values)
        except (AttributeError, KeyError) as taken:
            allowed = "names that a module can have, none of them twice"
            raise ModelError(wrong("model.arguments", got=name, allowed=allowed)) from taken
    return made


def _place(root: nn.Module, name: str, values: Tensor) -> None:
    """Adds a parameter under a name with dots, and the modules that it is in."""
    *path, last = name.split(".")
    for step in path:
        if step not in dict(root.named_children()):
            root.add_module(step, nn.Module())
        root = root.get_submodule(step)
    root.register_parameter(last, nn.Parameter(values))


def _check_shape(name: str, shape: object) -> None:
    if (
        not all(name.split("."))
        or not isinstance(shape, tuple)
        or not len(shape) <= MAX_LAYERS
        or not all(isinstance(size, int) and 1 <= size <= MAX_PARAMETERS for size in shape)
    ):
        raise ModelError(
            wrong(
                f"model.arguments.{name}",
                got=shape,
                allowed=f"names between dots, and at most {MAX_LAYERS} whole numbers from 1 on",
            )
        )


BUILT_IN: Mapping[str, Make] = {
    "logreg": logreg,
    "mlp": mlp,
    "cnn": cnn,
    "resnet-gn": resnet_gn,
    "resnet-bn": resnet_bn,
    "unet": unet,
    "gpt": gpt,
    "transformers": pretrained,
    "arrays": arrays,
}
MODELS: Registry[Make] = Registry("model.name", GROUP, None, ModelError)
for _name, _make in BUILT_IN.items():
    MODELS.builtin(_name)(_make)


def check(session: Session) -> None:
    """Raises ModelError where the session's model is unknown here, or would not be built.

    A model that somebody brings is only looked up: what it makes of its arguments shows when it is
    made.
    """
    _find(session)


def build(session: Session) -> nn.Module:
    """Returns the session's model on the CPU, initialised from the session's seed.

    Two machines with the same version of torch get the same numbers. The global random state is
    left as it was.

    Raises:
        ModelError: the name is not known here, or an argument is unusable.
    """
    make = _find(session)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed every GPU as well, and fork_rng restores none.
        torch.default_generator.manual_seed(session.seed)
        return make()


def sketch(session: Session) -> nn.Module:
    """Returns the session's model with its names and shapes; one of p2pl's takes no memory.

    Raises:
        ModelError: the name is not known here, or an argument is unusable.
    """
    make = _find(session)
    if session.model.name not in BUILT_IN:
        return make()  # what a person brings need not work without numbers
    with torch.device("meta"):
        return make()


def initial_vector(session: Session) -> Tensor:
    """Returns the parameters that every peer of the session starts from, [P] float32.

    Raises:
        ModelError: the name is not known here, or an argument is unusable.
    """
    return flatten(build(session))


def _find(session: Session) -> Callable[[], nn.Module]:
    name, arguments = session.model.name, session.model.arguments
    make = MODELS.find(name)
    if BUILT_IN.get(name) is make:
        bound = partial(make, session.task, **arguments)
        _check_names(name, make, arguments)
        _check_memory(bound)
        return bound
    return partial(_make_foreign, name, make, session)


def _check_names(name: str, make: Make, arguments: Mapping[str, object]) -> None:
    parameters = inspect.signature(make).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return  # any name will do
    known = sorted(set(parameters) - {"task"})
    for argument in arguments:
        if argument not in known:
            raise ModelError(
                wrong(
                    f"model.arguments of {name}",
                    got=argument,
                    allowed=", ".join(known) or "no arguments",
                )
            )


def _check_memory(make: Callable[[], nn.Module]) -> None:
    """Counts the parameters on the meta device, where they take no memory."""
    try:
        with torch.device("meta"):
            total: float = sum(parameter.numel() for parameter in make().parameters())
    except (OverflowError, RuntimeError, TypeError):  # sizes beyond 64 bits
        total = math.inf
    if total > MAX_PARAMETERS:
        raise ModelError(
            wrong("model", got=f"{total} parameters", allowed=f"at most {MAX_PARAMETERS}")
        )


def _make_foreign(name: str, make: Make, session: Session) -> nn.Module:
    """Returns a model that the person brings."""
    try:
        made = make(session.task, **session.model.arguments)
    except P2PLError:
        raise
    except (TypeError, ValueError) as fault:
        raise ModelError(f"model {name}: it refuses its arguments: {fault}") from fault
    except Exception as fault:
        at = f" ({place})" if (place := faults.place_of(fault)) else ""
        raise ModelError(f"model {name}: it cannot be made: {faults.summary(fault)}{at}") from fault
    if not isinstance(made, nn.Module):
        raise ModelError(
            wrong(f"model {name}", got=type(made).__name__, allowed="a torch.nn.Module")
        )
    return made
