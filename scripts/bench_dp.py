"""What a step of private training costs, beside the same step without privacy, in the same run.

For each model: plain training as `p2pl join` does it; private training as it does that; and, for
models whose clipped gradients have a closed form, private training through Opacus too.
Threads are one, batches are as many examples as expected, and each figure is the median of
`--repeats` runs in turn, so that what else the machine does strikes all alike.

    scripts/bench dp [--batch B] [--examples N] [--repeats R] [--json]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from p2pl.data.examples import Examples
from p2pl.learning import models
from p2pl.learning.objective import Objective
from p2pl.learning.task import task_of
from p2pl.learning.train import Start, train
from p2pl.learning.weights import flatten
from p2pl.privacy.accountant import Account, Accountant, Budget
from p2pl.privacy.clipping import has_closed_form
from p2pl.privacy.training import PrivateTraining, steps_a_round
from p2pl.protocol.session import Exchange, Model, Session, Task, Training

MODELS = ("logreg", "mlp", "cnn", "resnet-gn")


def session(model: str, batch: int) -> Session:
    """Returns a session on 28x28 grey images."""
    return Session(
        task=Task(input=(1, 28, 28), classes=10),
        model=Model(name=model),
        training=Training(learning_rate=0.1, batch_size=batch),
        exchange=Exchange(rounds=1, cohort=1),
    )


def seconds(work: Callable[[], object]) -> float:
    """Returns the processor time of `work`, which is done by one thread."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def ways(
    wanted: Session, model: nn.Module, data: Examples, steps: int
) -> dict[str, Callable[[], object]]:
    """Returns what is measured, by name."""
    start = Start(flatten(model))
    objective = Objective.of(model, task_of(wanted.task))
    order = torch.Generator().manual_seed(0)
    rate = wanted.training.batch_size / len(data)
    account = Account.opened(Budget(3.0, 1e-5), rate, steps)

    def private(closed_form: bool) -> Callable[[], object]:
        # A new accountant for every repeat: what is measured is work, and nothing is published.
        return lambda: PrivateTraining(Accountant(account), closed_form=closed_form).train(
            model, start, data, wanted.training
        )

    measured: dict[str, Callable[[], object]] = {
        "plain": lambda: train(objective, start, data, wanted.training, order),
        "private": private(closed_form=True),
    }
    if has_closed_form(model):
        measured["private, through Opacus"] = private(closed_form=False)
    return measured


def measure(name: str, batch: int, examples: int, repeats: int) -> dict[str, float]:
    """Returns milliseconds a step, by way of training."""
    wanted = session(name, batch)
    model = models.build(wanted)
    source = torch.Generator().manual_seed(0)
    data = Examples(
        torch.rand(examples, 1, 28, 28, generator=source),
        torch.randint(10, (examples,), generator=source),
    )
    steps = steps_a_round(wanted.training, examples)
    measured = ways(wanted, model, data, steps)
    for work in measured.values():
        work()  # once unmeasured: imports, and what torch sets up on first use
    took: dict[str, list[float]] = {way: [] for way in measured}
    for _ in range(repeats):
        for way, work in measured.items():
            took[way].append(1_000 * seconds(work) / steps)
    return {way: statistics.median(values) for way, values in took.items()}


def main() -> None:
    """Measures every model and prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="bench dp")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--examples", type=int, default=2_048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        name: measure(name, options.batch, options.examples, options.repeats)
        for name in options.models
    }
    if options.json:
        print(json.dumps({"batch": options.batch, "milliseconds_a_step": found}))
        return
    print(f"milliseconds of one core a step, {options.batch} examples of 28x28")
    for name, ways_of in found.items():
        for way, took in ways_of.items():
            print(f"{name:<10} {way:<24} {took:8.2f}  {took / ways_of['plain']:5.1f} x plain")


if __name__ == "__main__":
    main()
