"""Models as steps of few bits from the initial checkpoint."""

import contextlib
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes import ROOT
from torch import Tensor, nn

from p2pl.data.examples import Examples
from p2pl.errors import FrameError, PrivacyError, SessionFileError
from p2pl.learner import Learner
from p2pl.learning import models, quantised
from p2pl.learning.codec import Codec
from p2pl.learning.matrices import HEADER_BYTES
from p2pl.learning.quantised import BITS, BLOCK, Quantised, pack, quantise, unpack
from p2pl.learning.weights import Layout, flatten, payload_bytes
from p2pl.protocol import session as sessions

CPU = torch.device("cpu")
MODEL = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(75, 10))
LAYOUT = Layout.of(MODEL)
BEGIN = flatten(MODEL)
SPEC = (ROOT / "torrentfiles" / "digits.toml").read_text()


def codec(name: str, layout: Layout = LAYOUT, begin: Tensor = BEGIN) -> Quantised:
    """Returns a codec of a session that begins with `begin`."""
    return Quantised(layout, name, CPU).beginning(begin)


def moved(seed: int = 0, by: float = 0.1) -> Tensor:
    """Returns the model after some training, its running variances still above 0."""
    noise = torch.randn(LAYOUT.total, generator=torch.Generator().manual_seed(seed))
    return (BEGIN + by * noise).where(BEGIN != 1, BEGIN)


def tensor_of(vector: Tensor, name: str) -> Tensor:
    """Returns one tensor of a vector."""
    return LAYOUT.unflatten(vector)[name]


@pytest.mark.parametrize("name", BITS)
def test_what_all_peers_hold_comes_back_exactly(name: str) -> None:
    one = codec(name)
    assert torch.equal(one.decode(one.encode(BEGIN)), BEGIN)


# Of uniform steps for normal numbers, cut off where that is best: Max 1960, table I.
@pytest.mark.parametrize(("name", "most"), [("int8", 0.012), ("int4", 0.13), ("int3", 0.25)])
def test_a_matrix_comes_back_up_to_half_a_step(name: str, most: float) -> None:
    one, vector = codec(name), moved()
    payload = one.encode(vector)
    assert len(payload) == one.payload_bytes
    lost = tensor_of(one.decode(payload) - vector, "3.weight")
    change = tensor_of(vector - BEGIN, "3.weight")
    assert 0 < float(lost.norm() / change.norm()) < most


@pytest.mark.parametrize("name", BITS)
def test_what_is_no_matrix_comes_back_exactly(name: str) -> None:
    one, vector = codec(name), moved()
    back = one.decode(one.encode(vector))
    for tensor in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.bias"):
        assert torch.equal(tensor_of(back, tensor), tensor_of(vector, tensor)), tensor


@pytest.mark.parametrize(("name", "times"), [("int8", 3.9), ("int4", 7.6), ("int3", 10.0)])
def test_a_payload_is_so_many_times_smaller(name: str, times: float) -> None:
    layout = Layout.of(nn.Linear(784, 10))
    small = Quantised(layout, name, CPU).payload_bytes
    assert payload_bytes(layout, "float32") / small > times


def test_a_payload_holds_what_its_description_says() -> None:
    layout = Layout(("bias", "weight"), ((1,), (1, 3)))
    one = codec("int3", layout, torch.zeros(4))
    payload = one.encode(torch.tensor([0.5, 3.0, -3.0, 0.0]))
    assert payload[HEADER_BYTES : HEADER_BYTES + 4] == struct.pack("<f", 0.5)
    assert payload[HEADER_BYTES + 4 : HEADER_BYTES + 6] == struct.pack("<e", 1.0)
    # Codes 3, -3, 0 and five of padding, plus 3: 6, 0, 3, 3, 3, 3, 3, 3, three bits each.
    joined = sum(code << 3 * place for place, code in enumerate((6, 0, 3, 3, 3, 3, 3, 3)))
    assert payload[HEADER_BYTES + 6 :] == joined.to_bytes(3, "little")


