import math

import pytest

import p2pl
from p2pl.errors import InputError
from p2pl.mixing.base import Mixer
from p2pl.protocol.session import Session
from p2pl.registry import check_arguments, real_number, whole_number

FIELD = "mixing.arguments.groups"
SPEC = {
    "name": "s",
    "task": {"input": [1, 8, 8], "classes": 10},
    "model": {"name": "logreg"},
    "training": {"learning_rate": 0.1},
    "exchange": {"rounds": 2, "cohort": 1},
    "mixing": {"rule": "by-groups", "arguments": {"groups": 0}},
}


@pytest.mark.parametrize("value", [2, 7])
def test_a_whole_number_in_range_is_taken(value: int) -> None:
    assert whole_number(FIELD, {"groups": value}, default=3, low=2, high=7) == value


def test_what_is_not_given_has_its_default() -> None:
    assert whole_number(FIELD, {"other": 5}, default=3, low=2, high=7) == 3
    assert real_number(FIELD, {}, default=0.5, low=0, high=1) == 0.5


@pytest.mark.parametrize("value", [1, 8, 2.0, "3", (3,)])
def test_any_other_value_is_refused_with_what_is_allowed(value: object) -> None:
    with pytest.raises(InputError, match=r"mixing\.arguments\.groups: got .*, allowed .*2\.\.7"):
        whole_number(FIELD, {"groups": value}, default=3, low=2, high=7)


def test_a_real_number_may_be_written_as_a_whole_one() -> None:
    found = real_number(FIELD, {"groups": 1}, default=0.5, low=0, high=1)
    assert (found, type(found)) == (1.0, float)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, "1"])
def test_a_real_number_out_of_range_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"a number, 0\.\.1"):
        real_number(FIELD, {"groups": value}, default=0.5, low=0, high=1)


def test_an_unknown_argument_is_refused_with_a_way_out() -> None:
    with pytest.raises(InputError, match=r"--set 'mixing\.arguments=\{\}'"):
        check_arguments("mixing.arguments", "uniform", ["groups"], ())


def test_a_value_that_a_rule_cannot_use_is_refused_before_anything_is_loaded() -> None:
    @p2pl.register_mixing("by-groups")
    class ByGroups(Mixer):
        arguments = frozenset({"groups"})

        def __init__(self, session: Session, peer_id: str) -> None:
            """Reads how many groups there are."""
            super().__init__(session, peer_id)
            whole_number(FIELD, session.mixing.arguments, default=2, low=1, high=9)

    with pytest.raises(InputError, match=r"allowed a whole number, 1\.\.9"):
        p2pl.simulate(SPEC, "no-such-data", 2)
