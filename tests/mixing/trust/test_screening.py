from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from p2pl.mixing.trust.screening import FEW_PARAMETERS, Known, Received, Screened, mark_of, screen


def vector_of(*first: float) -> Tensor:
    """Returns a vector that begins with these numbers, and is long enough for the rule."""
    return torch.cat([torch.tensor(first), torch.zeros(FEW_PARAMETERS - len(first))])


OWN = vector_of(4.0, 0.0, 0.0, 0.0)
UP, DOWN = vector_of(0.0, 1.0, 0.0, 0.0), vector_of(0.0, -1.0, 0.0, 0.0)
ASIDE, BACK = vector_of(0.0, 0.0, 1.0, 0.0), vector_of(0.0, 0.0, 0.0, 1.0)


def ask(
    vectors: Sequence[Tensor],
    start: Tensor | None = None,
    seen: dict[str, Known] | None = None,
    radius: float | None = None,
    own: Tensor = OWN,
) -> Screened:
    theirs = [Received(peer, vector, 7) for peer, vector in zip("abcdef", vectors, strict=False)]
    return screen(own, start, theirs, seen or {}, radius)


def test_models_like_mine_pass() -> None:
    screened = ask([OWN, OWN + UP, OWN + ASIDE])
    assert [offer.peer for offer in screened.offers] == ["a", "b", "c"]
    assert [offer.reach for offer in screened.offers] == [1.0] * 3
    assert screened.radius == 1.0


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (-OWN, "direction"),
        (-3 * OWN, "direction"),
        (0 * OWN, "direction"),
        (1e6 * OWN, "norm"),
        (-1e6 * OWN, "norm"),
        (OWN + 8.1 * UP, "distance"),
    ],
)
def test_a_model_of_nobody_s_session_is_rejected(bad: Tensor, reason: str) -> None:
    screened = ask([OWN + UP, OWN + DOWN, OWN + ASIDE, bad])
    assert list(screened.rejected) == ["d"]
    assert screened.rejected["d"].startswith(reason)


def test_nothing_from_anybody_is_nothing_to_reject() -> None:
    assert ask([], radius=3.0) == Screened((), 3.0, {}, {})


def test_a_specialist_that_strayed_from_me_is_known_by_where_i_set_out() -> None:
    strayed = vector_of(-2.0, 4.0, 0.0, 0.0)
    assert ask([strayed]).rejected
    assert not ask([strayed], start=vector_of(1.0, 3.0, 0.0, 0.0)).rejected


def test_somewhat_against_me_is_allowed() -> None:
    assert not ask([vector_of(-1.0, 4.0, 0.0, 0.0)]).rejected
    assert ask([vector_of(-2.0, 4.0, 0.0, 0.0)]).rejected


def test_who_takes_back_what_others_give_is_rejected() -> None:
    start = OWN + 2 * DOWN  # I moved up
    back = [OWN + 2 * DOWN + ASIDE, OWN + 2 * DOWN + BACK]
    screened = ask([*back, OWN + UP], start=start, radius=1.0)
    assert list(screened.rejected) == ["c"]
    assert screened.rejected["c"].startswith("apart: got cosine 0.94")
    assert not ask([*back, OWN + UP], radius=1.0).rejected  # where did I set out from?
    assert not ask([*back, OWN + UP], start=start).rejected  # in the first round nobody gave any


def test_who_is_further_on_by_its_own_way_is_no_liar() -> None:
    back = [OWN + 2 * DOWN + ASIDE, OWN + 2 * DOWN + ASIDE + BACK]
    screened = ask([*back, OWN + 2 * UP + 2 * BACK], start=OWN + 2 * DOWN, radius=2.0)
    assert not screened.rejected


def test_where_most_push_me_on_i_am_behind() -> None:
    onward = [OWN + 2 * UP + ASIDE, OWN + 2 * UP + BACK, OWN + DOWN]
    assert not ask(onward, start=OWN + DOWN, radius=1.0).rejected


