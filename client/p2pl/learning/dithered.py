"""A model at three or two bits a number, whose errors cancel out where models are mixed.

As in `quantised`, a payload says how far each matrix is from the initial checkpoint, which is all
that is needed to read it. What differs: entropy-coded dithered quantisation (Ziv 1985, "On
universal quantization"; Zamir and Feder 1992, "On universal quantization by randomized
uniform/lattice quantizers").

*Dithered*: before a number is rounded, a random part of a step, from -1/2 to 1/2, is added, and
who decodes subtracts it again. The error is then as large as without, but has nothing to do with
the number. Late in a session all peers hold nearly the same model; rounded in the same way they
would all be wrong in the same direction, and mixing would not help. Dithered, each is wrong in a
direction of its own, and the mean of six is 2.4 times nearer. The random parts are made from a seed
in the payload, which is a digest of the parameters: the same parameters are always the same
payload.

*Entropy-coded*: there are many codes, but most are near 0, and those take few bits (Huffman codes,
in the format deflate, RFC 1951). All payloads of a session have one size, so it is the step that
gives way: the finest whose codes find room. Numbers that hardly ever change then cost next to
nothing, and the others get the bits.

    … | seed, 16 bytes | float32 step of each matrix | pieces | zeros
    piece: length of its codes, 4 bytes, little endian | codes, deflated | float32 of what escaped

A piece is up to 2^20 numbers of the matrices, one behind the other. A code is an int8: how many
steps, or -128 for a number so large that it is told as it is. Where 32 codes in a row are all 0,
nothing has changed there, and no random part is subtracted.
"""

import hashlib
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from torch import Tensor

from p2pl import pages
from p2pl.errors import FrameError, wrong
from p2pl.learning import matrices, weights
from p2pl.learning.weights import Layout, Payload

BITS: Final = {"dither3": 3, "dither2": 2}  # a number, on average; by `wire.compression`
RUN = 32  # codes; chosen: where that many are 0, the numbers are 1/32 of a step or less on average
AT_ONCE = 1 << 20  # numbers worked on at a time: bounds what it takes beside
MOST = 127  # steps that a code can say
ESCAPED = -128
LARGEST = 2.0**30  # a change beyond it is cut
MAX_STEP = 2.0**40  # with it, the largest change is code 0: so every vector finds room
SEED_BYTES = 16
SPARE_BYTES = 64  # for the tables of the Huffman codes; chosen: small models have no 1,000 numbers
# In parts of the matrix's scale: the entropy of normal numbers is log2(4.13 / step) bits.
FIRST_STEP = {bits: 4.13 / 2**bits for bits in BITS.values()}
TRIALS = 8  # of steps, at most, unless none fits; chosen: five are usual
FULL = 0.995  # of the room: fuller need not be tried for
GIVEN_UP = 4.0  # by how much a step changes between two trials, at most


@dataclass(frozen=True, slots=True)
class _Span:
    """Some numbers of a matrix, in a piece."""

    matrix: int  # which one, from 0 on
    begin: int  # in the vector
    end: int


_Piece = tuple[_Span, ...]
_Coded = tuple[bytes, bytes]  # deflated codes, and what escaped


@lru_cache(maxsize=16)
def _pieces(layout: Layout, at_once: int) -> tuple[_Piece, ...]:
    """Returns what of the vector stands in which piece."""
    pieces: list[_Piece] = []
    spans: list[_Span] = []
    room = at_once
    for matrix, (begin, size) in enumerate(matrices.parts_of(layout).coded):
        while size:
            taken = min(size, room)
            spans.append(_Span(matrix, begin, begin + taken))
            begin, size, room = begin + taken, size - taken, room - taken
            if not room:
                pieces.append(tuple(spans))
                spans, room = [], at_once
    return (*pieces, tuple(spans)) if spans else tuple(pieces)


