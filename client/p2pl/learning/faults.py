"""Where a person's module goes wrong: which layer, given what, said in one line.

A fault inside a module comes as whatever exception the module raised. The module is then run once
more, watched layer by layer, to name the layer, what it was given, and the line of their code.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from p2pl.errors import MAX_GOT_CHARS

_LIBRARIES = str(Path(torch.__file__).parent), str(Path(__file__).parents[1])
OUTPUT_NAMES = ("logits", "out")  # under which models of transformers and torchvision give theirs


def explained(
    model: nn.Module, args: Sequence[object], named: Mapping[str, object], fault: Exception
) -> str:
    """Returns what to say of a fault that a call of the model raised.

    Args:
        model: as it was called.
        args: by place.
        named: by name.
        fault: that it raised.
    """
    path, layer, given = _deepest(model, args, named) or ("", model, (*args, *named.values()))
    at = f" at {place}" if (place := place_of(fault)) else ""
    return f"model {_title(path, layer)}, given {described(given)}{at}: {summary(fault)}"


def summary(fault: BaseException) -> str:
    """Returns an exception's type and message, in one line of bounded length."""
    text = " ".join(str(fault).split())
    if len(text) > 4 * MAX_GOT_CHARS:
        text = text[: 4 * MAX_GOT_CHARS] + "…"
    return f"{type(fault).__name__}: {text}" if text else type(fault).__name__


def described(given: object) -> str:
    """Returns what tensors are: shape, type and device; of anything else its type."""
    if isinstance(given, Tensor):
        return f"{list(given.shape)} {str(given.dtype).removeprefix('torch.')} on {given.device}"
    if isinstance(given, Mapping):
        return "{" + ", ".join(f"{name}: {described(one)}" for name, one in given.items()) + "}"
    if isinstance(given, list | tuple):
        shown = ", ".join(map(described, given))
        return shown if len(given) == 1 else f"({shown})"
    return type(given).__name__


def first_not_finite(
    model: nn.Module, args: Sequence[object], named: Mapping[str, object]
) -> str | None:
    """Returns which layer first makes NaN or infinity, and of what; None where none does."""
    found: list[str] = []

    def look(path: str, layer: nn.Module, given: object, made: object) -> None:
        if not found and _finite(given) and not _finite(made):
            spoilt = [name for name, one in layer.named_parameters() if not _finite(one)]
            of = f"; its {spoilt[0]} is not finite" if spoilt else ""
            found.append(
                f"model {_title(path, layer)}, given {described(given)}: got NaN or infinity, "
                f"allowed finite outputs{of}"
            )

    with _watched(model, [], look), torch.no_grad():
        model(*args, **named)
    return found[0] if found else None


def _finite(given: object) -> bool:
    if isinstance(given, Tensor):
        return not given.is_floating_point() or bool(given.isfinite().all())
    if isinstance(given, Mapping):
        return all(map(_finite, given.values()))
    return all(map(_finite, given)) if isinstance(given, list | tuple) else True


def _deepest(
    model: nn.Module, args: Sequence[object], named: Mapping[str, object]
) -> tuple[str, nn.Module, object] | None:
    """Returns the innermost layer that was at work when the fault came, and what it was given."""
    at_work: list[tuple[str, nn.Module, object]] = []
    with _watched(model, at_work, None), contextlib.suppress(Exception), torch.no_grad():
        model(*args, **named)
    return at_work[-1] if at_work else None


@contextlib.contextmanager
def _watched(
    model: nn.Module,
    at_work: list[tuple[str, nn.Module, object]],
    look: Callable[[str, nn.Module, object, object], None] | None,
) -> Iterator[None]:
    """Keeps the list of layers at work, the innermost last, and shows what each has made."""
    handles = []
    for path, layer in model.named_modules():

        def begins(
            layer: nn.Module, args: object, named: Mapping[str, object], path: str = path
        ) -> None:
            given = (*args, *named.values()) if isinstance(args, tuple) else args
            at_work.append((path, layer, given))

        def ends(layer: nn.Module, args: object, made: object, path: str = path) -> None:
            _, _, given = at_work.pop()
            if look is not None:
                look(path, layer, given, made)

        handles.append(layer.register_forward_pre_hook(begins, with_kwargs=True))
        handles.append(layer.register_forward_hook(ends))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _title(path: str, layer: nn.Module) -> str:
    shown = layer.extra_repr()
    short = shown if len(shown) <= MAX_GOT_CHARS else shown[:MAX_GOT_CHARS] + "…"
    made = f"{type(layer).__name__}({short})"
    return f"layer {path!r}, {made}" if path else made


def place_of(fault: BaseException) -> str:
    """Returns FILE, line N of the person's code in which the fault came up; "" for a library's."""
    frames = traceback.extract_tb(fault.__traceback__)
    own = [one for one in frames if not one.filename.startswith((*_LIBRARIES, "<"))]
    outside = [one for one in own if "site-packages" not in one.filename]
    return f"{Path(outside[-1].filename).name}, line {outside[-1].lineno}" if outside else ""