def test_half_of_a_cohort_cannot_be_the_most() -> None:
    start = OWN + 2 * DOWN
    back = [OWN + 2 * DOWN + ASIDE, OWN + 2 * DOWN + BACK]
    screened = ask([*back, OWN + UP, OWN + 2 * UP], start=start, radius=1.0)
    assert sorted(screened.rejected) == ["c", "d"]


def test_among_few_parameters_only_who_takes_back_all_of_it_is_rejected() -> None:
    start = OWN + 2 * DOWN
    back = [OWN + 2 * DOWN + ASIDE, OWN + 2 * DOWN + BACK]
    short = [vector[:8] for vector in (*back, OWN + UP, OWN + 2 * UP)]
    assert not ask(short, start=start[:8], radius=1.0, own=OWN[:8]).rejected
    pull = (short[0] + short[1]) / 2 - OWN[:8]
    screened = ask([*short[:2], OWN[:8] - pull], start=start[:8], radius=1.0, own=OWN[:8])
    assert list(screened.rejected) == ["c"]


def test_a_model_further_than_usual_is_pulled_in() -> None:
    screened = ask([OWN + UP, OWN + DOWN, OWN + ASIDE, OWN + 4 * BACK])
    assert [offer.reach for offer in screened.offers] == [1.0, 1.0, 1.0, 0.5]
    assert [offer.judged for offer in screened.offers] == [1.0, 1.0, 1.0, 0.75]


def test_the_usual_distance_cannot_be_set_by_one_cohort() -> None:
    far = [OWN + 100 * UP, OWN + 100 * DOWN]
    own = 100 * OWN
    near = ask([own + 50 * UP, own + 50 * DOWN], radius=1.0, own=own)
    assert near.radius == 2.0
    assert sorted(near.rejected) == ["a", "b"]
    assert ask(far, own=own).radius != 2.0


def test_the_usual_distance_cannot_be_made_small_by_who_repeats_me() -> None:
    honest = [OWN + UP, OWN + ASIDE]
    echoes = [OWN + 0.01 * DOWN, OWN + 0.01 * BACK]
    assert len(ask([*honest, *echoes]).rejected) == 2  # where I set out from is not known
    screened = ask([*honest, *echoes], start=OWN + ASIDE, radius=1.0)
    assert not screened.rejected
    assert screened.radius == 0.5
    assert [offer.reach for offer in screened.offers] == [1.0] * 4


def test_the_lower_median_is_usual_so_that_half_may_lie_far() -> None:
    screened = ask([OWN + UP, OWN + DOWN, OWN + 9 * ASIDE, OWN + 9 * BACK])
    assert screened.radius == 1.0


def test_old_parameters_under_a_new_round_say_nothing_new() -> None:
    vectors = [OWN + UP, OWN + ASIDE]
    seen = {"b": Known(5, mark_of(vectors[1]))}
    screened = ask(vectors, seen=seen)
    assert screened.repeated == {"b": "repeated: the parameters of its round 5"}
    assert screened.rejected == {}
    assert [offer.peer for offer in screened.offers] == ["a"]


def test_who_has_not_gone_on_yet_is_welcome() -> None:
    seen = {"a": Known(7, mark_of(OWN + UP))}
    assert ask([OWN + UP], seen=seen).repeated == {}


def test_parameters_that_two_give_count_once() -> None:
    screened = ask([OWN + UP, OWN + ASIDE, (OWN + UP).clone()])
    assert screened.repeated == {"c": "repeated: the parameters of a"}


def test_mine_may_be_theirs_too() -> None:
    assert ask([OWN.clone()]).repeated == {}


def test_a_mark_differs_where_parameters_do() -> None:
    marks = {mark_of(v) for v in (OWN, -OWN, OWN + UP, OWN + DOWN, OWN.flip(0), 0 * OWN)}
    assert len(marks) == 6
    assert mark_of(OWN) == mark_of(OWN.clone())
