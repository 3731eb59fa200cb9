"""`p2pl.join` from scripts and notebooks: blocking, awaited, cancelled, stopped, and its events."""

import asyncio
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from support.processes import PATIENCE_S
from torch import Tensor, nn

import p2pl
from p2pl.api.join import _made
from p2pl.errors import ClientError, DataError, InputError, ModelError, RunDirError
from p2pl.events import Ended, RoundEnded, Said, Started, Step
from p2pl.exchange.join import OTHER_DATA
from p2pl.learning.evaluate import evaluate
from p2pl.run.log import read_run

X = torch.linspace(-1, 1, 80).view(-1, 1).repeat(1, 4)
Y = (X[:, 0] > 0).long()
SPEC = {
    "name": "small",
    "task": {"input": [4], "classes": 2},
    "model": {"name": "arrays"},
    "training": {"learning_rate": 0.5, "batch_size": 16},
    "exchange": {"rounds": 3, "cohort": 1},
}


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Returns a session file with its checkpoint beside it."""
    p2pl.create(SPEC, tmp_path / "small.torrent", model=net())
    return tmp_path / "small.torrent"


def test_the_result_is_the_trained_module_and_load_gives_it_again(
    file: Path, tmp_path: Path
) -> None:
    run = p2pl.join(file, net(), (X, Y), alone=True, run_dir=tmp_path / "run")
    assert [one.round for one in run.rounds] == [1, 2, 3]
    assert run.summary is not None
    right = (run.model(X).argmax(1) == Y).float().mean()
    assert right > 0.9
    again = p2pl.load(tmp_path / "run", model=net())
    for ours, theirs in zip(run.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert again.session == p2pl.read_session(file)


def test_events_come_in_order_and_are_the_run_log(file: Path, tmp_path: Path) -> None:
    told: list[p2pl.events.Event] = []
    run = p2pl.join(file, net(), (X, Y), alone=True, run_dir=tmp_path / "run", on_event=told.append)
    kinds = [type(event) for event in told if not isinstance(event, Step)]
    assert kinds == [Started, RoundEnded, RoundEnded, RoundEnded, Ended]
    assert tuple(e.entry for e in told if isinstance(e, RoundEnded)) == run.rounds
    steps = [event for event in told if isinstance(event, Step) and event.round == 2]
    assert [one.step for one in steps] == list(range(1, steps[0].steps + 1))


def test_it_blocks_where_an_event_loop_runs_already(file: Path, tmp_path: Path) -> None:
    async def notebook() -> p2pl.Run:
        return p2pl.join(file, net(), (X, Y), alone=True, run_dir=tmp_path / "run")

    assert asyncio.run(notebook()).rounds[-1].round == 3


def test_a_run_that_goes_on_with_other_examples_says_so(file: Path, tmp_path: Path) -> None:
    told: list[str] = []

    def note(event: p2pl.events.Event) -> None:
        if isinstance(event, Said):
            told.append(event.text)

    for begin, rounds, warnings in ((0, 1, 0), (0, 2, 0), (3, 3, 1)):
        mine = (X[begin:], Y[begin:])
        run_dir = tmp_path / "run"
        p2pl.join(file, net(), mine, alone=True, rounds=rounds, run_dir=run_dir, on_event=note)
        assert told.count(OTHER_DATA) == warnings


def test_what_goes_wrong_in_the_thread_is_raised_to_the_caller(file: Path) -> None:
    async def notebook() -> p2pl.Run:
        return p2pl.join(file, net(), (X, Y), alone=True, dp_delta=1e-5)

    with pytest.raises(InputError, match="only with --dp-epsilon"):
        asyncio.run(notebook())


class Slow(nn.Module):
    """A module whose scoring of round 2 lets another one overtake it, if another one can.

    Attributes:
        scoring: set when round 2 is being scored.
        scored_with: the weights that each scoring since then has computed with, last first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.scoring, self.overtaken, self.moved = (threading.Event() for _ in range(3))
        self.is_awaited = False
        self.scored_with: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.is_awaited:
            if not self.scoring.is_set():
                self.scoring.set()
                self.first = threading.get_ident()
                self.overtaken.wait(1.0)  # in vain, where computations never meet
            elif threading.get_ident() == self.first:
                self.moved.set()  # this scoring has loaded other weights since
            else:
                self.overtaken.set()
                self.moved.wait(10.0)
            self.scored_with.insert(0, self.layer.weight.detach().clone())
        made: Tensor = self.layer(x)
        return made


