"""Which rounds of others are believed, on numbers small enough to check by hand."""

import torch

from p2pl.exchange.node import Held
from p2pl.exchange.witness import FASTER, MAX_ROUNDS_PER_S, SLACK_ROUNDS, Envelope, Watch
from p2pl.mixing.base import PeerModel


def held(round_index: int, digest: bytes) -> Held:
    return Held(digest, PeerModel(round_index, 10, torch.zeros(1)))


def model(round_index: int) -> PeerModel:
    return PeerModel(round_index, 10, torch.zeros(1))


def test_nobody_has_taken_a_step_at_the_first_look() -> None:
    assert Watch().look(0.0, {"a": held(7, b"1")}) == {}


def test_who_serves_another_model_of_a_later_round_has_taken_a_step() -> None:
    watch = Watch()
    watch.look(0.0, {"a": held(7, b"1"), "b": held(7, b"2")})
    stepped = watch.look(0.0, {"a": held(8, b"3"), "b": held(7, b"2")})
    assert {who: one.round for who, one in stepped.items()} == {"a": 8}
    assert set(watch.look(1.0, {"a": held(8, b"3"), "b": held(9, b"4")})) == {"a", "b"}


def test_another_number_on_the_same_model_is_no_step() -> None:
    watch = Watch()
    watch.look(0.0, {"a": held(7, b"1")})
    assert watch.look(9.0, {"a": held(8, b"1")}) == {}


def test_more_rounds_than_anybody_can_do_are_no_step() -> None:
    watch = Watch()
    watch.look(0.0, {"a": held(7, b"1"), "b": held(7, b"2")})
    most = 7 + 1 + int(MAX_ROUNDS_PER_S)
    assert set(watch.look(1.0, {"a": held(most + 1, b"3"), "b": held(most, b"4")})) == {"b"}


def test_in_its_first_round_a_peer_believes_no_round_that_is_well_ahead() -> None:
    assert Envelope().limit(5, 0.0) == 5 + SLACK_ROUNDS


def test_a_peer_believes_what_others_can_have_done_at_twenty_times_its_own_best_pace() -> None:
    envelope = Envelope()
    envelope.limit(5, 0.0)
    envelope.limit(6, 2.0)
    most = int(5 + FASTER * 3 + SLACK_ROUNDS)  # in three seconds, of which the fastest round took 1
    models = {"near": model(most), "far": model(most + 1), "liar": model(10**9)}
    assert set(envelope.believed(7, 3.0, models)) == {"near"}
    # It has slept for an hour, and the others have not.
    assert envelope.limit(8, 3_600.0) > 30_000


def test_a_round_that_took_no_time_says_nothing_of_the_pace_of_others() -> None:
    envelope = Envelope()
    for index in range(3):
        assert envelope.limit(index, 0.0) == index + SLACK_ROUNDS
