"""Secret randomness: what hides an example must not be guessable.

Everything here comes from the operating system's generator, never from a seed: torch's own
generator (Mersenne Twister, 64 bits of seed) can be reconstructed from its output, and a shared or
public seed would let everybody subtract the noise. Who was drawn into a step is as secret as the
noise that was added: the accounting counts on both.
"""

import os

import numpy as np
import torch
from torch import Tensor

_STEP = 2.0**-53  # the spacing of the uniform numbers


def gaussian(count: int) -> Tensor:
    """Returns independent standard normal numbers, [count] float64.

    Box and Muller (1958) on 53 random bits a number. In double precision, so that a sum with them
    that is rounded to float32 can come out as any float32: the gaps between noise values, by which
    Mironov (2012) tells the summand, are far below the rounding.

    Args:
        count: of numbers, 0 or more.
    """
    pairs = (count + 1) // 2
    bits = np.frombuffer(os.urandom(16 * pairs), dtype="<u8") >> np.uint64(11)
    uniform = (bits + np.uint64(1)) * _STEP  # in (0, 1]
    radius = np.sqrt(-2 * np.log(uniform[:pairs]))
    angle = 2 * np.pi * uniform[pairs:]
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return torch.from_numpy(both[:count])


def poisson_sample(count: int, rate: float) -> Tensor:
    """Returns the rows drawn when each of `count` takes part with chance `rate`, [n] int64.

    Independent draws, so n varies and may be 0; the accounting is of exactly this. The rows rise.

    Args:
        count: of examples, 0 or more.
        rate: 0..1.
    """
    draws = np.frombuffer(os.urandom(4 * count), dtype="<u4")
    return torch.from_numpy(np.flatnonzero(draws < np.uint64(rate * 2**32)))
