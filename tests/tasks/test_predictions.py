"""What outputs say, in words that a person can use: `Task.predictions`."""

import torch

from p2pl.learning.task import task_of
from p2pl.protocol.session import Task as Settings


def test_of_classes_the_likeliest_and_all_probabilities() -> None:
    task = task_of(Settings(input=(4,), classes=2))
    said = task.predictions(torch.tensor([[0.0, 0.0], [0.0, 20.0]]))
    assert list(said) == ["class", "probability"]
    assert said["class"][1] == 1
    torch.testing.assert_close(said["probability"], torch.tensor([[0.5, 0.5], [0.0, 1.0]]))


def test_of_labels_those_that_are_given() -> None:
    task = task_of(Settings(input=(4,), kind="multilabel", outputs=2))
    said = task.predictions(torch.tensor([[-1.0, 1.0]]))
    assert said["label"].tolist() == [[0, 1]]
    torch.testing.assert_close(said["probability"].sum(), torch.tensor(1.0))


def test_of_numbers_those_in_the_targets_own_unit() -> None:
    settings = Settings(
        input=(4,), kind="regression", outputs=1, target_mean=(100.0,), target_std=(10.0,)
    )
    said = task_of(settings).predictions(torch.tensor([[0.0], [-2.0]]))
    assert said["prediction"].tolist() == [[100.0], [80.0]]


def test_of_pixels_the_likeliest_class_of_each() -> None:
    task = task_of(Settings(input=(1, 2, 2), kind="segmentation", classes=3))
    scores = torch.zeros(1, 3, 2, 2)
    scores[0, 2, 0, 1] = 1
    assert task.predictions(scores)["class"].tolist() == [[[0, 2], [0, 0]]]


def test_of_text_the_likeliest_next_token() -> None:
    task = task_of(Settings(input=(2,), kind="language", classes=3))
    scores = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    assert task.predictions(scores)["token"].tolist() == [[1, 2]]
