"""The digits of scikit-learn."""

import torch
from sklearn.datasets import load_digits

from p2pl.data.load import Shard, load
from p2pl.protocol.session import Task

DIGITS = Task(input=(1, 8, 8), classes=10)


def test_digits_are_scaled_and_split_alike_for_everybody() -> None:
    one, two = load("digits", DIGITS), load("digits", DIGITS)
    assert one.train.x.shape == (1_438, 1, 8, 8)
    assert one.test is not None
    assert two.test is not None
    assert torch.equal(one.test.x, two.test.x)
    assert len(one.test.x) == 359
    assert one.train.x.dtype == torch.float32
    assert one.train.y.dtype == torch.int64
    assert (float(one.train.x.min()), float(one.train.x.max())) == (0, 1)
    assert min(torch.bincount(one.test.y).tolist()) >= 34
    assert one.labels == tuple("0123456789")


def test_digits_are_the_ones_that_scikit_learn_loads() -> None:
    bunch = load_digits()
    data = load("digits", DIGITS)
    assert data.test is not None
    ours = torch.cat([data.train.x, data.test.x]).flatten(1).mul(16).long()
    theirs = torch.from_numpy(bunch.data).long()
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))


def test_shards_of_digits_are_disjoint_and_share_the_test_set() -> None:
    whole = load("digits", DIGITS)
    shards = [load("digits", DIGITS, shard=Shard(i, 6, "dirichlet:0.5", 3)) for i in range(6)]
    assert sum(len(shard.train.y) for shard in shards) == len(whole.train.y)
    together = torch.cat([shard.train.x for shard in shards]).flatten(1)
    assert torch.equal(together.sum(0), whole.train.x.flatten(1).sum(0))
    assert all(len(shard.test.y) == 359 for shard in shards if shard.test is not None)


def test_inputs_are_normalised_as_the_session_says() -> None:
    plain = load("digits", DIGITS)
    task = Task(input=(1, 8, 8), classes=10, mean=(0.3,), std=(0.5,))
    normalised = load("digits", task)
    assert torch.allclose(normalised.train.x, (plain.train.x - 0.3) / 0.5, atol=1e-6)
