"""A model as whole numbers of few bits: how far each parameter is from the initial checkpoint.

All that a payload needs to be understood is what every peer of the session holds anyway. So who
joins late, meets a peer for the first time in twenty rounds, or comes back with an empty cache
decodes the same bytes as everybody else, and a payload has the same size in every round.

Blocks of 128 numbers share a step, which is a float16 (as in QSGD, Alistarh et al. 2017,
arXiv:1610.02132, who use buckets too). Where there are few steps, the one with the least squared
error is taken, which cuts a block's largest numbers off. What is no matrix travels as it is.

    header, 32 bytes | float32 of what travels as it is | float16 step of each block | codes

A code is the number of steps, from -L to L, with L added, so that it is not below zero; L is
2^(bits - 1) - 1. Eight codes make as many bytes as a code has bits, the first in the lowest bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from p2pl import pages
from p2pl.errors import FrameError, wrong
from p2pl.learning import matrices, weights
from p2pl.learning.weights import Layout, Payload

BITS: Final = {"int8": 8, "int4": 4, "int3": 3}  # by the session's `wire.compression`
BLOCK = 128  # numbers that share a step; chosen: 0.125 bits a number for the steps
GROUP = 8  # codes that are packed together: as many bytes as a code has bits
# Of a block's largest number: tried for the last step on each side. Chosen: at 3 bits the best one
# is 0.6 on average, and halves the squared error of the largest; at 8 bits nothing is gained.
SHARES: Final = {8: (1.0,), 4: (1.0, 0.85, 0.7), 3: (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)}
MAX_STEP = 65_504.0  # the largest float16
STEP_INFINITY = 0x7C00  # the first float16, as a whole number, that is no finite one
AT_ONCE = 1 << 20  # numbers worked on at a time, a multiple of BLOCK: bounds what it takes beside


@dataclass(frozen=True, slots=True)
class _Part:
    """A tensor that is coded: where it stands in the vector, and in the payload."""

    begin: int  # in the vector
    size: int  # numbers
    steps: int  # where its steps begin in the payload, bytes
    codes: int  # where its codes begin

    @property
    def blocks(self) -> int:
        """How many steps it has."""
        return -(-self.size // BLOCK)

    @property
    def groups(self) -> int:
        """In how many groups its codes are packed."""
        return -(-self.size // GROUP)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What stands where in every payload of a layout, behind what travels as it is."""

    parts: tuple[_Part, ...]
    size: int  # of the payload, bytes


