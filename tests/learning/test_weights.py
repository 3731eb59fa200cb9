import json
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from p2pl.errors import FrameError, ModelError
from p2pl.learning.weights import Dtype, Layout, decode, encode, flatten, load_into, payload_bytes


def two_layers() -> nn.Module:
    """Returns a model whose parameter names do not come in sorted order."""
    return nn.Sequential(nn.Linear(2, 3), nn.GroupNorm(1, 3), nn.Linear(3, 2, bias=False))


MODEL = two_layers()
LAYOUT = Layout.of(MODEL)
VECTOR = torch.arange(LAYOUT.total, dtype=torch.float32) / 4


def test_a_layout_lists_parameters_by_name() -> None:
    assert LAYOUT.names == ("0.bias", "0.weight", "1.bias", "1.weight", "2.weight")
    assert LAYOUT.shapes == ((3,), (3, 2), (3,), (3,), (2, 3))
    assert LAYOUT.total == 21


def test_a_vector_put_into_a_model_comes_out_again() -> None:
    model = two_layers()
    load_into(model, VECTOR)
    assert torch.equal(flatten(model), VECTOR)
    assert torch.equal(dict(model.named_parameters())["0.bias"].detach(), VECTOR[:3])
    assert torch.equal(LAYOUT.unflatten(VECTOR)["2.weight"], VECTOR[15:].view(2, 3))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_payload_is_what_safetensors_would_write(dtype: Dtype) -> None:
    tensors = {
        name: part.to(getattr(torch, dtype)).contiguous()
        for name, part in LAYOUT.unflatten(VECTOR).items()
    }
    payload = encode(VECTOR, LAYOUT, dtype)
    assert bytes(payload) == safetensors.torch.save(tensors)
    assert len(payload) == payload_bytes(LAYOUT, dtype)


def test_names_that_json_must_quote_are_written_as_safetensors_writes_them() -> None:
    model = nn.ModuleDict({'a"\\é\u2028': nn.Linear(1, 1)})
    vector, layout = flatten(model), Layout.of(model)
    assert bytes(encode(vector, layout, "float32")) == safetensors.torch.save(
        layout.unflatten(vector)
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_decoding_gives_back_what_was_encoded(dtype: Dtype) -> None:
    payload = encode(VECTOR, LAYOUT, dtype)
    assert torch.equal(decode(payload, LAYOUT, dtype), VECTOR)


def test_float32_in_a_writable_buffer_is_not_copied() -> None:
    buffer = bytearray(encode(VECTOR, LAYOUT, "float32"))
    vector = decode(buffer, LAYOUT, "float32")
    buffer[-4:] = struct.pack("<f", 7.0)
    assert float(vector[-1]) == 7.0


def test_what_float16_cannot_hold_becomes_its_largest_number() -> None:
    vector = VECTOR.clone()
    vector[0], vector[1] = 1e6, -1e6
    decoded = decode(encode(vector, LAYOUT, "float16"), LAYOUT, "float16")
    assert decoded[:2].tolist() == [65504.0, -65504.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_one_number_that_is_not_finite_is_refused(bad: float, dtype: Dtype) -> None:
    buffer = bytearray(encode(VECTOR, LAYOUT, dtype))
    width = 4 if dtype == "float32" else 2
    buffer[-width:] = struct.pack("<f" if width == 4 else "<e", bad)
    with pytest.raises(FrameError, match="NaN or infinity"):
        decode(buffer, LAYOUT, dtype)


def test_finite_numbers_whose_sum_overflows_are_accepted() -> None:
    vector = torch.full((LAYOUT.total,), 3e38)
    assert torch.equal(decode(encode(vector, LAYOUT, "float32"), LAYOUT, "float32"), vector)


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 100])
def test_a_truncated_payload_is_refused(cut: int) -> None:
    with pytest.raises(FrameError):
        decode(bytes(encode(VECTOR, LAYOUT, "float32")[:cut]), LAYOUT, "float32")


def test_a_payload_with_bytes_missing_or_left_over_is_refused() -> None:
    payload = bytes(encode(VECTOR, LAYOUT, "float32"))
    for wrong in (payload[:-1], payload + b"\0"):
        with pytest.raises(FrameError, match=f"{len(wrong)} bytes.*allowed.*{len(payload)} bytes"):
            decode(wrong, LAYOUT, "float32")


def save(**tensors: Tensor) -> bytes:
    return safetensors.torch.save({name.replace("_", "."): t for name, t in tensors.items()})


def whole() -> dict[str, Tensor]:
    parts = LAYOUT.unflatten(VECTOR).items()
    return {name.replace(".", "_"): part.contiguous() for name, part in parts}


def test_a_tensor_of_another_shape_is_named() -> None:
    changed = whole() | {"0_weight": torch.zeros(2, 3)}
    with pytest.raises(FrameError, match=r"0\.weight.*\[2, 3\].*allowed.*\[3, 2\]"):
        decode(save(**changed), LAYOUT, "float32")


def test_a_tensor_of_another_type_is_named() -> None:
    with pytest.raises(FrameError, match=r"0\.bias.*F16.*allowed.*F32"):
        decode(encode(VECTOR, LAYOUT, "float16"), LAYOUT, "float32")


def test_a_missing_tensor_is_named() -> None:
    left = whole()
    del left["1_bias"]
    with pytest.raises(FrameError, match=r"no tensor '1\.bias'"):
        decode(save(**left), LAYOUT, "float32")


def test_an_unknown_tensor_is_named() -> None:
    with pytest.raises(FrameError, match=r"unknown tensor.*zzz"):
        decode(save(**whole(), zzz=torch.zeros(1)), LAYOUT, "float32")


def test_a_header_in_another_order_is_refused() -> None:
    payload = bytes(encode(VECTOR, LAYOUT, "float32"))
    size = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + size])
    turned = json.dumps(dict(reversed(header.items())), separators=(",", ":")).encode()
    assert len(turned.ljust(size)) == size
    with pytest.raises(FrameError, match="not laid out as safetensors"):
        decode(payload[:8] + turned.ljust(size) + payload[8 + size :], LAYOUT, "float32")


@pytest.mark.parametrize(
    "header", [b"[]", b"{", b"[" * 100_000, b"\xff\xfe", b'"x"', b'{"0.bias":3}']
)
def test_a_hostile_header_is_refused_without_harm(header: bytes) -> None:
    payload = len(header).to_bytes(8, "little") + header
    with pytest.raises(FrameError):
        decode(payload, LAYOUT, "float32")


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 700), st.integers(1, 255))
def test_any_changed_byte_gives_an_error_or_finite_numbers(at: int, change: int) -> None:
    buffer = bytearray(encode(VECTOR, LAYOUT, "float32"))
    buffer[at % len(buffer)] ^= change
    try:
        vector = decode(buffer, LAYOUT, "float32")
    except FrameError:
        return
    assert vector.isfinite().all()
    assert vector.shape == VECTOR.shape


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_are_refused(junk: bytes) -> None:
    with pytest.raises(FrameError):
        decode(junk, LAYOUT, "float32")


def test_parameters_of_another_type_are_refused() -> None:
    with pytest.raises(ModelError, match=r"weight.*float64.*allowed float32"):
        Layout.of(nn.Linear(1, 1, bias=False, dtype=torch.float64))


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ModelError, match="no parameters"):
        Layout.of(nn.ReLU())


def test_a_buffer_of_whole_numbers_is_not_in_the_way() -> None:
    model = nn.Linear(1, 1)
    model.register_buffer("steps", torch.zeros((), dtype=torch.int64))
    assert Layout.of(model).total == 2
