"""A trained model as files for others: its weights or an ONNX graph, and a card that says of what.

The card is a README.md as model hubs show it. What it says comes from the run directory alone.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from p2pl.api import arguments
from p2pl.api.card import card_of
from p2pl.api.use import Which, check_computes, opened
from p2pl.errors import InputError, ModelError, wrong
from p2pl.run.files import write_atomically

Format = Literal["onnx", "safetensors"]
FORMATS: tuple[Format, ...] = ("onnx", "safetensors")
CARD_FILE = "README.md"
SAMPLES = 2  # examples that a graph is drawn with; of one, its number would be taken for fixed


def export(run: Which, to: Format, out: str | os.PathLike[str] | None = None) -> Path:
    """Returns the file that a run's model was written to; a card, README.md, is beside it.

    `onnx` needs the extra of that name. Its graph takes `input`, [N, *input], for any N, and gives
    `output`, [N, ...].

    Args:
        run: its directory, or what `p2pl.load` or `p2pl.join` returned.
        to: `onnx`, a graph that other programs can run; or `safetensors`, the weights alone.
        out: folder to write into, made if it is not there; None: RUN/export.

    Raises:
        InputError: the format is none of these, or the folder cannot be written.
        ModelError: the model cannot be written in this format.
        RunDirError: there is no model in the run directory.
    """
    arguments.check({"out": out}, out=arguments.OUT_OR_NONE)
    if to not in FORMATS:
        raise InputError(wrong("--to", got=to, allowed=" or ".join(FORMATS)))
    found = opened(run)
    folder = Path(out) if out is not None else found.directory / "export"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise InputError(f"--out {folder}: cannot be made: {fault.strerror}") from fault
    path = folder / f"model.{to}"
    if to == "onnx":
        check_computes(found)
        _write_onnx(found.model, found.session.session.task.input, path)
    else:
        try:
            save_model(found.model, str(path))
        except (OSError, RuntimeError) as fault:
            raise ModelError(f"{path}: cannot be written: {fault}") from fault
    write_atomically(folder / CARD_FILE, card_of(found, path.name).encode())
    return path


def _write_onnx(model: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """Writes the graph of a module.

    Raises:
        ModelError: the module cannot be drawn as a graph.
        ModuleNotFoundError: what draws it is not installed.
    """
    import onnx  # noqa: F401  # torch imports both, and says less where they are missing
    import onnxscript  # noqa: F401

    sample = _sample(model, shape)
    try:
        with _quietly():
            program = torch.onnx.export(
                model,
                (sample,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("examples")},),
                input_names=["input"],
                output_names=["output"],
                verbose=False,
            )
            assert program is not None  # it was not asked to write a file itself
            program.save(str(path))
    except ModuleNotFoundError:
        raise
    except Exception as fault:
        text = str(fault).strip().splitlines()
        raise ModelError(
            f"model: cannot be written as ONNX: {type(fault).__name__}: {' '.join(text[:2])}; "
            "allowed: --to safetensors, for any model"
        ) from fault


def _sample(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Returns inputs that the module takes: numbers, or tokens.

    Raises:
        ModelError: it takes neither.
    """
    why: Any = None
    for dtype in (torch.float32, torch.int64):
        sample = torch.zeros(SAMPLES, *shape, dtype=dtype)
        try:
            with torch.inference_mode():
                model.eval()(sample)
        except Exception as fault:  # noqa: BLE001  # of a module that anybody wrote
            why = why or fault
        else:
            return sample
    allowed = f"a model of one input, {['N', *shape]}"
    raise ModelError(
        wrong("model, for --to onnx", got=f"{type(why).__name__}: {why}", allowed=allowed)
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps the exporter from telling of packages that it could have used."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