@lru_cache(maxsize=16)
def _plan(layout: Layout, name: str) -> _Plan:
    bits, split, parts = BITS[name], matrices.parts_of(layout), []
    steps = split.end
    codes = steps + 2 * sum(-(-size // BLOCK) for _, size in split.coded)
    for begin, size in split.coded:
        part = _Part(begin, size, steps, codes)
        parts.append(part)
        steps, codes = steps + 2 * part.blocks, codes + bits * part.groups
    return _Plan(tuple(parts), codes)


@dataclass(frozen=True, slots=True)
class Quantised(matrices.FromReference):
    """All that travels of the model, as steps from the initial checkpoint."""

    @property
    def payload_bytes(self) -> int:
        """The exact size of every payload, bytes."""
        return _plan(self.layout, self.name).size

    def fill(self, room: memoryview, vector: Tensor) -> None:
        """Writes the payload to where it is kept."""
        plan, reference, vector = _plan(self.layout, self.name), self.begun(), vector.cpu()
        bits = BITS[self.name]
        matrices.put(room, vector, self.layout, self.name)
        for begin, end, steps, codes in _stretches(plan, bits):
            found, counted = quantise(vector[begin:end] - reference[begin:end], bits)
            room[steps] = found.numpy().data.cast("B")
            room[codes] = pack(counted, bits).numpy().data
        pages.rest(reference)

    def decode(self, payload: Payload) -> Tensor:
        """Returns what travelled, [P] float32 or the beginning of it; raises FrameError."""
        plan, reference = _plan(self.layout, self.name), self.begun()
        matrices.check(payload, self.layout, self.name, plan.size)
        bits, view = BITS[self.name], memoryview(payload).cast("B")
        vector = reference[: self.layout.total].clone()
        matrices.take(view, vector, self.layout)
        for begin, stop, steps, codes in _stretches(plan, bits):
            found = _steps(view[steps])
            counted = unpack(weights.numbers(view[codes], 0, torch.uint8), bits)
            vector[begin:stop] += _restored(found, counted, stop - begin)
        pages.rest(reference)
        return vector.to(self.device)


def _stretches(plan: _Plan, bits: int) -> Iterator[tuple[int, int, slice, slice]]:
    """Yields each piece of a tensor: its numbers' begin and end, and where steps and codes stand.

    Pieces are worked on one at a time; each but a tensor's last is of whole blocks.
    """
    for part in plan.parts:
        for done in range(0, part.size, AT_ONCE):
            end = min(done + AT_ONCE, part.size)
            steps = part.steps + 2 * (done // BLOCK)
            codes = part.codes + bits * (done // GROUP)
            yield (
                part.begin + done,
                part.begin + end,
                slice(steps, steps + 2 * -(-(end - done) // BLOCK)),
                slice(codes, codes + bits * -(-(end - done) // GROUP)),
            )


def quantise(numbers: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Returns the step of each block, [ceil(n / 128)] float16, and the codes, [n] int16, -L..L.

    Args:
        numbers: [n] float32, n at least 1; what is beyond float16's range is cut.
        bits: of a code: 3, 4 or 8.
    """
    most = (1 << (bits - 1)) - 1
    blocks = _in_blocks(numbers)
    largest = blocks.abs().amax(1, keepdim=True)
    best = least = codes = None
    for share in SHARES[bits]:
        step = (largest * (share / most)).clamp(max=MAX_STEP).half()
        wide = step.float()
        made = (blocks / wide.where(wide > 0, 1)).round().clamp(-most, most)
        if len(SHARES[bits]) == 1:
            best, codes = step, made
            break
        error = (made * wide - blocks).square().sum(1, keepdim=True)
        if best is None or least is None or codes is None:
            best, least, codes = step, error, made
        else:
            better = error < least
            best, codes = step.where(better, best), made.where(better, codes)
            least = error.where(better, least)
    assert best is not None
    assert codes is not None
    return best.view(-1), codes.view(-1)[: len(numbers)].to(torch.int16)


def _in_blocks(numbers: Tensor) -> Tensor:
    """Returns [n] as [ceil(n / 128), 128], with zeros at the end."""
    return _filled(numbers, BLOCK)


def _filled(numbers: Tensor, width: int) -> Tensor:
    """Returns [n] as [ceil(n / width), width], with zeros at the end."""
    missing = -len(numbers) % width
    return torch.cat([numbers, numbers.new_zeros(missing)]).view(-1, width)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Returns codes of -L..L, [n], as bytes, [bits * ceil(n / 8)] uint8; the rest are code 0."""
    most = (1 << (bits - 1)) - 1
    groups = _filled(codes, GROUP) + most
    if bits == 8:  # the group would not fit into a whole number of 63 bits
        return groups.to(torch.uint8).view(-1)
    shifts = bits * torch.arange(GROUP)
    joined = (groups.long() << shifts).sum(1, keepdim=True)
    apart = joined.bitwise_right_shift(8 * torch.arange(bits)).bitwise_and(255)
    return apart.to(torch.uint8).view(-1)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Returns the codes in bytes, -L..L, [8 * bytes / bits] int64, padding included.

    Args:
        packed: [m] uint8, m a multiple of `bits`.
        bits: of a code: 3, 4 or 8.

    Raises:
        FrameError: a code above 2L, which stands for nothing.
    """
    most, codes = (1 << (bits - 1)) - 1, packed.long()
    if bits != 8:
        joined = (packed.view(-1, bits).long() << (8 * torch.arange(bits))).sum(1, keepdim=True)
        codes = ((joined >> (bits * torch.arange(GROUP))) & ((1 << bits) - 1)).view(-1)
    if bool((codes > 2 * most).any()):
        raise FrameError(wrong("payload: code", got=2 * most + 1, allowed=f"0..{2 * most}"))
    return codes.sub(most)


def _steps(view: memoryview) -> Tensor:
    """Returns the steps in a payload, [blocks] float32; raises FrameError."""
    raw = weights.numbers(view, 0, torch.int16)
    if bool(((raw < 0) | (raw >= STEP_INFINITY)).any()):
        raise FrameError("payload: got a step that is negative, NaN or infinite; allowed: others")
    return raw.view(torch.float16).float()


def _restored(steps: Tensor, codes: Tensor, size: int) -> Tensor:
    """Returns the numbers that steps and codes stand for, [size].

    Raises:
        FrameError: codes that fill up the last group are not 0.
    """
    if bool(codes[size:].any()):
        raise FrameError("payload: got codes behind the end of a tensor, allowed none")
    return (_in_blocks(codes[:size].float()) * steps.view(-1, 1)).view(-1)[:size]
