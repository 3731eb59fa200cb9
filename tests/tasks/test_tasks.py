"""What a task measures is what scikit-learn measures; losses and tallies of batches add up."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from torch import Tensor, nn
from torch.nn import functional

import p2pl
from p2pl.data.examples import Examples
from p2pl.errors import DataError, InputError, ModelError
from p2pl.events import Event, Said
from p2pl.learning.evaluate import MAX_OUTPUTS, batch_examples, evaluate
from p2pl.learning.objective import Objective
from p2pl.learning.task import Task, task_of
from p2pl.learning.weights import flatten
from p2pl.protocol.session import Argument
from p2pl.protocol.session import Task as Settings
from p2pl.tasks.measures import why_no_auroc

RNG = np.random.default_rng(7)


def drawn(*shape: int) -> Tensor:
    """Returns numbers from a normal distribution."""
    return torch.from_numpy(RNG.normal(size=shape)).float()


def kinds(most: int, *shape: int) -> Tensor:
    """Returns whole numbers below `most`."""
    return torch.from_numpy(RNG.integers(most, size=shape))


def measured(task: Task, outputs: Tensor, targets: Tensor, size: int = 7) -> dict[str, float]:
    """Returns the metrics, their tally put together from batches."""
    pairs = zip(torch.split(outputs, size), torch.split(targets, size), strict=True)
    first, *others = (task.tally(*pair) for pair in pairs)
    for other in others:
        first = task.add(first, other)
    return dict(task.metrics_of(first, len(targets)))


CLASSES = Settings(input=(4,), classes=3, metrics=("AUROC", "accuracy", "macro F1"))
LABELS = Settings(kind="multilabel", input=(4,), outputs=5)
NUMBERS = Settings(
    kind="regression",
    input=(4,),
    outputs=2,
    unit="mm",
    target_mean=(100.0, -3.0),
    target_std=(20.0, 0.5),
)
PIXELS = Settings(kind="segmentation", input=(1, 6, 5), classes=4)
TOKENS = Settings(kind="language", input=(9,), classes=11)


def with_gaps(targets: Tensor) -> Tensor:
    """Returns the targets, of which some do not count."""
    return targets.where(drawn(*targets.shape) > -1, -100)


def example(settings: Settings, n: int = 40) -> tuple[Tensor, Tensor]:
    """Returns random outputs and targets of a task."""
    if settings.kind == "multilabel":
        return drawn(n, 5), (drawn(n, 5) > 0.3).float()
    if settings.kind == "regression":
        return drawn(n, 2), drawn(n, 2) * torch.tensor([20, 0.5]) + torch.tensor([100, -3.0])
    if settings.kind == "segmentation":
        return drawn(n, 4, 6, 5), with_gaps(kinds(4, n, 6, 5))
    if settings.kind == "language":
        return drawn(n, 9, 11), with_gaps(kinds(11, n, 9))
    return drawn(n, 3), kinds(3, n)


ALL = pytest.mark.parametrize(
    "settings", [CLASSES, LABELS, NUMBERS, PIXELS, TOKENS], ids=lambda one: one.kind
)


@ALL
def test_losses_and_tallies_do_not_depend_on_how_examples_are_batched(settings: Settings) -> None:
    task = task_of(settings)
    outputs, targets = example(settings)
    whole = task.losses(outputs, targets)
    assert whole.shape == (40,)
    pairs = zip(torch.split(outputs, 7), torch.split(targets, 7), strict=True)
    parts = [task.losses(*pair) for pair in pairs]
    torch.testing.assert_close(torch.cat(parts), whole)
    torch.testing.assert_close(task.loss(outputs, targets, "sum"), whole.sum())
    torch.testing.assert_close(task.loss(outputs, targets, "mean"), whole.mean())
    assert measured(task, outputs, targets, 7) == pytest.approx(measured(task, outputs, targets))
    names = [metric.name for metric in task.metrics]
    assert list(measured(task, outputs, targets, 1)) == names
    assert measured(task, outputs, targets, 40) == pytest.approx(measured(task, outputs, targets))


@ALL
def test_outputs_of_another_shape_are_an_error_that_says_which(settings: Settings) -> None:
    outputs, targets = example(settings)
    objective = Objective.of(nn.Linear(1, 1), task_of(settings))
    objective.checked(outputs, targets)
    wider = torch.cat([outputs, outputs], 1)
    with pytest.raises(ModelError, match=r"outputs of Linear: got .*, allowed .*, the task"):
        objective.checked(wider, targets)


def test_classes() -> None:
    outputs, targets = example(CLASSES)
    found = measured(task_of(CLASSES), outputs, targets)
    y, guess, shares = targets.numpy(), outputs.argmax(1).numpy(), outputs.softmax(1).numpy()
    assert found["accuracy"] == pytest.approx(100 * sklearn.accuracy_score(y, guess))
    assert found["macro F1"] == pytest.approx(100 * sklearn.f1_score(y, guess, average="macro"))
    area = sklearn.roc_auc_score(y, shares, multi_class="ovr", average="macro")
    assert found["AUROC"] == pytest.approx(100 * area)


def test_two_classes_have_the_usual_area_and_one_class_alone_has_none() -> None:
    settings = Settings(input=(4,), classes=2, metrics=("AUROC",))
    outputs, targets = drawn(30, 2), kinds(2, 30)
    area = sklearn.roc_auc_score(targets, outputs.softmax(1)[:, 1])
    assert measured(task_of(settings), outputs, targets)["AUROC"] == pytest.approx(100 * area)
    assert math.isnan(measured(task_of(settings), outputs, 0 * targets)["AUROC"])
    outputs[3] = math.nan
    assert math.isnan(measured(task_of(settings), outputs, targets)["AUROC"])


def test_why_there_is_no_area_is_said_once_and_of_those_alone_who_want_one(tmp_path: Path) -> None:
    spec = {
        "name": "one-class",
        "task": {"input": [4], "classes": 2, "metrics": ["AUROC", "accuracy"]},
        "model": {"name": "logreg"},
        "training": {"learning_rate": 0.1},
        "exchange": {"rounds": 2, "cohort": 2},
    }
    said: list[Event] = []
    data = (drawn(30, 4), kinds(2, 30))
    test = (drawn(5, 4), torch.ones(5, dtype=torch.int64))
    file = p2pl.create(spec, tmp_path / "s.torrent")
    p2pl.join(
        file, data=data, test=test, alone=True, run_dir=tmp_path / "run", on_event=said.append
    )
    texts = [one.text for one in said if isinstance(one, Said)]
    (why,) = [text for text in texts if "AUROC" in text]
    assert why.startswith("AUROC cannot be measured: the 5 examples that models are scored on")
    accuracy = task_of(Settings(input=(4,), classes=2)).metrics
    assert why_no_auroc(accuracy, test[1]) == why_no_auroc(task_of(CLASSES).metrics, data[1]) == ""
    assert why_no_auroc(task_of(CLASSES).metrics, torch.ones(3, 2))  # labels, of which all are one


def test_a_class_that_nobody_has_does_not_count() -> None:
    settings = Settings(input=(4,), classes=9, metrics=("macro F1", "AUROC"))
    outputs, targets = drawn(30, 9), kinds(3, 30)
    outputs[:, 3:] -= 100
    found = measured(task_of(settings), outputs, targets)
    score = sklearn.f1_score(targets, outputs.argmax(1), average="macro")
    assert found["macro F1"] == pytest.approx(100 * score)
    shares = outputs.double().softmax(1)
    areas = [sklearn.roc_auc_score(targets == kind, shares[:, kind]) for kind in range(3)]
    assert found["AUROC"] == pytest.approx(100 * np.mean(areas), abs=1e-3)


def test_a_classification_measures_what_the_session_names_and_the_confusion_always() -> None:
    outputs, targets = example(CLASSES)
    plain = task_of(Settings(input=(4,), classes=3))
    assert [metric.name for metric in plain.metrics] == ["accuracy"]
    assert plain.is_stackable
    ranking = task_of(CLASSES)
    assert not ranking.is_stackable
    counts = plain.confusion(plain.tally(outputs, targets))
    assert counts.equal(ranking.confusion(ranking.tally(outputs, targets)))
    assert counts.tolist() == sklearn.confusion_matrix(targets, outputs.argmax(1)).tolist()


def test_labels() -> None:
    outputs, targets = example(LABELS)
    found = measured(task_of(LABELS), outputs, targets)
    y, given = targets.numpy(), (outputs > 0).numpy()
    assert found["AUROC"] == pytest.approx(100 * sklearn.roc_auc_score(y, outputs, average="macro"))
    assert found["macro F1"] == pytest.approx(100 * sklearn.f1_score(y, given, average="macro"))
    loss = functional.binary_cross_entropy(outputs.sigmoid(), targets)
    torch.testing.assert_close(task_of(LABELS).loss(outputs, targets, "mean"), loss)


def test_numbers_are_measured_in_their_own_unit() -> None:
    outputs, targets = example(NUMBERS)
    task = task_of(NUMBERS)
    found = measured(task, outputs, targets)
    told = outputs.double() * torch.tensor([20, 0.5]) + torch.tensor([100, -3.0])
    assert found["RMSE"] == pytest.approx(sklearn.root_mean_squared_error(targets, told))
    assert found["MAE"] == pytest.approx(sklearn.mean_absolute_error(targets, told))
    assert found["R2"] == pytest.approx(sklearn.r2_score(targets, told))
    units = {one.name: (one.unit, one.higher_is_better) for one in task.metrics}
    assert units == {"RMSE": ("mm", False), "MAE": ("mm", False), "R2": ("", True)}


@pytest.mark.parametrize("told", [5.0, 6.0])
def test_targets_that_are_all_alike_have_the_r2_of_scikit_learn(told: float) -> None:
    task = task_of(Settings(kind="regression", input=(1,), outputs=1, metrics=("R2",)))
    outputs, targets = torch.full((9, 1), told), torch.full((9, 1), 5.0)
    assert measured(task, outputs, targets)["R2"] == sklearn.r2_score(targets, outputs)


def test_metres_and_millimetres_have_the_same_losses() -> None:
    outputs, metres = drawn(20, 1), drawn(20, 1)
    one = Settings(kind="regression", input=(1,), outputs=1, target_mean=(0.5,), target_std=(2.0,))
    other = Settings(
        kind="regression", input=(1,), outputs=1, target_mean=(500.0,), target_std=(2000.0,)
    )
    losses = task_of(one).losses(outputs, metres)
    torch.testing.assert_close(task_of(other).losses(outputs, 1000 * metres), losses)


@pytest.mark.parametrize("background", [None, 0])
def test_pixels(background: int | None) -> None:
    arguments: dict[str, Argument] = {} if background is None else {"background": background}
    settings = Settings(kind="segmentation", input=(1, 6, 5), classes=4, arguments=arguments)
    outputs, targets = example(PIXELS)
    counted = targets != -100
    y, guess = targets[counted].numpy(), outputs.argmax(1)[counted].numpy()
    labels = [1, 2, 3] if background == 0 else [0, 1, 2, 3]
    found = measured(task_of(settings), outputs, targets)
    dice = sklearn.f1_score(y, guess, labels=labels, average="macro")
    iou = sklearn.jaccard_score(y, guess, labels=labels, average="macro")
    assert found == pytest.approx({"Dice": 100 * dice, "IoU": 100 * iou})


def test_the_loss_of_an_image_or_a_text_is_the_mean_over_what_counts() -> None:
    for settings, classes_at in ((PIXELS, 1), (TOKENS, 2)):
        outputs, targets = example(settings)
        losses = task_of(settings).losses(outputs, targets)
        for scores, true, loss in zip(outputs, targets, losses, strict=True):
            flat = scores.movedim(classes_at - 1, -1).flatten(0, -2)
            torch.testing.assert_close(functional.cross_entropy(flat, true.flatten()), loss)


def test_tokens() -> None:
    outputs, targets = example(TOKENS)
    counted = targets != -100
    y, shares = targets[counted].numpy(), outputs.double().softmax(2)[counted].numpy()
    found = measured(task_of(TOKENS), outputs, targets)
    nats = sklearn.log_loss(y, shares, labels=range(11))
    right = sklearn.accuracy_score(y, shares.argmax(1))
    assert found == pytest.approx({"perplexity": math.exp(nats), "tokens right": 100 * right})
    assert not task_of(TOKENS).metrics[0].higher_is_better
    assert measured(task_of(TOKENS), 1e6 * outputs, targets)["perplexity"] == math.inf


@ALL
def test_evaluating_in_batches_gives_the_metrics_of_all(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, targets = example(settings)
    task = task_of(settings)

    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, rows: Tensor) -> Tensor:
            return self.scale * outputs[rows[:, 0].long()]

    model = Told()
    examples = Examples(torch.arange(40.0)[:, None], targets)
    monkeypatch.setattr("p2pl.learning.evaluate.BATCH_EXAMPLES", 6)
    scores = evaluate(Objective.of(model, task), flatten(model), examples)
    assert scores.loss == pytest.approx(float(task.losses(outputs, targets).mean()))
    assert scores.metrics == pytest.approx(measured(task, outputs, targets))
    assert scores.primary == scores.metrics[task.metrics[0].name]


def test_a_large_vocabulary_is_evaluated_a_few_texts_at_a_time() -> None:
    task = task_of(Settings(kind="language", input=(512,), classes=50_000))
    texts = Examples(torch.zeros(9, 512).long(), torch.zeros(9, 512).long())
    assert batch_examples(task, texts, images=False) == max(1, MAX_OUTPUTS // (512 * 50_000))
    few = Examples(torch.zeros(9, 4), torch.zeros(9).long())
    assert batch_examples(task_of(CLASSES), few, images=False) == 1024


BAD: dict[str, tuple[Settings, Callable[[Tensor], Tensor]]] = {
    "a class too many": (CLASSES, lambda y: y + 1),
    "classes as floats": (CLASSES, lambda y: y.float()),
    "a label of two": (LABELS, lambda y: y * 2),
    "a label missing": (LABELS, lambda y: y[:, 1:]),
    "labels as whole numbers": (LABELS, lambda y: y.long()),
    "a number missing": (NUMBERS, lambda y: y[:, 0]),
    "NaN": (NUMBERS, lambda y: y * math.nan),
    "a class below 0": (PIXELS, lambda y: y.clamp(min=-1) - 1),
    "another size": (PIXELS, lambda y: y[:, 1:]),
    "a token too many": (TOKENS, lambda y: y + 9),
    "a text without a target": (TOKENS, lambda y: y.clamp(max=-100)),
}


@pytest.mark.parametrize("name", BAD)
def test_targets_that_are_not_of_the_task_are_refused(name: str) -> None:
    settings, spoil = BAD[name]
    _, targets = example(settings)
    inputs = kinds(11, 40, 9) if settings.kind == "language" else drawn(40, *settings.input)
    task = task_of(settings)
    task.check(Examples(inputs, targets))
    with pytest.raises(DataError, match=r"targets of the test set: got .*, allowed"):
        task.check(Examples(inputs, spoil(targets)), "test set")


def test_inputs_of_a_language_model_are_tokens() -> None:
    _, targets = example(TOKENS)
    for inputs in (kinds(11, 40, 9) + 1, drawn(40, 9)):
        with pytest.raises(DataError, match="inputs of the data"):
            task_of(TOKENS).check(Examples(inputs, targets))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(input=(4,), classes=3, metrics=("RMSE",)), "task.metrics: got 'RMSE', allowed"),
        (Settings(input=(4,), classes=3, arguments={"background": 0}), "background"),
        (
            Settings(kind="segmentation", input=(1, 2, 2), classes=3, arguments={"background": 3}),
            r"task.arguments.background: got 3, allowed 0\.\.2",
        ),
        (Settings(kind="language", input=(4, 4), classes=3), "task.input"),
    ],
)
def test_what_a_task_cannot_do_is_refused(settings: Settings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        task_of(settings)


def test_partitions_by_class_go_by_what_is_nearest_to_a_class() -> None:
    numbers = torch.arange(40.0).flip(0)[:, None].expand(40, 2)
    assert task_of(NUMBERS).groups(numbers).tolist() == [9 - k // 4 for k in range(40)]
    labels = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0.0]])
    assert task_of(LABELS).groups(labels).tolist() == [1, 5, 0]
    pixels = torch.zeros(2, 6, 5).long()
    pixels[1, :2], pixels[1, 2] = 3, 1
    assert task_of(PIXELS).groups(pixels).tolist() == [0, 3]
    with pytest.raises(DataError, match="--partition"):
        task_of(TOKENS).groups(torch.zeros(3, 9).long())
