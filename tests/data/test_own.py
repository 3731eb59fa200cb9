"""Examples that are in memory: data sets, loaders, pairs, and what is wrong with one of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from p2pl.data.examples import Examples
from p2pl.data.load import with_test_share
from p2pl.data.own import data_of, examples_of
from p2pl.errors import DataError
from p2pl.protocol.session import Task

TASK = Task(input=(2,), classes=3)
X = torch.arange(20.0).view(10, 2)
Y = torch.arange(10) % 3


class Listed(Dataset[Any]):
    """A map-style data set of whatever items are in a list."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


GOOD = (np.array([1.0, 2.0]), 1)


def test_a_map_style_data_set_and_its_loader_are_the_same_examples_in_the_same_order() -> None:
    whole = TensorDataset(X, Y)
    for given in (whole, DataLoader(whole, batch_size=3), DataLoader(whole, shuffle=True)):
        made = examples_of(given, TASK)
        assert made.x.equal(X)
        assert made.y.equal(Y)
    part = examples_of(DataLoader(Subset(whole, [4, 1])), TASK)
    assert part.x.equal(X[[4, 1]])


def test_two_data_sets_are_one_to_train_on_and_one_to_score_on() -> None:
    whole = TensorDataset(X, Y)
    data = data_of((Subset(whole, range(7)), DataLoader(Subset(whole, [7, 8, 9]))), TASK)
    assert data.test is not None
    assert (len(data.train), len(data.test), data.test_share) == (7, 3, None)
    pair = data_of((X, Y), TASK)
    assert (len(pair.train), pair.test) == (10, None)


@pytest.mark.parametrize(
    ("item", "told"),
    [
        (KeyError("no such scan"), "data: item 1: KeyError: 'no such scan'"),
        ((X[0], 1, 2), "data: item 1: got 'tuple of 3', allowed an item (input, target)"),
        (X[0], "data: item 1: got 'Tensor of 2', allowed an item (input, target)"),
        ({"x": 1}, "data: item 1: got 'dict of 1'"),
        ((X[:2], 1), "data: item 1: input: shape: got [2, 2], allowed [2], as of item 0"),
        ((["a", "b"], 1), "data: item 1: input: got \"list (can't convert"),
        ((X[0], "cat"), "data: item 1: target: got \"str (can't convert"),
        ((X[0], None), "data: item 1: target: got \"NoneType (can't convert"),
        ((X[0], [1, 2]), "data: item 1: target: shape: got [2], allowed [], as of item 0"),
        ((X[0] / 0, 1), "data: item 1: input: got 'NaN or infinity'"),
        ((X[0], 3), "targets of the data: item 1: got 3, allowed 0..2, the session's task.classes"),
        ((X[0], -1), "targets of the data: item 1: got -1, allowed 0..2"),
    ],
)
def test_the_item_at_fault_is_named(item: object, told: str) -> None:
    with pytest.raises(DataError) as fault:
        examples_of(Listed([GOOD, item, GOOD]), TASK)
    assert told in str(fault.value)


class Stream(IterableDataset[Any]):
    """Items without numbers."""

    def __iter__(self) -> Iterator[Any]:
        yield GOOD


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (Listed([]), "data: got 'no items', allowed at least one"),
        (Stream(), r"data: got 'Stream', .*of an iterable one, pass list"),
        (DataLoader(Stream()), r"data: got 'Stream', .*of an iterable one, pass list"),
        (
            DataLoader(TensorDataset(X, Y), sampler=WeightedRandomSampler([1.0] * 10, 10)),
            "sampler: got 'WeightedRandomSampler', .*Subset",
        ),
        (DataLoader(TensorDataset(X, Y), batch_sampler=[[1, 2]]), "sampler: got 'list', .*Subset"),
        (DataLoader(TensorDataset(X, Y), collate_fn=list), "collate_fn: got 'list', allowed none"),
    ],
)
def test_what_cannot_be_numbered_is_refused(given: Any, told: str) -> None:  # noqa: ANN401
    with pytest.raises(DataError, match=told):
        examples_of(given, TASK)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((np.ma.masked_greater(X.numpy(), 5), Y), "inputs of the data: got 'masked numbers'"),
        ((X, np.ma.masked_greater(Y.numpy(), 1)), "targets of the data: got 'masked numbers'"),
        ((X.to(torch.complex64), Y), "inputs of the data: got 'torch.complex64'"),
        ((X.numpy() * 1j, Y), "inputs of the data: got 'torch.complex64'"),
        ((X.to_sparse(), Y), "inputs of the data: got 'torch.sparse_coo'"),
        ((X, Y.to_sparse()), "targets of the data: got 'torch.sparse_coo'"),
        (Examples(X.to_sparse(), Y), "of the data: got 'torch.sparse_coo'"),
        (Listed([(X[0] * 1j, 1)]), "item 0: input: got 'torch.complex64'"),
    ],
)
def test_arrays_that_do_not_hold_all_their_numbers_or_no_real_ones_are_refused(
    given: Any,  # noqa: ANN401
    told: str,
) -> None:
    with pytest.raises(DataError, match=told):
        examples_of(given, TASK)


def test_an_array_that_masks_nothing_is_an_array() -> None:
    assert len(examples_of((np.ma.masked_greater(X.numpy(), 99), Y), TASK)) == 10


def test_a_share_of_ones_own_becomes_the_test_set() -> None:
    data = with_test_share(data_of(TensorDataset(X, Y), TASK), 0.3)
    assert data.test is not None
    assert (len(data.train), len(data.test), data.test_share) == (7, 3, 0.3)
    rows = torch.cat([data.train.x, data.test.x])
    assert sorted(rows[:, 0].tolist()) == X[:, 0].tolist()
    with pytest.raises(DataError, match="have a test set of their own"):
        with_test_share(data, 0.3)