@dataclass(frozen=True, slots=True)
class Dithered(matrices.FromReference):
    """All that travels of the model, as dithered steps from the initial checkpoint."""

    @property
    def payload_bytes(self) -> int:
        """The exact size of every payload, bytes."""
        return self._begin + self._room

    @property
    def _begin(self) -> int:
        """Where the pieces begin in a payload."""
        parts = matrices.parts_of(self.layout)
        return parts.end + SEED_BYTES + 4 * len(parts.coded)

    @property
    def _room(self) -> int:
        """How many bytes there are for all pieces."""
        numbers = matrices.parts_of(self.layout).numbers
        pieces = len(_pieces(self.layout, AT_ONCE))
        return SPARE_BYTES + 4 * pieces + -(-BITS[self.name] * numbers // 8)

    def fill(self, room: memoryview, vector: Tensor) -> None:
        """Writes the payload to where it is kept."""
        vector = vector.detach().cpu()
        matrices.put(room, vector, self.layout, self.name)
        seed = _digest(vector[: self.layout.total])
        steps, pieces = self._fitting(vector, seed)
        at = matrices.parts_of(self.layout).end
        for written in (seed, steps.numpy().tobytes(), *map(_framed, pieces)):
            room[at : at + len(written)] = written
            at += len(written)
        room[at:] = bytes(len(room) - at)
        pages.rest(self.begun())

    def decode(self, payload: Payload) -> Tensor:
        """Returns what travelled, [P] float32 or the beginning of it; raises FrameError."""
        reference, view = self.begun(), memoryview(payload).cast("B")
        matrices.check(view, self.layout, self.name, self.payload_bytes)
        vector = reference[: self.layout.total].clone()
        matrices.take(view, vector, self.layout)
        begin = matrices.parts_of(self.layout).end
        seed = bytes(view[begin : begin + SEED_BYTES])
        steps = _steps(view[begin + SEED_BYTES : self._begin])
        at = self._begin
        for number, piece in enumerate(_pieces(self.layout, AT_ONCE)):
            codes, escaped, at = _read(view, at, _size(piece))
            changes = _restored(codes, _scale(steps, piece), _dither(seed, number, len(codes)))
            changes[codes == ESCAPED] = escaped
            sizes = [span.end - span.begin for span in piece]
            for span, change in zip(piece, torch.split(changes, sizes), strict=True):
                vector[span.begin : span.end] += change
        if np.frombuffer(view, np.uint8, offset=at).any():
            raise FrameError("payload: got bytes behind the last piece, allowed zeros")
        pages.rest(reference)
        return vector.to(self.device)

    def _fitting(self, vector: Tensor, seed: bytes) -> tuple[Tensor, list[_Coded]]:
        """Returns steps, [matrices] float32, that are about as fine as there is room, and codes."""
        scales, numbers = self._scales(vector), matrices.parts_of(self.layout).numbers
        best, wanted = None, FIRST_STEP[BITS[self.name]]
        fine, coarse = 0.0, math.inf  # too fine for the room, and known to fit
        for trial in range(1, 1_000):
            steps = (scales * wanted).clamp(max=MAX_STEP).float()
            pieces = list(self._coded(vector, steps, seed))
            used = sum(4 + len(codes) + len(escaped) for codes, escaped in pieces)
            if used <= self._room:
                best, coarse = (steps, pieces), wanted
                if used >= FULL * self._room or not scales.any():
                    break
            else:
                fine = wanted
            if best is not None and trial >= TRIALS:
                break
            # One bit more a number for each step halved; what has few numbers that change, more.
            excess = 8 * (used - (1 + FULL) / 2 * self._room) / max(1, numbers)
            wanted = _between(wanted * 2.0**excess, fine, coarse)
        assert best is not None  # the largest step makes all codes 0, which takes hardly any room
        return best

    def _scales(self, vector: Tensor) -> Tensor:
        """Returns what a step of each matrix is in proportion to, [matrices] float64.

        It is the geometric mean of how much that matrix has changed, and how much all have (root
        mean squares). Chosen, on a convolutional network: in proportion to a matrix's own change,
        small layers get bits that they do not need; one step for all makes them noise.
        """
        reference, squares = self.begun(), []
        parts = matrices.parts_of(self.layout).coded
        for begin, size in parts:
            square = 0.0
            for at in range(begin, begin + size, AT_ONCE):
                end = min(at + AT_ONCE, begin + size)
                square += float(_change(vector, reference, at, end).double().square().sum())
            squares.append(square)
        own = torch.tensor(squares, dtype=torch.float64)
        sizes = torch.tensor([size for _, size in parts], dtype=torch.float64)
        everybody = own.sum() / sizes.sum().clamp(min=1)
        return (own / sizes * everybody).pow(0.25)

    def _coded(self, vector: Tensor, steps: Tensor, seed: bytes) -> Iterator[_Coded]:
        """Yields the codes of each piece, and what escaped from them."""
        reference = self.begun()
        for number, piece in enumerate(_pieces(self.layout, AT_ONCE)):
            changes = torch.cat(
                [_change(vector, reference, span.begin, span.end) for span in piece]
            )
            scale = _scale(steps, piece)
            dither = _dither(seed, number, len(changes))
            counted = (changes / scale.where(scale > 0, 1)).add_(dither).round_()
            large = counted.abs() > MOST
            codes = counted.masked_fill_(large, ESCAPED).to(torch.int8)
            yield _deflated(codes.numpy().data), changes[large].numpy().tobytes()


def _change(vector: Tensor, reference: Tensor, begin: int, end: int) -> Tensor:
    """Returns how far a part of the vector is from the reference, [end - begin]."""
    return (vector[begin:end] - reference[begin:end]).clamp_(-LARGEST, LARGEST)


def _between(wanted: float, fine: float, coarse: float) -> float:
    """Returns a step to try next: the wanted one, or one that is between what is known."""
    if fine == 0.0:
        return max(wanted, coarse / GIVEN_UP)
    if coarse == math.inf:
        return min(max(wanted, fine * 1.05), fine * GIVEN_UP) if wanted < math.inf else fine * 4
    return wanted if fine < wanted < coarse else math.sqrt(fine * coarse)


def _digest(vector: Tensor) -> bytes:
    """Returns the seed of these parameters, [P] on the CPU."""
    return hashlib.sha256(vector.contiguous().numpy().data.cast("B")).digest()[:SEED_BYTES]


def _dither(seed: bytes, piece: int, size: int) -> Tensor:
    """Returns random parts of a step, [size] float32, evenly spread above -1/2 and below 1/2.

    SHAKE-128 (FIPS 202) gives the same bytes everywhere, which no random generator promises.
    """
    made = hashlib.shake_128(seed + piece.to_bytes(4, "little")).digest(size)
    raw = torch.frombuffer(bytearray(made), dtype=torch.uint8)
    return raw.float().add_(0.5).div_(256).sub_(0.5)


def _scale(steps: Tensor, piece: _Piece) -> Tensor:
    """Returns the step of each number in a piece, [n] float32."""
    sizes = torch.tensor([span.end - span.begin for span in piece])
    return steps[[span.matrix for span in piece]].repeat_interleave(sizes)


def _size(piece: _Piece) -> int:
    return sum(span.end - span.begin for span in piece)


def _deflated(codes: memoryview) -> bytes:
    """Returns codes as a raw deflate stream: runs of one code are worth it, or they are not."""
    made = []
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE):
        stream = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
        made.append(stream.compress(codes) + stream.flush())
    return min(made, key=len)