def test_who_is_cancelled_in_the_middle_of_scoring_is_scored_with_the_saved_model(
    tmp_path: Path,
) -> None:
    model, where, file = Slow(), tmp_path / "run", tmp_path / "slow.torrent"
    p2pl.create(SPEC, file, model=model)

    def watch(event: p2pl.events.Event) -> None:
        if isinstance(event, RoundEnded) and event.entry.round == 1:
            model.is_awaited = True

    async def cancelled() -> None:
        joining = asyncio.create_task(
            p2pl.join_async(file, model, (X, Y), alone=True, run_dir=where, on_event=watch)
        )
        assert await asyncio.to_thread(model.scoring.wait, 60)
        joining.cancel()
        await joining

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    summary = read_run(where).summary
    assert summary is not None
    assert (summary.state, summary.rounds) == ("interrupted", 1)
    saved = p2pl.load(where, model=Slow()).model
    assert torch.equal(model.scored_with[0], saved.get_parameter("layer.weight"))


def test_a_sink_that_fails_ends_the_run_with_its_own_error(file: Path, tmp_path: Path) -> None:
    def broken(event: p2pl.events.Event) -> None:
        if isinstance(event, RoundEnded):
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        p2pl.join(file, net(), (X, Y), alone=True, run_dir=tmp_path / "run", on_event=broken)
    assert len(read_run(tmp_path / "run").rounds) == 1  # saved before it was told
    run = p2pl.join(file, net(), (X, Y), alone=True, run_dir=tmp_path / "run")
    assert [one.round for one in run.rounds] == [1, 2, 3]