@settings(max_examples=50, deadline=None)
@given(st.data(), st.sampled_from(sorted(BITS.values())))
def test_codes_that_are_packed_come_out_again(data: st.DataObject, bits: int) -> None:
    most = 2 ** (bits - 1) - 1
    codes = torch.tensor(data.draw(st.lists(st.integers(-most, most), min_size=1, max_size=40)))
    packed = pack(codes.to(torch.int16), bits)
    assert len(packed) == bits * -(-len(codes) // 8)
    back = unpack(packed, bits)
    assert torch.equal(back[: len(codes)], codes)
    assert not back[len(codes) :].any()


def test_the_step_of_a_block_has_the_least_error_of_those_tried() -> None:
    numbers = torch.randn(BLOCK, generator=torch.Generator().manual_seed(1))
    step, codes = quantise(numbers, 3)
    error = (codes * step.float() - numbers).square().sum()
    for share in quantised.SHARES[3]:
        other = float(numbers.abs().max()) * share / 3
        tried = ((numbers / other).round().clamp(-3, 3) * other - numbers).square().sum()
        assert error <= tried * 1.01  # steps are float16


def test_large_tensors_are_worked_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    one = codec("int3")
    whole = bytes(one.encode(moved()))
    back = one.decode(whole)
    monkeypatch.setattr(quantised, "AT_ONCE", BLOCK)
    assert bytes(one.encode(moved())) == whole
    assert torch.equal(one.decode(whole), back)


@pytest.mark.parametrize("name", BITS)
@pytest.mark.parametrize("by", [1e-12, 1e30, 3e38])
def test_numbers_beyond_a_step_are_cut_and_stay_finite(name: str, by: float) -> None:
    one = codec(name)
    vector = torch.full_like(BEGIN, by).where(BEGIN != 1, BEGIN)
    vector[::2] *= -1
    for _, where in LAYOUT.variances():
        vector[where] = 1.0
    assert one.decode(one.encode(vector)).isfinite().all()


def spoilt(payload: memoryview, at: int, to: bytes) -> bytes:
    """Returns the payload with other bytes at a place."""
    return bytes(payload[:at]) + to + bytes(payload[at + len(to) :])


PLAIN = LAYOUT.total - 27 - 750  # numbers that travel as they are
STEPS = HEADER_BYTES + 4 * PLAIN
CODES = STEPS + 2 * (1 + 6)


@pytest.mark.parametrize(
    ("at", "to", "says"),
    [
        (0, b"x", "got something else"),
        (HEADER_BYTES - 1, b"x", "got something else"),  # of another model
        (HEADER_BYTES, struct.pack("<f", float("nan")), "NaN or infinity"),
        (HEADER_BYTES, struct.pack("<f", float("inf")), "NaN or infinity"),
        (STEPS - 4, struct.pack("<f", -0.5), "a variance below 0"),
        (STEPS, struct.pack("<e", float("nan")), "a step that is negative"),
        (STEPS, struct.pack("<e", float("inf")), "a step that is negative"),
        (STEPS, struct.pack("<e", -1.0), "a step that is negative"),
        (CODES, b"\xff", "payload: code"),  # 7, and there are 0..6
        (CODES + 3 * 4 - 1, b"\x20", "behind the end of a tensor"),
    ],
)
def test_a_payload_with_nonsense_in_it_is_refused(at: int, to: bytes, says: str) -> None:
    one = codec("int3")
    with pytest.raises(FrameError, match=says):
        one.decode(spoilt(one.encode(BEGIN), at, to))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_payload_of_another_length_is_refused(change: int) -> None:
    one = codec("int8")
    payload = bytes(one.encode(BEGIN))
    with pytest.raises(FrameError, match="allowed 930 bytes"):
        one.decode(payload[:change] if change < 0 else payload + b"x")


def test_one_codec_does_not_take_the_payload_of_another() -> None:
    with pytest.raises(FrameError, match="as int3"):
        codec("int3").decode(codec("int4").encode(BEGIN))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_comes_is_decoded_or_refused(data: st.DataObject) -> None:
    one = codec("int3")
    at = data.draw(st.integers(0, one.payload_bytes - 1))
    payload = spoilt(one.encode(moved()), at, data.draw(st.binary(min_size=1, max_size=4)))
    with contextlib.suppress(FrameError):
        assert one.decode(payload[: one.payload_bytes]).isfinite().all()


def test_a_codec_must_know_what_the_session_begins_with() -> None:
    with pytest.raises(ValueError, match="initial checkpoint"):
        Quantised(LAYOUT, "int8", CPU).encode(BEGIN)


def learner(**wire: object) -> Learner:
    """Returns the learner of a session with these settings of its wire."""
    changes = [(f"wire.{name}", value) for name, value in wire.items()]
    session = sessions.changed(sessions.read_spec(SPEC).session(), *changes)
    x, y = torch.zeros(20, *session.task.input), torch.arange(20) % 10
    names = ("ab" * 32, "cd" * 32)
    return Learner.of(session, names, models.build(session), Examples(x, y), None)


def test_a_session_says_which_codec_its_peers_use() -> None:
    assert isinstance(learner(compression="int3").codec, Quantised)
    assert not isinstance(learner().codec, Quantised)


def test_half_precision_and_steps_exclude_each_other() -> None:
    with pytest.raises(SessionFileError, match=r"wire\.dtype.*float16.*float32, with"):
        learner(dtype="float16", compression="int8")


def test_layers_that_stay_at_home_do_not_travel() -> None:
    layout = LAYOUT.travelling
    one = codec("int8", layout)
    back = one.decode(one.encode(moved()))
    assert len(back) == layout.total < LAYOUT.total
    assert one.payload_bytes < codec("int8").payload_bytes


class Telling(Codec):
    """A codec that does not say that it keeps privacy."""

    payload_bytes = 1


class Spends:
    """A trainer that is private."""

    spent = object()


def test_private_training_takes_only_codecs_that_look_at_nothing_but_parameters() -> None:
    usual = learner(compression="int3")
    for allowed in (usual.codec, learner().codec):
        Learner(usual.session, "s", "p", Spends(), allowed, usual.mixer)  # type: ignore[arg-type]
    with pytest.raises(PrivacyError, match=r"Telling.*keeps_privacy"):
        Learner(usual.session, "s", "p", Spends(), Telling(), usual.mixer)  # type: ignore[arg-type,abstract]
