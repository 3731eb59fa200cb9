from collections.abc import Sequence
from statistics import median

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pl.errors import FrameError
from p2pl.mixing.trust import opinions
from p2pl.mixing.trust.opinions import Voice, decode, encode, name_of
from p2pl.protocol.frame import MAX_NOTES_BYTES

IDS = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(st.dictionaries(IDS, st.floats(-1, 1), max_size=20))
def test_what_is_said_is_heard(harms: dict[str, float]) -> None:
    heard = decode(encode(harms))
    assert set(heard) == {name_of(peer) for peer in harms}
    for peer, harm in harms.items():
        kept = min(0.254, max(-0.254, harm))
        assert heard[name_of(peer)] == pytest.approx(kept, abs=opinions.STEP / 2 + 1e-9)


def test_who_met_nobody_says_nothing() -> None:
    assert encode({}) == b""
    assert decode(b"") == {}


def test_the_most_that_is_said_fits_into_the_notes_of_a_version() -> None:
    notes = encode({f"peer {i}": 1.0 for i in range(1_000)})
    assert len(decode(notes)) == opinions.MAX_OPINIONS
    assert len(notes) <= MAX_NOTES_BYTES


def test_those_named_first_are_said_first() -> None:
    heard = decode(encode({f"peer {i}": 0.1 for i in range(200)}))
    assert name_of("peer 0") in heard
    assert name_of("peer 150") not in heard


@given(st.binary(max_size=1_100))
def test_noise_for_notes_is_refused_and_no_more(noise: bytes) -> None:
    try:
        heard = decode(noise)
    except FrameError:
        return
    assert all(abs(harm) <= 0.256 for harm in heard.values())


@pytest.mark.parametrize(
    "said",
    [
        [1, b"12345678", b""],
        [1, b"1234567", b"1"],
        [2, b"12345678", b"1"],
        [1, b"12345678", b"1", b""],
        [1, b"1" * 8 * 101, b"1" * 101],
        [1, "12345678", b"1"],
        {"names": b""},
    ],
)
def test_notes_of_another_form_are_refused(said: object) -> None:
    with pytest.raises(FrameError, match="notes"):
        decode(msgspec.msgpack.encode(said))


def pooled(mine: float, sure: bool, others: Sequence[float]) -> float:
    """Returns what is held when I met all the others equally often."""
    return opinions.pooled(mine, sure, [Voice(harm, 3) for harm in others])


def test_the_median_of_three_is_believed() -> None:
    assert pooled(0.0, True, [0.2, 0.1]) == 0.1
    assert pooled(0.0, False, [0.2, 0.1]) == 0.1


def test_two_who_lie_do_not_move_three_who_do_not() -> None:
    assert pooled(0.0, True, [0.001, 0.0, 0.25, 0.25]) == 0.001


def test_one_other_is_not_believed_before_me() -> None:
    assert pooled(0.1, True, [0.0]) == 0.1
    assert pooled(0.0, True, [0.25]) == 0.0


def test_who_is_not_sure_believes_one_other_as_far_as_they_agree() -> None:
    assert pooled(0.1, False, [0.05]) == 0.05
    assert pooled(0.0, False, [0.25]) == 0.0
    assert pooled(-0.1, False, [-0.2]) == 0.0


def test_noise_alone_is_no_harm() -> None:
    assert pooled(0.1, False, []) == 0.0
    assert pooled(0.1, True, []) == 0.1


def test_without_differences_it_is_the_plain_median() -> None:
    assert pooled(0.0, True, [0.1, 0.2, 0.25]) == pytest.approx(0.15)


@given(st.lists(st.tuples(st.floats(-0.25, 0.25), st.integers(1, 9)), min_size=2, max_size=9))
def test_a_voice_counts_as_often_as_its_peer_was_met(voices: list[tuple[float, int]]) -> None:
    others = [Voice(*one) for one in voices]
    heaviest = max(one.met for one in others)
    repeated = [0.0] * heaviest + [one.harm for one in others for _ in range(one.met)]
    assert opinions.pooled(0.0, True, others) == pytest.approx(median(repeated))


def test_who_takes_a_new_id_every_round_is_not_heard_more_for_it() -> None:
    honest = [Voice(0.0, 8)] * 2
    once = [Voice(0.25, 1)] * 20
    assert opinions.pooled(0.0, True, honest + once) == 0.0
