"""`p2pl predict`, `p2pl evaluate` and `p2pl export`, on runs that were joined by command."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support.commands import Done, p2pl
from support.processes import ROOT

import p2pl as api
from p2pl.api.card import card_of
from p2pl.api.tables import csv_of
from p2pl.data.digits import digits
from p2pl.errors import DataError, InputError

SPEC = (ROOT / "torrentfiles" / "digits.toml").read_text()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with two finished runs, `good` and `short`, of two peers."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "x.toml").write_text(SPEC)
    assert p2pl("create", folder / "x.toml", "--out", folder / "x.torrent").returncode == 0
    for name, rounds in (("good", 4), ("short", 1)):
        shard = ("--partition", "classes:3", "--shard", "0/4") if name == "short" else ()
        joined = ("join", "x.torrent", "--data", "digits", "--alone", "--run-dir", name)
        done = p2pl(*joined, "--rounds", rounds, *shard, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def of(runs: Path, *words: object) -> Done:
    """Returns how a command ends that is run where the runs are, and that must succeed."""
    done = p2pl(*words, cwd=runs)
    assert done.returncode == 0, done.stderr
    return done


def refused(runs: Path, *words: object) -> str:
    """Returns what a command says that is run where the runs are, and that must be refused."""
    done = p2pl(*words, cwd=runs)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr


def test_runs_are_compared_on_ones_own_data(runs: Path) -> None:
    done = of(runs, "evaluate", "good", "short", "--data", "digits", "--json")
    found = json.loads(done.stdout)
    assert (found["examples"], found["split"]) == (359, "test")
    good, short = found["runs"]
    summary = json.loads((runs / "good" / "summary.json").read_text())
    assert good["metrics"]["accuracy"] == pytest.approx(summary["accuracy"])
    assert good["metrics"]["accuracy"] > 90 > short["metrics"]["accuracy"]
    assert good["peer_id"] != short["peer_id"]
    shown = of(runs, "evaluate", "good", "short", "--data", "digits").stdout
    assert "359 examples, the test split of digits" in shown
    assert f"{summary['accuracy']:.1f} %" in shown


def test_the_best_round_is_another_model_than_the_last(runs: Path) -> None:
    log = [json.loads(line) for line in (runs / "good" / "rounds.jsonl").read_text().splitlines()]
    best = min(log, key=lambda one: one["validation_loss"])["round"]
    assert json.loads((runs / "good" / "summary.json").read_text())["best_round"] == best
    done = of(runs, "evaluate", "good", "--data", "digits", "--best", "--json")
    (found,) = json.loads(done.stdout)["runs"]
    assert found["model"] == "best"
    assert found["metrics"]["accuracy"] == pytest.approx(log[best - 1]["accuracy"])


def test_predictions_say_the_class_and_each_probability(runs: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(of(runs, "predict", "good", "--data", "digits").stdout)))
    assert [row["example"] for row in rows] == [str(index) for index in range(359)]
    right = np.mean([row["class"] == row["target"] for row in rows])
    scores = of(runs, "evaluate", "good", "--data", "digits", "--json").stdout
    accuracy = json.loads(scores)["runs"][0]["metrics"]["accuracy"]
    assert 100 * right == pytest.approx(accuracy)
    probabilities = [float(rows[0][f"probability_{digit}"]) for digit in range(10)]
    assert sum(probabilities) == pytest.approx(1, abs=1e-4)
    assert rows[0]["class"] == str(np.argmax(probabilities))


def test_inputs_without_answers_are_predicted_from_an_array(runs: Path) -> None:
    inputs = digits().test
    assert inputs is not None
    np.save(runs / "new.npy", inputs.read(np.arange(5)))
    of(runs, "predict", "good", "--data", "new.npy", "--out", "new.csv")
    of(runs, "predict", "good", "--data", "new.npy", "--out", "new.safetensors")
    rows = list(csv.DictReader(io.StringIO((runs / "new.csv").read_text())))
    numbers = load_file(runs / "new.safetensors")
    assert [row["class"] for row in rows] == [str(one) for one in numbers["class"]]
    assert "target" not in rows[0]
    assert numbers["probability"].shape == (5, 10)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("predict", "good", "--data", "wide.npy"), "shape of the inputs: got [2, 3], allowed"),
        (("predict", "good", "--data", "object.npy"), "an array of numbers"),
        (("predict", "good", "--data", "nowhere.npy"), "No such file"),
        (("predict", "good", "--data", "digits", "--out", "x.txt"), "FILE.csv or FILE.safetensors"),
        (("predict", "nothing", "--data", "digits"), "run directory: got 'nothing'"),
        (("predict", "good", "--data", "digits", "--personal"), "--personal"),
        (("evaluate", "good", "--data", "digits", "--best", "--personal"), "only one of them"),
        (("export", "good", "--to", "pickle"), "--to: got 'pickle', allowed onnx or safetensors"),
    ],
)
def test_what_cannot_be_done_is_said_in_words(
    runs: Path, words: tuple[str, ...], said: str
) -> None:
    np.save(runs / "wide.npy", np.zeros((2, 3), np.float32))
    np.save(runs / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert said in refused(runs, *words)


def test_the_weights_are_exported_with_a_card(runs: Path) -> None:
    done = of(runs, "export", "good", "--to", "safetensors", "--out", "for-others")
    assert str(Path("for-others") / "model.safetensors") in done.stdout
    weights = load_file(runs / "for-others" / "model.safetensors")
    model = api.load(runs / "good").model
    assert sorted(weights) == sorted(model.state_dict())
    for name, values in model.state_dict().items():
        assert np.array_equal(weights[name], values.numpy())
    card = (runs / "for-others" / "README.md").read_text()
    file = api.read_session(runs / "x.torrent")
    summary = json.loads((runs / "good" / "summary.json").read_text())
    for words in (
        file.id,
        "the model of round 4, the last one",
        f"examples that this peer trained on | {summary['samples']:,} |",
        f"accuracy on the test set | {summary['accuracy']:.1f} % |",
        "not differentially private",
        f"{summary['peer_id'][:8]} | 100.0 % |",
    ):
        assert words in card


def test_a_card_says_what_private_training_has_spent_and_with_which_chance(runs: Path) -> None:
    run = api.load(runs / "good")
    assert run.summary
    spent = msgspec.structs.replace(run.summary, epsilon=1.5, delta=1e-5)
    card = card_of(replace(run, summary=spent), "model.safetensors")
    assert "epsilon of the examples trained on | 1.500 |" in card
    assert "delta | 1e-05 |" in card


@pytest.mark.slow
def test_a_graph_computes_what_the_model_does_for_any_number_of_examples(runs: Path) -> None:
    pytest.importorskip("onnxscript", reason="comes with the extra onnx")
    runtime = pytest.importorskip("onnxruntime", reason="has no build for every machine")
    of(runs, "export", "good", "--to", "onnx", "--best")
    graph = runtime.InferenceSession(str(runs / "good" / "export" / "model.onnx"))
    model = api.load(runs / "good", best=True).model
    for count in (1, 7):
        inputs = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))
        (outputs,) = graph.run(["output"], {"input": inputs.numpy()})
        with torch.inference_mode():
            assert np.allclose(outputs, model(inputs).numpy(), atol=1e-5)
    assert "which did best" in (runs / "good" / "export" / "README.md").read_text()


def test_a_model_that_only_its_maker_has_is_refused_but_its_weights_are_exported(
    runs: Path, tmp_path: Path
) -> None:
    made = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    spec = {"name": "own", "task": {"input": [1, 8, 8], "classes": 10}, "model": {"name": "arrays"}}
    spec |= {"training": {"learning_rate": 0.1}, "exchange": {"rounds": 1, "cohort": 1}}
    file = tmp_path / "own.torrent"
    api.create(spec, file, model=made)
    run = api.join(file, made, "digits", alone=True, run_dir=tmp_path / "own")
    said = refused(tmp_path, "evaluate", "own", "--data", "digits")
    assert "p2pl.load(RUN, model=YOUR_MODULE)" in said
    assert "YOUR_MODULE" in refused(tmp_path, "export", "own", "--to", "onnx")
    of(tmp_path, "export", "own", "--to", "safetensors")
    assert run.summary is not None
    loaded = api.load(tmp_path / "own", model=made)
    assert api.evaluate(loaded, "digits").accuracy == run.summary.accuracy


def test_a_run_without_a_model_says_why(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "short", tmp_path / "killed")
    (tmp_path / "killed" / "model.safetensors").unlink()
    said = refused(tmp_path, "predict", "killed", "--data", "digits")
    assert "model.safetensors: there is none: the run is in its first round, or was killed" in said


def test_classes_have_their_names_in_a_table_and_other_numbers_their_place() -> None:
    said = {"class": torch.tensor([1]), "probability": torch.tensor([[0.25, 0.75]])}
    table = csv_of(said, torch.tensor([0]), ("cat", "dog"))
    assert table == "example,target,class,probability_cat,probability_dog\n0,cat,dog,0.25,0.75\n"
    table = csv_of({"output": torch.tensor([[[1.5], [2.0]]])}, torch.tensor([[3.5]]), ())
    assert table == "example,target,output_0,output_1\n0,3.5,1.5,2\n"
    with pytest.raises(InputError, match=r"FILE\.safetensors instead"):
        csv_of({"mask": torch.zeros(1, 1_001)}, None, ())


def test_inputs_of_another_shape_are_refused_in_python_too(runs: Path) -> None:
    with pytest.raises(DataError, match="shape of the inputs"):
        api.predict(runs / "good", torch.zeros(2, 64))
    assert api.predict(runs / "good", np.zeros((2, 1, 8, 8)))["class"].shape == (2,)


TABLE = """
name = "table"
[task]
kind = "regression"
unit = "mm"
[model]
name = "mlp"
arguments = { hidden = [8] }
[training]
learning_rate = 0.05
[exchange]
rounds = 3
cohort = 1
"""


def test_a_table_with_numbers_to_predict_is_scored_and_predicted_in_its_unit(
    tmp_path: Path,
) -> None:
    draw = np.random.default_rng(1)
    lines = ["width,colour,length"]
    for width, colour in zip(
        draw.uniform(0, 10, 60), draw.choice(["red", "blue"], 60), strict=True
    ):
        lines.append(f"{width:.3f},{colour},{1000 + 100 * width + 200 * (colour == 'red'):.3f}")
    (tmp_path / "mine.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "t.toml").write_text(TABLE)
    described = ("--schema-from", "mine.csv", "--target", "length")
    of(tmp_path, "create", "t.toml", "--out", "t.torrent", *described)
    join = ("join", "t.torrent", "--data", "mine.csv", "--alone", "--run-dir", "run")
    of(tmp_path, *join)
    done = of(tmp_path, "evaluate", "run", "--data", "mine.csv", "--json")
    (found,) = json.loads(done.stdout)["runs"]
    table = of(tmp_path, "predict", "run", "--data", "mine.csv").stdout
    rows = list(csv.DictReader(io.StringIO(table)))
    assert len(rows) == 60
    error = [float(row["prediction"]) - float(row["target"]) for row in rows]
    assert np.sqrt(np.mean(np.square(error))) == pytest.approx(found["metrics"]["RMSE"], rel=1e-3)
    shown = of(tmp_path, "evaluate", "run", "--data", "mine.csv").stdout
    assert "all of mine.csv" in shown
    assert " mm" in shown
    (tmp_path / "new.csv").write_text("colour,width\nred,1.5\nblue,2.5\n")
    new = list(
        csv.DictReader(io.StringIO(of(tmp_path, "predict", "run", "--data", "new.csv").stdout))
    )
    assert list(new[0]) == ["example", "prediction"]
    assert len(new) == 2
    (tmp_path / "bad.csv").write_text("colour,width\ngreen,1.5\n")
    assert "green" in refused(tmp_path, "predict", "run", "--data", "bad.csv")


def test_images_without_classes_are_predicted_by_the_names_of_their_files(
    runs: Path, tmp_path: Path
) -> None:
    from PIL import Image

    shown = digits().test
    assert shown is not None
    pixels = (shown.read(np.arange(2)) * 255).round().astype(np.uint8)
    for name, one in zip(("b.png", "a.png"), pixels, strict=True):
        Image.fromarray(one[0]).save(tmp_path / name)
    table = of(runs, "predict", "good", "--data", tmp_path).stdout
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["example"] for row in rows] == ["a.png", "b.png"]
    assert [row["class"] for row in rows] == [str(shown.labels[1]), str(shown.labels[0])]