def test_ctrl_c_in_a_script_leaves_properly_and_the_same_call_goes_on(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, sys, p2pl\n"
        # As in a terminal: what a shell starts in the background is deaf to Ctrl-C.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def told(event):\n"
        "    if isinstance(event, p2pl.events.RoundEnded): print('round', flush=True)\n"
        "file = sys.argv[1]\n"
        "p2pl.join(file, data='digits', alone=True, rounds=100_000, run_dir='run', on_event=told)\n"
    )
    spec = {**SPEC, "model": {"name": "logreg"}, "task": {"input": [1, 8, 8], "classes": 10}}
    p2pl.create(spec, tmp_path / "small.torrent")
    process = subprocess.Popen(
        [sys.executable, str(script), "small.torrent"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert first == b"round\n", said
    assert b"KeyboardInterrupt" in said
    run = read_run(tmp_path / "run")
    assert run.summary is not None
    assert run.summary.state == "interrupted"
    assert run.summary.rounds == run.rounds[-1].round


def test_the_persons_own_loop_gets_the_examples_that_are_not_held_back(
    file: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []

    def fit(model: nn.Module, round: p2pl.Round) -> None:
        assert model.training
        rows = sum(len(x) for x, _ in round.batches(epochs=1))
        seen.append((round.index, rows))

    p2pl.join(file, net(), (X, Y), fit=fit, alone=True, run_dir=tmp_path / "run")
    assert seen == [(1, 64), (2, 64), (3, 64)]  # 80 examples, a fifth held back


def test_who_made_a_session_joins_with_the_same_module_and_no_file(tmp_path: Path) -> None:
    module = net()
    made = p2pl.create(SPEC, tmp_path / "a.torrent", model=module)
    run = p2pl.join(made, module, (X, Y), alone=True, run_dir=tmp_path / "run")
    assert len(run.rounds) == 3


@pytest.mark.parametrize(("kind", "rounds"), [(Started, 0), (Step, 0), (RoundEnded, 1), (Ended, 3)])
def test_a_sink_may_end_the_run_whatever_it_is_told(
    file: Path, tmp_path: Path, kind: type, rounds: int
) -> None:
    def sink(event: p2pl.events.Event) -> None:
        if isinstance(event, kind):
            raise p2pl.Stop

    module = net()
    begun = [one.detach().clone() for one in module.parameters()]
    run = p2pl.join(file, module, (X, Y), alone=True, run_dir=tmp_path / "run", on_event=sink)
    assert run.summary is not None
    assert run.summary.rounds == rounds
    assert run.summary.state == ("finished" if kind is Ended else "interrupted")
    same = all(map(torch.equal, run.model.parameters(), begun))
    assert same == (rounds == 0)
    if kind is Started:  # nothing to load: another module is not passed off as the run's
        with pytest.raises(RunDirError, match="initial checkpoint"):
            p2pl.load(tmp_path / "run", model=net())


def test_a_loop_that_runs_out_of_batches_ends_the_run(file: Path) -> None:
    def fit(model: nn.Module, round: p2pl.Round) -> None:
        next(iter(()))

    with pytest.raises(ClientError, match="StopIteration"):
        p2pl.join(file, net(), (X, Y), alone=True, fit=fit)


async def _never_awaited(*_: object) -> None: ...


@pytest.mark.parametrize("name", ["fit", "on_event"])
@pytest.mark.parametrize("wrong", [_never_awaited, 5])
def test_what_would_not_be_called_is_refused(file: Path, name: str, wrong: object) -> None:
    with pytest.raises(InputError, match=f"{name}: got"):
        p2pl.join(file, net(), (X, Y), alone=True, **{name: wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("rounds", [0, -1, 1.5, True, "2"])
def test_rounds_are_counted_from_one(file: Path, rounds: object) -> None:
    with pytest.raises(InputError, match="rounds: got"):
        p2pl.join(file, net(), (X, Y), alone=True, rounds=rounds)  # type: ignore[arg-type]


def test_a_fault_has_no_other_fault_before_it(file: Path) -> None:
    with pytest.raises(InputError) as raised:
        p2pl.join(file, net(), (X[:, :3], Y), alone=True)
    assert raised.value.__context__ is None


def test_what_does_not_fit_the_session_is_said(file: Path, tmp_path: Path) -> None:
    where = tmp_path / "run"
    with pytest.raises(ModelError, match=r"parameter 0\.bias of the model"):
        p2pl.join(file, nn.Sequential(nn.Linear(4, 2)), (X, Y), alone=True, run_dir=where)
    with pytest.raises(DataError, match="inputs of the data"):
        p2pl.join(file, net(), (X[:, :2], Y), alone=True, run_dir=where)
    with pytest.raises(DataError, match="targets of the data"):
        p2pl.join(file, net(), (X, Y + 5), alone=True, run_dir=where)
    with pytest.raises(InputError, match="data: missing"):
        p2pl.join(file, net(), alone=True, run_dir=where)
    with pytest.raises(InputError, match="training loop of your own"):
        p2pl.join(
            file, net(), (X, Y), fit=lambda m, r: None, dp_epsilon=1.0, alone=True, run_dir=where
        )


def test_a_map_style_data_set_is_taken_as_it_is(file: Path, tmp_path: Path) -> None:
    class Items:
        def __len__(self) -> int:
            return len(X)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return X[index], int(Y[index])

    run = p2pl.join(file, net(), Items(), alone=True, run_dir=tmp_path / "run", rounds=1)
    assert run.rounds[0].samples == 64


def test_evaluation_of_a_module_of_ones_own_is_that_of_its_task() -> None:
    from support.objectives import objective

    model = net()
    vector = torch.cat([p.detach().flatten() for _, p in sorted(model.named_parameters())])
    scores = evaluate(objective(model, 2), vector, p2pl.Examples(X, Y))
    assert scores.accuracy == 100 * float((model(X).argmax(1) == Y).float().mean())


@pytest.mark.parametrize("alone", [True, False])
def test_a_witness_is_for_sessions_with_update_logs(
    alone: bool, file: Path, tmp_path: Path
) -> None:
    got = "--alone" if alone else "a session whose peers keep no update logs"
    trackers, run_dir = () if alone else ("http://127.0.0.1:1",), tmp_path / "run"
    with pytest.raises(InputError, match=f"--witness: got '{got}', allowed a session with ledger"):
        p2pl.join(
            file, net(), (X, Y), witness=True, alone=alone, trackers=trackers, run_dir=run_dir
        )
    assert not run_dir.exists()


@pytest.mark.parametrize("written", ["privacy.json", "updates.log", "rounds.jsonl", "own.txt"])
def test_what_was_spent_served_or_logged_is_not_removed_with_a_run_that_is_refused(
    written: str, tmp_path: Path
) -> None:
    kept, unused = tmp_path / "kept", tmp_path / "unused"
    with pytest.raises(ModelError):
        refused(kept, {written: "{}\n"})
    assert (kept / written).exists()
    with pytest.raises(ModelError):
        refused(unused, {"identity.pem": "key", "rounds.jsonl": ""})
    assert not unused.exists()


def refused(run_dir: Path, written: dict[str, str]) -> None:
    """Writes files into a new run directory, and raises as a model does that takes no row."""
    with _made(run_dir):
        for name, text in written.items():
            (run_dir / name).write_text(text)
        raise ModelError("a row that the model cannot take")
