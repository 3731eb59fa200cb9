"""The virtual peers of a simulation, each with the learner that a networked peer has."""

from dataclasses import replace

import torch
from torch import nn

from p2pl.data import partition
from p2pl.data.examples import Examples, Part, Source
from p2pl.data.load import Data
from p2pl.errors import DataError, wrong
from p2pl.learner import Learner
from p2pl.learning import models, precision
from p2pl.learning.flower import Clients, FlowerTrainer
from p2pl.learning.optimizers import is_simple
from p2pl.learning.task import task_of
from p2pl.learning.torch_trainer import TorchTrainer
from p2pl.learning.trainer import trains_in
from p2pl.privacy.policy import Wanted, check_task, private_training
from p2pl.privacy.trainer import PrivateTrainer
from p2pl.privacy.training import check_model
from p2pl.simulation.attackers import marked, spoilt
from p2pl.simulation.setup import Setup


def peers_of(
    setup: Setup, data: Data | Clients, device: torch.device, model: nn.Module | None = None
) -> tuple[Learner, ...]:
    """Returns the learners of all peers, around one model and one copy of the data.

    The centralised baseline is one learner with everybody's data: in each round it sees as many
    examples as all the peers together.

    Args:
        setup: of the simulation.
        data: all of it; or clients of Flower, which have their own.
        device: to compute on.
        model: working space of all peers, of the session's layout; None: the session's model.

    Raises:
        InputError: the session names something that is not here.
        DataError: there is no test set, or too little data for so many peers.
    """
    session = setup.seeded_session
    model = (models.build(session) if model is None else model).to(device)
    precision.compute_in(setup.precision, model, device)
    names = [(setup.name, peer_id) for peer_id in setup.ids]
    if not isinstance(data, Data):
        clients = [data(number, setup.peers) for number in range(setup.peers)]
        return tuple(
            Learner.around(session, name, FlowerTrainer.around(session, model, client))
            for name, client in zip(names, clients, strict=True)
        )
    if data.test is None:
        raise DataError(
            wrong(
                "--data",
                got="no test split",
                allowed="data with one: all peers are scored on it",
                hint="--test-share 0.2 takes a fifth of them for it",
            )
        )
    train, test = data.train.to(device), data.test.to(device)
    shares = _shares(setup, train)
    first = Learner.of(session, names[0], model, shares[0], test)
    trainer = torch_trainer(first)
    others = (
        first.beside(name[1], trainer.beside(session, name, mine))
        for name, mine in zip(names[1:], shares[1:], strict=False)
    )
    learners = (first, *others)
    trainer.check()  # all peers have the same model
    if setup.privacy is None:
        return learners
    check_task(session)
    check_model(model, session.task.input)
    return tuple(_private(learner, setup.privacy) for learner in learners)


def torch_trainer(learner: Learner) -> TorchTrainer:
    """Returns the trainer of a peer that is no client of Flower."""
    assert isinstance(learner.trainer, TorchTrainer)  # `peers_of` makes them so
    return learner.trainer


def is_stackable(learner: Learner) -> bool:
    """Returns whether peers like this one can be computed all together, step by step."""
    # Not a subclass: its `fit` or its `judge` does something else.
    trainer = learner.trainer
    if type(trainer) is not TorchTrainer or not trainer.task.is_stackable:
        return False
    own = trainer.own
    if not isinstance((own.whole if isinstance(own, Part) else own).x, torch.Tensor):
        return False
    layout = trainer.layout
    return layout.is_plain and not layout.tied and is_simple(learner.session.training)


def own_part(learner: Learner) -> Part:
    """Returns what a peer trains on: a part of everybody's examples."""
    own = torch_trainer(learner).own
    assert isinstance(own, Part)  # `peers_of` makes them so
    return own


def validation_part(learner: Learner) -> Part:
    """Returns what a peer validates on: a part of everybody's examples."""
    held = torch_trainer(learner).validation
    assert isinstance(held, Part)  # `peers_of` makes them so
    return held


def _private(learner: Learner, asked: Wanted) -> Learner:
    """Returns a learner that trains privately, with a budget for all rounds."""
    session, trainer = learner.session, torch_trainer(learner)
    rounds = session.exchange.rounds
    trained = sum(trains_in(session, index) for index in range(1, rounds + 1))
    sizes = (len(trainer.own), len(trainer.validation))
    private = private_training(session, asked, sizes, (trained, rounds))
    made = PrivateTrainer.around(trainer, private, session.training.batch_size)
    return replace(learner, trainer=made)


def _shares(setup: Setup, train: Examples) -> list[Source]:
    """Returns the data of each peer."""
    if setup.baseline == "centralised":
        return [train.part(torch.arange(len(train)))]
    divide, labels = partition.parse(setup.partition), train.y
    if setup.partition.partition(":")[0] in partition.BY_CLASS:
        labels = task_of(setup.session.task).groups(train.y)
    parts = divide(labels.cpu().numpy(), setup.peers, setup.seeded_partition)
    rows = list(map(torch.from_numpy, parts))
    train = marked(setup, train, rows)
    return [spoilt(setup, peer, train.part(mine)) for peer, mine in enumerate(rows)]
