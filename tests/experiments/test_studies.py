"""What studies make of their figures."""

import shlex
from typing import Any

import bar_run
import shapes_run
import torch

from experiments import store
from experiments.compare import paired
from experiments.grid import MNIST, ROOT, Results
from experiments.studies import attacks, bar, raft, reality, tabular
from experiments.studies import privacy_tuning as tuning


def test_elections_go_from_one_resignation_to_the_next_and_count_who_stands_in_one_term() -> None:
    roles = [
        (10.0, 0, "follower", 0),
        (11.0, 0, "candidate", 1),
        (11.5, 0, "leader", 1),
        (15.0, 0, "follower", 1),
        (15.5, 2, "pre-candidate", 1),
        (15.6, 2, "candidate", 2),
        (15.7, 1, "candidate", 3),  # nobody won term 2
        (15.75, 2, "pre-candidate", 2),
        (15.8, 2, "candidate", 3),
        (15.9, 1, "leader", 3),
        (16.0, 2, "follower", 3),
        (19.0, 1, "follower", 3),  # and the log ends before there is another
    ]
    one, two = raft.elections_of(roles)
    assert [(turn.at_s, turn.was, turn.now) for turn in one] == [(1.0, "F", "C"), (1.5, "C", "L")]
    assert [turn.words for turn in two] == [
        "the term ends",
        "node 2 stands in term 2",
        "node 1 stands in term 3",
        "node 2 stands no longer",
        "node 2 stands in term 3",
        "elected in term 3",
        "node 2 stands no longer",
    ]
    assert (raft.rivals(one), raft.rivals(two)) == (1, 2)
    assert raft.rows_of(two)[-2] == ["5.90", "F", "L", "C", "F", "F", "elected in term 3"]


def test_private_training_takes_the_setting_that_did_best_on_held_out_examples() -> None:
    kept = store.read(store.path(ROOT / "results" / "raw", "privacy_tuning"))
    for arm in tuning.ARMS:
        found = {
            row.figures["accuracy"]["mean"]: row.command or ""
            for row in kept.values()
            if row.cell.startswith(f"{arm}-mnist-6-1-")
        }
        best = tuning.chosen(arm, MNIST, 6, 1)
        assert len(found) > 5
        assert found[max(found)].endswith(shlex.join(best.words))
        assert tuning.chosen(arm, MNIST, 6, 2) == best
        assert tuning.chosen(arm, MNIST, 6, 8) == tuning.chosen(arm, MNIST, 6, 3) != best


def test_six_holders_of_a_table_are_as_good_as_all_rows_in_one_place() -> None:
    kept = store.read(store.path(ROOT / "results" / "raw", "tabular"))
    assert set(kept) == {cell.name for cell in tabular.STUDY.cells}
    for name, row in kept.items():
        mean = row.figures["mean"]
        if name.startswith("cancer"):
            assert mean["together"] > max(mean["pooled"], mean["scikit_learn"]) - 0.5
            assert mean["together"] > mean["alone"]
        else:
            assert mean["together"] < 1.03 * min(mean["pooled"], mean["scikit_learn"])
            assert mean["together"] < mean["alone"]


def test_generated_images_have_every_kind_of_shape_and_are_the_same_for_a_seed() -> None:
    x, y = shapes_run.images(40, torch.Generator().manual_seed(7))
    same, _ = shapes_run.images(40, torch.Generator().manual_seed(7))
    assert torch.equal(x, same)
    assert not torch.equal(x, shapes_run.images(40, torch.Generator().manual_seed(8))[0])
    for image, target in zip(x[:, 0], y, strict=True):
        kinds = set(target.flatten().tolist())
        assert kinds in ({0, 1}, {0, 2})
        behind = image[target == 0].mean()
        assert image[target == 1].mean() > behind if 1 in kinds else True
        assert image[target == 2].mean() < behind if 2 in kinds else True
    assert set(y.flatten().tolist()) == {0, 1, 2}


