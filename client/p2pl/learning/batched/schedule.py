"""Which examples each of many peers takes in each step of one round, drawn before the first step.

In every step, the peers that still have one to do are the first ones, so that nobody is computed
for nothing; and once the tables are on a GPU, it is never waited for in between.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from p2pl.data.examples import Part
from p2pl.learning.train import ADAM_BETA_1, ADAM_BETA_2, Start
from p2pl.protocol.session import Training


@dataclass(frozen=True, slots=True)
class Job:
    """One peer's local training in one round."""

    start: Start
    part: Part  # with the same inputs for all peers; labels may differ
    order: torch.Generator  # of the batches


@dataclass(frozen=True, slots=True)
class Batch:
    """What the K peers that have a step to do need for it; batches are up to B examples long."""

    places: Tensor  # [K, 2 B] int64: rows of the shared examples, then their labels
    numbers: Tensor  # [K, B + 3] float32: see the properties
    wide: int  # examples in the longest batch; what is beyond it is padding for all

    @property
    def size(self) -> int:
        """B."""
        return self.places.shape[1] // 2

    @property
    def rows(self) -> Tensor:
        """Whatever stands in for padding is a row too, [K, wide]."""
        return self.places[:, : self.wide]

    @property
    def labels(self) -> Tensor:
        """Of the rows, [K, wide]."""
        return self.places[:, self.size : self.size + self.wide]

    @property
    def share(self) -> Tensor:
        """Of each example in its batch's mean, [K, wide]; 0 for padding."""
        return self.numbers[:, : self.wide]

    @property
    def counted(self) -> Tensor:
        """Of the batch's loss in the mean of the last epoch, [K]; 0 in the epochs before."""
        return self.numbers[:, self.size]

    @property
    def rate(self) -> Tensor:
        """How far to go, [K, 1]; for Adam with the correction of its mean."""
        return self.numbers[:, self.size + 1, None]

    @property
    def spread(self) -> Tensor:
        """The correction of Adam's mean of squares, [K, 1]."""
        return self.numbers[:, self.size + 2, None]


@dataclass(frozen=True, slots=True)
class Schedule:
    """All steps of a round; those of one step stand together, the first peer's row first."""

    begins: Sequence[int]  # row at which each step begins
    taken: Sequence[int]  # examples of each row
    peers: Tensor  # [R] int64: whose row it is
    places: Tensor  # [R, 2 B] int64
    numbers: Tensor  # [R, B + 3] float32
    steps: Tensor  # [K] float32, on the CPU: that each peer has done when all are

    def batches(self, *, even: bool) -> Iterator[Batch]:
        """Yields what each step needs.

        Args:
            even: give all steps the same width.
        """
        widest = max(self.taken)
        for begin, end in pairwise(self.begins):
            here = slice(begin, end)
            wide = widest if even else max(self.taken[here])
            yield Batch(self.places[here], self.numbers[here], wide)

    def of_some(self, first: int, count: int) -> Iterator[tuple[slice, Batch]]:
        """Yields the rows of some peers that stand together, and what they need, step by step.

        Args:
            first: of the peers.
            count: of them, at most.
        """
        for begin, end in pairwise(self.begins):
            here = slice(begin + first, min(begin + first + count, end))
            if here.start >= here.stop:
                return  # peers with fewer steps come after those with more
            wide = max(self.taken[here])
            yield here, Batch(self.places[here], self.numbers[here], wide)


def schedule(jobs: Sequence[Job], training: Training) -> Schedule:
    """Returns the plan of one round, from the same draws as `train` makes, in the same order.

    Args:
        jobs: those with the most examples first.
        training: the settings of the round.
    """
    size, epochs = training.batch_size, training.local_epochs
    each = range(epochs)
    counts = [len(job.part) for job in jobs]
    steps = [math.ceil(count / size) * epochs for count in counts]
    active = [sum(one > step for one in steps) for step in range(steps[0])]
    begins = [0, *accumulate(active)]
    places = torch.full((begins[-1], size), -1)
    first_row, first_step = [0, *accumulate(counts)], torch.tensor(begins[:-1])
    # All orders one after another, then where each number of them stands: a few operations for all.
    drawn = [torch.randperm(len(job.part), generator=job.order) for job in jobs for _ in each]
    repeated = torch.tensor([count for count in counts for _ in each])
    ends = [0, *accumulate(repeated.tolist())][:-1]
    peers = torch.arange(len(jobs)).repeat_interleave(torch.tensor(counts) * epochs)
    at = torch.arange(len(peers)) - torch.tensor(ends).repeat_interleave(repeated)
    steps_of_epoch = torch.tensor([math.ceil(count / size) for count in counts])
    epoch = torch.arange(epochs).repeat(len(jobs)).repeat_interleave(repeated)
    step = at // size + epoch * steps_of_epoch[peers]
    places[first_step[step] + peers, at % size] = torch.cat(drawn) + torch.tensor(first_row)[peers]
    there = places >= 0
    taken = there.sum(1)
    peer = torch.cat([torch.arange(one) for one in active])
    step = torch.repeat_interleave(torch.arange(len(active)), torch.tensor(active))
    last = step >= (torch.tensor(steps) // epochs * (epochs - 1))[peer]
    counted = torch.where(last, taken / torch.tensor(counts)[peer], 0.0)
    zero = torch.zeros(())
    before = torch.stack([job.start.optimizer.get("step", zero) for job in jobs])
    device = jobs[0].part.rows.device
    at = places.clamp_(min=0).to(device)
    return Schedule(
        begins=begins,
        taken=taken.tolist(),
        peers=peer,
        places=torch.cat([table[at] for table in _rows_and_labels(jobs)], 1),
        numbers=torch.cat(
            [
                there / taken.unsqueeze(1),
                counted.unsqueeze(1),
                _rates(before.double()[peer] + step + 1, training),
            ],
            1,
        ).to(device),
        steps=before + torch.tensor(steps),
    )


def _rows_and_labels(jobs: Sequence[Job]) -> tuple[Tensor, Tensor]:
    """Returns the rows of all peers, one peer after another, and their labels."""
    rows = torch.cat([job.part.rows for job in jobs])
    if all(job.part.whole is jobs[0].part.whole for job in jobs):
        return rows, jobs[0].part.whole.y[rows]
    return rows, torch.cat([job.part.whole.y[job.part.rows] for job in jobs])


def _rates(count: Tensor, training: Training) -> Tensor:
    """Returns the rate of each row, and the correction of Adam's mean of squares, [R, 2] float32.

    Args:
        count: [R] float64, which step of the peer's life it is, from 1 on.
        training: the settings of the round.
    """
    if training.optimizer != "adam":
        return torch.tensor([training.learning_rate, 1.0]).expand(len(count), 2)
    rate = training.learning_rate / (1 - ADAM_BETA_1**count)
    return torch.stack([rate, 1 - ADAM_BETA_2**count], 1).float()