def _framed(coded: _Coded) -> bytes:
    codes, escaped = coded
    return len(codes).to_bytes(4, "little") + codes + escaped


def _steps(view: memoryview) -> Tensor:
    """Returns the steps in a payload, [matrices] float32; raises FrameError."""
    if not len(view):
        return torch.zeros(0)
    steps = weights.numbers(view, 0, torch.float32)
    if not bool(((steps >= 0) & (steps <= MAX_STEP)).all()):  # NaN neither
        raise FrameError(wrong("payload: step", got="another", allowed="0..2^40"))
    return steps


def _read(view: memoryview, at: int, size: int) -> tuple[Tensor, Tensor, int]:
    """Returns a piece's codes, [size] int8, what escaped from them, and where the piece ends.

    Args:
        view: of the payload.
        at: where the piece begins.
        size: how many numbers it has.

    Raises:
        FrameError: it is not such a piece. What is unpacked is never longer than `size` codes.
    """
    begin = at + 4
    end = begin + int.from_bytes(view[at:begin], "little")
    if end > len(view):
        raise FrameError("payload: got a piece beyond its end, allowed: up to it")
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        raw = stream.decompress(view[begin:end], size + 1)
    except zlib.error as fault:
        raise FrameError("payload: got codes that are no deflate stream") from fault
    if len(raw) != size or not stream.eof or stream.unused_data:
        raise FrameError(f"payload: got another number of codes in a piece, allowed {size}")
    codes = torch.frombuffer(bytearray(raw), dtype=torch.int8)
    count = int((codes == ESCAPED).sum())
    if not count:
        return codes, torch.zeros(0), end
    if end + 4 * count > len(view):
        raise FrameError("payload: got a piece beyond its end, allowed: up to it")
    escaped = weights.numbers(view[end : end + 4 * count], 0, torch.float32)
    if not bool((escaped.abs() <= LARGEST).all()):  # NaN neither
        raise FrameError(wrong("payload: a change", got="another", allowed="-2^30..2^30"))
    return codes, escaped, end + 4 * count


def _restored(codes: Tensor, scale: Tensor, dither: Tensor) -> Tensor:
    """Returns the changes that codes stand for, [n] float32, but for those that escaped."""
    rest = -len(codes) % RUN
    runs = torch.nn.functional.pad(codes, (0, rest)).view(-1, RUN)
    still = (runs == 0).all(1).repeat_interleave(RUN)[: len(codes)]
    return (codes.float() - dither).mul_(scale).masked_fill_(still, 0.0)
