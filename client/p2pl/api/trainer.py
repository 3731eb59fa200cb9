"""What a peer trains with, made of whatever the person has: nothing, a module, a loop, a client."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import nn

from p2pl.api.run import check_layout
from p2pl.attacks import peer as attackers
from p2pl.attacks.kinds import Attack
from p2pl.data.examples import Source
from p2pl.data.load import Data
from p2pl.errors import InputError, ModelError, wrong
from p2pl.learning import flower, models, precision
from p2pl.learning.flower import FlowerTrainer, NumPyClient
from p2pl.learning.flower_app import is_client_app
from p2pl.learning.torch_trainer import Fit, LoopTrainer, TorchTrainer
from p2pl.learning.trainer import Trainer
from p2pl.protocol.session import SessionFile

Who: TypeAlias = nn.Module | Trainer | NumPyClient | None


@dataclass(frozen=True, slots=True)
class Computing:
    """How a peer computes.

    Attributes:
        device: where.
        precision: of the layers, one of `precision.NAMES`.
        fit: the person's own training loop; None: the session's.
        attack: what a bad peer does to its data; None: the peer is honest.
        is_private: whether the person asked for differential privacy.
        partition: the peer's part of the data, and of how many; an app of Flower is told.
    """

    device: torch.device
    precision: str = "float32"
    fit: Fit | None = None
    attack: Attack | None = None
    is_private: bool = False
    partition: tuple[int, int] = (0, 1)


def trainer_for(
    file: SessionFile, who: Who, data: Data | None, computing: Computing
) -> Callable[[str], Trainer]:
    """Returns what makes the trainer of a peer, given the peer's id.

    Args:
        file: the session.
        who: what is trained: None for the session's model; a module; a `Trainer`; or a client of
            Flower.
        data: the peer's own; None: the trainer or the client has them.
        computing: how.

    Raises:
        InputError: two of these exclude each other, or the session is for other models.
    """
    if not _is_known(who):
        allowed = "a torch.nn.Module, a p2pl.Trainer, a client of Flower, or None"
        raise InputError(wrong("trainer_or_model", got=who, allowed=f"{allowed}; no class"))
    if is_client(who):
        _check_left_to("a client of Flower", data, computing)
        client = flower.client_of(who, flower.name_of(who), computing.partition)
        return lambda _: FlowerTrainer.around(file.session, models.build(file.session), client)
    if is_trainer(who):
        _check_left_to("a trainer of your own", data, computing)
        trainer = cast("Trainer", who)
        return lambda _: trainer
    if data is None:
        raise InputError("data: missing; allowed: your own examples, or a trainer that has them")
    module = models.build(file.session) if who is None else cast("nn.Module", who)
    if who is not None:
        check_layout(file, module)
    if file.session.model.name == flower.MODEL and who is None:
        raise ModelError(
            "--flower: missing; the model of this session is for clients of Flower, or for modules "
            "of your own; allowed: --flower MODULE:CLIENT, or p2pl.join with such a module"
        )
    return lambda peer_id: _around(file, module.to(computing.device), data, computing, peer_id)


def is_client(who: object) -> bool:
    """Returns whether this is a client of Flower."""
    if is_client_app(who):
        return True
    return hasattr(who, "get_parameters") and not isinstance(who, nn.Module)


def is_trainer(who: object) -> bool:
    """Returns whether this is a trainer."""
    return hasattr(who, "evaluate") and hasattr(who, "layout") and not isinstance(who, nn.Module)


def _is_known(who: object) -> bool:
    """Returns whether this is anything that can be trained, or nothing."""
    if is_trainer(who):
        return not isinstance(who, type)
    return who is None or isinstance(who, nn.Module) or is_client(who)


def _around(
    file: SessionFile, module: nn.Module, data: Data, computing: Computing, peer_id: str
) -> Trainer:
    names, device = (file.id, peer_id), computing.device
    precision.compute_in(computing.precision, module, device)
    mine: Source = data.train.to(device)
    if computing.attack:
        mine = attackers.spoilt(computing.attack, mine, file.session.task, names)
    test = data.test and data.test.to(device)
    trainer = TorchTrainer.of(file.session, names, module, mine, test)
    trainer.check()
    return LoopTrainer.around(trainer, computing.fit) if computing.fit else trainer


def _check_left_to(whom: str, data: Data | None, computing: Computing) -> None:
    """Raises InputError for what the trainer itself decides."""
    given = {
        "data": data is not None,
        "fit": computing.fit is not None,
        "--dp-epsilon": computing.is_private,
        "--attack": computing.attack is not None,
        "--precision": computing.precision != "float32",
    }
    names = [name for name, is_given in given.items() if is_given]
    if names:
        raise InputError(
            f"{', '.join(names)}: not allowed with {whom}; it trains by itself, on data of its own"
        )
