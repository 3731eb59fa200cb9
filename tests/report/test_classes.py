"""Precision, recall and F1 of each class are those that the definitions give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from p2pl.report.classes import class_scores, macro_score


def test_precision_recall_and_f1_of_each_class() -> None:
    first, second, third = class_scores(np.array([[3, 1, 0], [1, 1, 0], [0, 0, 0]]))
    assert (first.precision, first.recall, first.f1, first.support) == (0.75, 0.75, 0.75, 4)
    assert (second.precision, second.recall, second.f1, second.support) == (0.5, 0.5, 0.5, 2)
    assert (third.precision, third.recall, third.f1, third.support) == (0, 0, 0, 0)
    assert [score.label for score in (first, second, third)] == ["0", "1", "2"]


def test_a_class_never_predicted_has_no_precision_but_a_count() -> None:
    scores = class_scores(np.array([[0, 4], [0, 4]]), ("cat", "dog"))[0]
    assert (scores.precision, scores.recall, scores.f1, scores.support) == (0, 0, 0, 4)
    assert scores.label == "cat"


def test_the_macro_mean_weighs_all_classes_alike() -> None:
    macro = macro_score(class_scores(np.array([[8, 0], [1, 1]])))
    assert macro is not None
    assert (macro.recall, macro.support) == (0.75, 10)
    assert macro.precision == pytest.approx((8 / 9 + 1) / 2)
    assert macro_score(()) is None


def test_a_class_that_nothing_is_or_is_taken_for_is_left_out_of_the_mean() -> None:
    macro = macro_score(class_scores(np.array([[2, 0, 0, 0], [0, 0, 1, 0], [0] * 4, [0] * 4])))
    assert macro is not None
    assert macro.f1 == pytest.approx(1 / 3)  # the third was predicted, and is none; the fourth not
    assert macro_score(class_scores(np.zeros((2, 2)))) is None


@given(
    st.integers(min_value=2, max_value=5).flatmap(
        lambda classes: st.lists(
            st.lists(st.integers(min_value=0, max_value=9), min_size=classes, max_size=classes),
            min_size=classes,
            max_size=classes,
        )
    )
)
@settings(max_examples=50, deadline=None)
def test_class_scores_are_those_of_scikit_learn(counts: list[list[int]]) -> None:
    confusion = np.array(counts, dtype=np.float64)
    true, predicted = np.indices(confusion.shape)
    if not confusion.any():
        counts[0][0] = 1
        confusion[0, 0] = 1.0
    expected = precision_recall_fscore_support(
        true.ravel(),
        predicted.ravel(),
        labels=range(len(counts)),
        sample_weight=confusion.ravel(),
        zero_division=0,
    )
    scores = class_scores(confusion, [str(index) for index in range(len(counts))])
    assert [score.precision for score in scores] == pytest.approx(list(expected[0]))
    assert [score.recall for score in scores] == pytest.approx(list(expected[1]))
    assert [score.f1 for score in scores] == pytest.approx(list(expected[2]))
    assert [score.support for score in scores] == list(expected[3])
