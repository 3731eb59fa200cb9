"""Models at three or two bits a number, with errors that cancel out."""

import contextlib
import hashlib
import struct
import tracemalloc
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes import ROOT
from torch import Tensor, nn

from p2pl.data.examples import Examples
from p2pl.errors import FrameError
from p2pl.learner import Learner
from p2pl.learning import dithered, models
from p2pl.learning.dithered import BITS, ESCAPED, Dithered
from p2pl.learning.matrices import HEADER_BYTES
from p2pl.learning.quantised import Quantised
from p2pl.learning.weights import Layout, flatten, payload_bytes
from p2pl.protocol import session as sessions

CPU = torch.device("cpu")
MODEL = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(75, 10))
LAYOUT = Layout.of(MODEL)
BEGIN = flatten(MODEL)
MATRIX = Layout(("weight",), ((784, 10),))
SPEC = (ROOT / "torrentfiles" / "digits.toml").read_text()


def codec(name: str, layout: Layout = LAYOUT, begin: Tensor = BEGIN) -> Dithered:
    """Returns a codec of a session that begins with `begin`."""
    return Dithered(layout, name, CPU).beginning(begin)


def normal(size: int, seed: int = 0) -> Tensor:
    """Returns random numbers, [size]."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def moved(seed: int = 0, by: float = 0.1) -> Tensor:
    """Returns the model after some training, its running variances still above 0."""
    return (BEGIN + by * normal(LAYOUT.total, seed)).where(BEGIN != 1, BEGIN)


def tensor_of(vector: Tensor, name: str) -> Tensor:
    """Returns one tensor of a vector."""
    return LAYOUT.unflatten(vector)[name]


def through(one: Dithered | Quantised, vector: Tensor) -> Tensor:
    """Returns what arrives of a vector."""
    return one.decode(one.encode(vector))


@pytest.mark.parametrize("name", BITS)
def test_what_all_peers_hold_comes_back_exactly(name: str) -> None:
    assert torch.equal(through(codec(name), BEGIN), BEGIN)


@pytest.mark.parametrize("name", BITS)
def test_what_is_no_matrix_comes_back_exactly(name: str) -> None:
    vector = moved()
    back = through(codec(name), vector)
    for tensor in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.bias"):
        assert torch.equal(tensor_of(back, tensor), tensor_of(vector, tensor)), tensor


@pytest.mark.parametrize(("name", "times"), [("dither3", 10.0), ("dither2", 14.5)])
def test_a_payload_is_so_many_times_smaller(name: str, times: float) -> None:
    layout = Layout.of(nn.Linear(784, 10))
    assert payload_bytes(layout, "float32") / codec(name, layout).payload_bytes > times


# Of entropy-coded uniform steps for normal numbers, 1.53 dB above the bound of Shannon: 2^-bits
# times 1.19, and a little for what Huffman codes and their tables take.
@pytest.mark.parametrize(("name", "most"), [("dither3", 0.175), ("dither2", 0.37)])
def test_the_room_is_filled_with_the_finest_steps_that_fit(name: str, most: float) -> None:
    one, change = codec(name, MATRIX, torch.zeros(7840)), normal(7840)
    payload = one.encode(change)
    assert len(payload) == one.payload_bytes
    lost = one.decode(payload) - change
    assert float(lost.norm() / change.norm()) < most


def test_numbers_that_hardly_change_leave_their_bits_to_the_others() -> None:
    change = normal(7840)
    change[784:] *= 0.01
    lost = through(codec("dither3", MATRIX, torch.zeros(7840)), change) - change
    usual = through(Quantised(MATRIX, "int3", CPU).beginning(torch.zeros(7840)), change) - change
    assert lost.norm() < 0.1 * usual.norm()


def test_long_runs_without_change_take_hardly_any_room() -> None:
    change = normal(7840)
    change[784:] = 0
    lost = through(codec("dither2", MATRIX, torch.zeros(7840)), change) - change
    assert lost.norm() < 0.003 * change.norm()  # with a bit for each zero: 0.008


def test_the_same_parameters_are_always_the_same_payload() -> None:
    assert codec("dither2").encode(moved()) == codec("dither2").encode(moved())
    assert codec("dither2").encode(moved()) != codec("dither2").encode(moved(1))


def test_errors_of_peers_that_hold_nearly_the_same_cancel_out() -> None:
    begin = torch.zeros(7840)
    peers = [normal(7840) + 1e-4 * normal(7840, seed) for seed in range(1, 7)]
    mean = torch.stack(peers).mean(0)

    def lost(one: Dithered | Quantised) -> tuple[Tensor, Tensor]:
        errors = torch.stack([through(one, peer) - peer for peer in peers])
        return errors.norm(dim=1).mean() / mean.norm(), errors.mean(0).norm() / mean.norm()

    one, of_mean = lost(codec("dither2", MATRIX, begin))
    assert of_mean < one / 2.2  # of six independent errors: the root of 6, 2.45
    one, of_mean = lost(Quantised(MATRIX, "int3", CPU).beginning(begin))
    assert of_mean > one * 0.9  # which is what the dither is for


def test_what_has_not_changed_anywhere_stays_as_it_is() -> None:
    begin, vector = normal(7840, 1), normal(7840, 1)
    vector[3000:3020] += 1.0
    back = through(codec("dither3", MATRIX, begin), vector)
    apart = (back != vector).nonzero()
    assert not len(apart) or (apart.min() >= 2976 and apart.max() < 3040)  # runs of 32


def test_a_number_far_beyond_the_others_is_told_as_it_is() -> None:
    begin, vector = torch.zeros(7840), normal(7840)
    usual = (through(codec("dither3", MATRIX, begin), vector) - vector).norm()
    vector[1234] = 5000.0
    back = through(codec("dither3", MATRIX, begin), vector)
    assert back[1234] == 5000.0
    assert (back - vector).norm() < 1.1 * usual


def test_large_models_are_worked_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(("a", "b"), ((50, 100), (10, 284)))
    begin, vector = torch.zeros(7840), normal(7840)
    vector[5000:] *= 3
    monkeypatch.setattr(dithered, "AT_ONCE", 1000)  # 5 of a, 2 of b and its rest of 840
    back = through(codec("dither3", layout, begin), vector)
    assert float((back - vector).norm() / vector.norm()) < 0.2
    # The coarser matrix has the larger step, but not in proportion.
    fine, coarse = ((back - vector)[part].norm() for part in (slice(5000), slice(5000, 7840)))
    assert 1.3 < float(coarse / fine) * (5000 / 2840) ** 0.5 < 2.2  # the root of 3


@pytest.mark.parametrize("name", BITS)
@pytest.mark.parametrize("by", [1e-42, 1e-12, 1e30, 3e38])
def test_numbers_beyond_all_bounds_are_cut_and_stay_finite(name: str, by: float) -> None:
    vector = torch.full_like(BEGIN, by).where(BEGIN != 1, BEGIN)
    vector[::2] *= -1
    for _, where in LAYOUT.variances():
        vector[where] = 1.0
    assert through(codec(name), vector).isfinite().all()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=70),
    st.sampled_from(sorted(BITS)),
)
def test_every_vector_finds_room(numbers: list[float], name: str) -> None:
    layout = Layout(("weight",), ((1, len(numbers)),))
    one = codec(name, layout, torch.zeros(len(numbers)))
    payload = one.encode(torch.tensor(numbers, dtype=torch.float32))
    assert len(payload) == one.payload_bytes
    assert one.decode(payload).isfinite().all()


def test_a_model_without_matrices_travels_as_it_is() -> None:
    layout = Layout(("bias",), ((3,),))
    vector = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(through(codec("dither2", layout, torch.zeros(3)), vector), vector)


# --- payloads of strangers ------------------------------------------------------------------------

SMALL = Layout(("bias", "weight"), ((1,), (1, 40)))
SEED = bytes(range(16))


def deflated(codes: list[int]) -> bytes:
    """Returns codes as a raw deflate stream."""
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(bytes(code & 255 for code in codes)) + stream.flush()


def made(
    codes: list[int],
    *,
    bias: float = 0.5,
    step: float = 2.0,
    escaped: tuple[float, ...] = (),
    stream: bytes | None = None,
    length: int | None = None,
    rest: bytes = b"",
) -> bytes:
    """Returns a payload of SMALL, put together by hand."""
    one = codec("dither3", SMALL, torch.zeros(41))
    stream = deflated(codes) if stream is None else stream
    body = bytes(one.encode(torch.zeros(41))[:HEADER_BYTES])
    body += struct.pack("<f", bias) + SEED + struct.pack("<f", step)
    body += struct.pack("<I", len(stream) if length is None else length) + stream
    body += struct.pack(f"<{len(escaped)}f", *escaped) + rest
    return body.ljust(one.payload_bytes, b"\0")


def decoded(payload: bytes) -> Tensor:
    """Returns what a payload of SMALL holds."""
    return codec("dither3", SMALL, torch.zeros(41)).decode(payload)


def test_a_payload_holds_what_its_description_says() -> None:
    codes = [3, -127, ESCAPED, *[0] * 37]
    back = decoded(made(codes, escaped=(1e6,)))
    raw = hashlib.shake_128(SEED + bytes(4)).digest(40)
    dither = [(byte + 0.5) / 256 - 0.5 for byte in raw]
    assert back[0] == 0.5
    assert float(back[1]) == pytest.approx(2 * (3 - dither[0]))
    assert float(back[2]) == pytest.approx(2 * (-127 - dither[1]))
    assert back[3] == 1e6
    assert float(back[20]) == pytest.approx(2 * (0 - dither[19]))
    assert not back[33:].any()  # the last run, of eight: all codes are 0


NAN, INFINITY = float("nan"), float("inf")
ONES = [1] * 40


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (made(ONES, bias=NAN), "NaN or infinity"),
        (made(ONES, step=NAN), "payload: step"),
        (made(ONES, step=INFINITY), "payload: step"),
        (made(ONES, step=2.0**41), "payload: step"),
        (made(ONES, step=-1.0), "payload: step"),
        (made(ONES, length=5000), "beyond its end"),
        (made(ONES, length=2**32 - 1), "beyond its end"),
        (made(ONES, length=1), "another number of codes"),
        (made(ONES, stream=b"\xff\xff"), "no deflate stream"),
        (made(ONES[1:]), "another number of codes"),
        (made([*ONES, 1]), "another number of codes"),
        (made([0] * 20_000), "another number of codes"),  # a bomb
        (made(ONES, stream=deflated(ONES) + b"x"), "another number of codes"),
        (made(ONES, rest=b"x"), "behind the last piece"),
        (made([ESCAPED] * 40), "beyond its end"),
        (made([ESCAPED, *ONES[1:]], escaped=(NAN,)), "a change"),
        (made([ESCAPED, *ONES[1:]], escaped=(-INFINITY,)), "a change"),
        (made([ESCAPED, *ONES[1:]], escaped=(2.0**31,)), "a change"),
        (made(ONES)[:-1], "allowed 139 bytes"),
        (made(ONES) + b"\0", "allowed 139 bytes"),
        (bytes(codec("dither2", SMALL, torch.zeros(41)).encode(torch.zeros(41))), "as dither3"),
        (bytes(codec("dither3").encode(BEGIN)), "got something else"),
    ],
)
def test_a_payload_with_nonsense_in_it_is_refused(payload: bytes, says: str) -> None:
    with pytest.raises(FrameError, match=says):
        decoded(payload)


def test_codes_that_unpack_to_far_more_than_a_model_take_no_memory() -> None:
    layout = Layout(("weight",), ((300, 200),))
    one = codec("dither3", layout, torch.zeros(60_000))
    stream = zlib.compressobj(wbits=-15)
    bomb = stream.compress(bytes(16_000_000)) + stream.flush()
    head = bytes(one.encode(torch.zeros(60_000))[:HEADER_BYTES]) + SEED + struct.pack("<f", 1.0)
    payload = (head + struct.pack("<I", len(bomb)) + bomb).ljust(one.payload_bytes, b"\0")
    tracemalloc.start()
    try:
        with pytest.raises(FrameError, match="another number of codes"):
            one.decode(payload)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_comes_is_decoded_or_refused(data: st.DataObject) -> None:
    one = codec("dither2")
    payload = bytearray(one.encode(moved()))
    at = data.draw(st.integers(HEADER_BYTES, len(payload) - 4))
    payload[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    with contextlib.suppress(FrameError):
        assert one.decode(bytes(payload)).isfinite().all()


# --- in a session ---------------------------------------------------------------------------------


def learner(**wire: object) -> Learner:
    """Returns the learner of a session with these settings of its wire."""
    changes = [(f"wire.{name}", value) for name, value in wire.items()]
    session = sessions.changed(sessions.read_spec(SPEC).session(), *changes)
    x, y = torch.zeros(20, *session.task.input), torch.arange(20) % 10
    names = ("ab" * 32, "cd" * 32)
    return Learner.of(session, names, models.build(session), Examples(x, y), None)


def test_a_codec_must_know_what_the_session_begins_with() -> None:
    with pytest.raises(ValueError, match="initial checkpoint"):
        Dithered(LAYOUT, "dither3", CPU).encode(BEGIN)


class Spends:
    """A trainer that is private."""

    spent = object()


@pytest.mark.parametrize("name", BITS)
def test_a_session_may_name_it_for_private_training_too(name: str) -> None:
    usual = learner(compression=name)
    assert isinstance(usual.codec, Dithered)
    Learner(usual.session, "s", "p", Spends(), usual.codec, usual.mixer)  # type: ignore[arg-type]


def test_layers_that_stay_at_home_do_not_travel() -> None:
    layout = LAYOUT.travelling
    assert len(through(codec("dither3", layout), moved())) == layout.total < LAYOUT.total