def test_images_are_cropped_and_mirrored_in_training_alone_and_alike_for_a_seed() -> None:
    def moved(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed)
        layer = bar_run.CropAndFlip()
        x = 1 + torch.arange(64 * 3 * 5 * 6).reshape(64, 3, 5, 6).float()
        assert torch.equal(layer.eval()(x), x)
        return x, layer.train()(x)

    x, made = moved(1)
    padded = torch.nn.functional.pad(x, (4,) * 4)
    seen = set()
    for image, whole in zip(made, padded, strict=True):
        found = {
            (down, right, mirrored)
            for down in range(9)
            for right in range(9)
            for mirrored in (False, True)
            if torch.equal(
                image.flip(2) if mirrored else image,
                whole[:, down : down + 5, right : right + 6],
            )
        }
        assert len(found) >= 1  # it is a crop, mirrored or not, of the image itself
        seen |= found if len(found) == 1 else set()
    assert len({shift[:2] for shift in seen}) > 20
    assert {mirrored for *_, mirrored in seen} == {False, True}
    assert torch.equal(made, moved(1)[1])
    assert not torch.equal(made, moved(2)[1])


def figures(accuracy: float) -> dict[str, Any]:
    """Returns what a cell of one seed came to; the better, the more are taken in."""
    return {"accuracy": {"mean": accuracy}, "backdoor": {"mean": accuracy / 10}}


def test_a_column_says_who_is_first_and_how_far_learned_trust_is_behind() -> None:
    learning = attacks.LINEAR[0]

    def standing(column: str = "ALIE", **by_rule: list[float]) -> str:
        kept = {
            attacks.cell(learning, column, rule, seed).name: figures(value)
            for rule, values in by_rule.items()
            for seed, value in enumerate(values)
        }
        return attacks.standing(Results(kept), learning, column)

    alone = standing(degroot=[90.0], krum=[80.0])
    assert alone.startswith("ALIE: `degroot` is the first of 2 rules, 10.00 points ahead of `krum`")
    # The third seed, which one of them has not, does not count.
    assert "0.50 points ahead of `krum`, within" in standing(degroot=[88, 90, 99], krum=[87, 90])
    assert "number 2, 2.00 points behind, one seed has no" in standing(degroot=[88], krum=[90])
    assert "within the first's" in standing(degroot=[88, 88], krum=[85, 92])
    assert "beyond the first's" in standing(degroot=[86, 86], krum=[89.5, 90.5])
    assert standing(krum=[90.0]) == standing(degroot=[90.0]) == ""
    backdoor = standing("backdoor", degroot=[90.0], krum=[80.0])
    assert "backdoor: `degroot` is the first" in backdoor
    assert (
        "Fewest taken in: `krum` is the first of 2 rules; `degroot` is number 2, 1.00" in backdoor
    )


def test_the_best_arm_without_a_server_is_set_beside_both_servers() -> None:
    reached = dict.fromkeys(bar.ARMS, 40.0) | {"server": 48.0, "cosine": 46.0, "server-cosine": 45}
    kept = {
        bar.cell(bar.TWIN, arm, seed).name: {"mean": value + seed}
        for arm, value in reached.items()
        for seed in (0, 2)
    }
    (said,) = bar.nearest(Results(kept))
    assert "is 8.00 points behind the server" in said
    assert f"*{bar.ARMS['cosine']}* is the best: it is 2.00 points behind the server" in said
    assert "1.00 points ahead of a server whose rate falls" in said
    del kept[bar.cell(bar.TWIN, "polish", 0).name], kept[bar.cell(bar.TWIN, "polish", 2).name]
    assert bar.nearest(Results(kept)) == []


def test_what_a_network_as_it_is_costs_is_paired_by_seed() -> None:
    kept = {}
    for arm, values in ((reality.IDEAL, [80.0, 82.0]), ("all three", [79.0, 80.0])):
        one = {"accuracy": {"mean": 81.0, "std_over_seeds": 1.0, "per_seed": values}}
        kept[reality.cell("iid", "uniform", arm).name] = {**one, "pulls_failed": 28.0}
    found = reality.row(Results(kept), "iid", "all three")
    assert found[1:4] == ["81.00 ± 1.00", str(paired([80.0, 82.0], [79.0, 80.0])), "28.0 %"]
    assert found[4] == "not run"
