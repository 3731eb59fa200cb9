"""Unmodified clients of Flower join a session; run by scripts/check_flower."""

import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="has an environment of its own: scripts/check_flower")

import msgspec
import numpy as np
import torch
from support.processes import Swarm

from p2pl.errors import ClientError, InputError, ModelError, TrainingDiverged
from p2pl.learner import Learner
from p2pl.learning import flower, models
from p2pl.learning.flower import FlowerTrainer
from p2pl.learning.train import Start
from p2pl.mixing.base import PeerModel
from p2pl.mixing.trust.row import Trust
from p2pl.protocol import session
from p2pl.protocol.session import Session

HERE = Path(__file__).parent
SPEC = """
name = "flower"
[task]
input = [64]
classes = 10
[model]
name = "arrays"
[training]
learning_rate = 0.1
[exchange]
kind = "gossip"
rounds = 8
cohort = 2
min_peers = 3
[mixing]
rule = "degroot"
"""


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets `--flower clients:…` be found, as in the folder of whoever joins."""
    monkeypatch.chdir(HERE)
    yield
    sys.path[:] = [path for path in sys.path if path != str(HERE)]


def learner(name: str = "torch_client", part: int = 0, parts: int = 3) -> Learner:
    """Returns the learner around one of the clients, in a session made from it."""
    module = "jax_clients" if name == "jax_client" else "clients"
    client = flower.load(f"{module}:{name}", (part, parts))
    wanted, _, _ = flower.begin(session.read_spec(SPEC).session(), client)
    return of_client(wanted, str(part), client)


def of_client(wanted: Session, peer_id: str, client: flower.NumPyClient) -> Learner:
    """Returns the learner of a peer around a client."""
    trainer = FlowerTrainer.around(wanted, models.build(wanted), client)
    return Learner.around(wanted, ("ab" * 32, peer_id), trainer)


def client_of(peer: Learner) -> flower.NumPyClient:
    """Returns the client of a learner."""
    assert isinstance(peer.trainer, FlowerTrainer)
    return peer.trainer.client


def start(of: Learner) -> torch.Tensor:
    """Returns the parameters that the client begins with."""
    return flower.flatten(client_of(of).get_parameters({}), of.trainer.layout)


@pytest.mark.parametrize("name", ["torch_client", "scikit_client", "jax_client"])
def test_a_client_trains_and_judges_through_the_learner(name: str) -> None:
    if name == "jax_client":
        pytest.importorskip("jax", reason="JAX does not install everywhere")
    peer = learner(name)
    before = start(peer)
    trained = peer.fit(Start(before), 1)
    assert trained.samples == peer.samples == 480
    assert not torch.equal(trained.vector, before)
    scored = peer.score(before, trained.vector)
    assert scored.before.accuracy < 60 < scored.after.accuracy
    assert scored.after.loss < scored.before.loss


def test_what_the_client_gets_is_what_was_mixed_in_its_own_types() -> None:
    peer = learner("scikit_client")
    vector = torch.arange(650, dtype=torch.float32)
    peer.judge(vector)
    coef, intercept = client_of(peer).get_parameters({})
    assert (coef.dtype, intercept.dtype) == (np.float64, np.float64)
    assert torch.equal(flower.flatten([coef, intercept], peer.trainer.layout), vector)


def test_trust_is_learned_from_losses_alone() -> None:
    peers = [learner("torch_client", part, 6) for part in range(6)]
    liar = client_of(peers[5])
    liar.train = (liar.train[0], 9 - liar.train[1])  # type: ignore[attr-defined]
    initial = start(peers[0])
    trained = [initial] * 6
    for index in range(1, 6):
        trained = [
            peer.fit(Start(vector), index).vector
            for peer, vector in zip(peers, trained, strict=True)
        ]
    received = {str(part): PeerModel(1, 240, trained[part]) for part in range(1, 6)}
    state: msgspec.Struct = Trust()
    for index in range(1, 6):
        mixed = peers[0].mix(trained[0], received, index, state)
        state = mixed.memory
    honest = [mixed.row.get(str(part), 0.0) for part in range(1, 5)]
    assert mixed.row.get("5", 0.0) < 0.1 * max(honest)
    assert sum(weight > 0.1 for weight in honest) >= 3


class Mute:
    """A client that cannot judge, and says nothing of its parameters."""

    def get_parameters(self, config: object) -> list[np.ndarray]:
        return []

    def fit(
        self, parameters: list[np.ndarray], config: object
    ) -> tuple[list[np.ndarray], int, dict[str, float]]:
        return [array + 1 for array in parameters], 10, {}

    def evaluate(
        self, parameters: list[np.ndarray], config: object
    ) -> tuple[float, int, dict[str, float]]:
        return 0.0, 0, {}


def session_of(**shapes: tuple[int, ...]) -> Session:
    text = SPEC.replace('"arrays"', f'"arrays"\narguments = {{ {toml(shapes)} }}')
    return session.read_spec(text).session()


def toml(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} = {list(shape)}" for name, shape in shapes.items())


def around(client: flower.NumPyClient, **shapes: tuple[int, ...]) -> Learner:
    return of_client(session_of(**shapes), "me", client)


def test_a_client_that_only_trains_can_join_and_shares_equally() -> None:
    peer = around(Mute(), a=(2, 3), b=(), c=(4,))
    assert peer.trainer.layout.shapes == ((2, 3), (), (4,))
    trained = peer.fit(Start(torch.zeros(11)), 1)
    assert torch.equal(trained.vector, torch.ones(11))
    assert math.isnan(peer.judge(trained.vector).accuracy)
    mixed = peer.mix(
        torch.ones(11), {"a": PeerModel(1, 10, torch.ones(11) * 1.01)}, 1, Trust(rounds=5)
    )
    assert 0 < mixed.row["a"] <= 0.5  # judged by geometry alone


def test_a_session_for_other_shapes_or_another_model_is_refused() -> None:
    client = flower.load("clients:WHOLE")
    with pytest.raises(ModelError, match="parameters of the client"):
        around(client, a=(64, 32))
    with pytest.raises(ModelError, match=r"model\.name"):
        flower.begin(session.read_spec(SPEC.replace('"arrays"', '"logreg"')).session(), client)


def test_a_client_whose_training_leaves_the_numbers_stops() -> None:
    class Diverging(Mute):
        def fit(
            self, parameters: list[np.ndarray], config: object
        ) -> tuple[list[np.ndarray], int, dict[str, float]]:
            return [array * np.nan for array in parameters], 10, {}

    with pytest.raises(TrainingDiverged):
        around(Diverging(), a=(2,)).fit(Start(torch.ones(2)), 1)


@pytest.mark.parametrize(
    "name",
    [
        "clients",
        "clients:",
        "no_such_module:x",
        "clients:nothing",
        "clients:CLASSES",
        "digitsapp.server_app:app",
    ],
)
def test_what_is_no_client_is_refused_in_words(name: str, quickstart: Path) -> None:
    with pytest.raises(InputError, match="--flower"):
        flower.load(name)


# Apps of the message API.


@pytest.fixture
def quickstart(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Returns the folder of an app as Flower's quick start describes it, which one works in."""
    monkeypatch.chdir(HERE / "quickstart")
    yield HERE / "quickstart"
    for name in [name for name in sys.modules if name.partition(".")[0] == "digitsapp"]:
        monkeypatch.delitem(sys.modules, name)
    sys.path[:] = [path for path in sys.path if path != str(HERE / "quickstart")]


def of_app(name: str, part: int = 0, parts: int = 3) -> tuple[Learner, torch.Tensor]:
    """Returns the learner around an app, and the parameters that its session begins with."""
    client = flower.load(name, (part, parts))
    wanted, payload, _ = flower.begin(session.read_spec(SPEC).session(), client)
    peer = of_client(wanted, str(part), client)
    return peer, peer.decode_checkpoint(payload)


APP = "digitsapp.client_app:app"


def test_an_app_trains_and_judges_through_the_learner(quickstart: Path) -> None:
    peer, before = of_app(APP)
    assert peer.trainer.layout.names == (
        "inner.bias",
        "inner.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.weight",
        "outer.bias",
        "outer.weight",
    )
    trained = peer.fit(Start(before), 1)
    assert trained.samples == peer.samples == 480
    scored = peer.score(before, trained.vector)
    assert scored.after.loss < scored.before.loss
    assert list(scored.after.metrics) == ["eval_acc"]
    assert scored.before.metrics["eval_acc"] < 0.5 < scored.after.metrics["eval_acc"] <= 1


def test_what_batch_normalisation_counts_stays_with_the_app(quickstart: Path) -> None:
    peer, start = of_app(APP)
    for index in (1, 2):
        peer.fit(Start(start), index)
    counts = client_of(peer)._counts  # type: ignore[attr-defined]
    assert {name: int(one) for name, one in counts.items()} == {
        "norm.num_batches_tracked": 2 * 2 * 30  # rounds, epochs of the app's settings, batches
    }


def test_an_app_around_a_client_fn_is_what_the_client_is() -> None:
    plain = learner("torch_client")
    app, before = of_app("clients:APP")
    assert torch.equal(start(app), before)
    assert torch.equal(start(plain), before)
    assert torch.equal(app.fit(Start(before), 1).vector, plain.fit(Start(before), 1).vector)
    mine, theirs = app.judge(before), plain.judge(before)
    assert mine.loss == pytest.approx(theirs.loss)
    assert mine.metrics == theirs.metrics


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "FAULTY",
            r"failed in train, in round 1: .*apps\.py, line \d+, in raises: ValueError: mine",
        ),
        ("STRANGE", r"parameters in the answer of train: got \['other'\], allowed \['0'\]"),
        ("SILENT", r"train: got 'NoneType', allowed a Message"),
        ("EMPTY", r"failed in train, in round 1: .*No train function registered"),
    ],
)
def test_a_fault_in_an_app_is_shown_as_theirs(name: str, words: str) -> None:
    client = flower.load(f"apps:{name}")
    wanted = session.read_spec(SPEC).session()
    arguments: dict[str, session.Argument] = {"a0000": (2,)}
    model = msgspec.structs.replace(wanted.model, arguments=arguments)
    peer = of_client(msgspec.structs.replace(wanted, model=model), "me", client)
    with pytest.raises((ClientError, ModelError), match=words):
        peer.fit(Start(torch.zeros(2)), 1)


def test_an_app_that_only_trains_tells_no_scores() -> None:
    wanted = session_of(a0000=(2,))
    peer = of_client(wanted, "me", flower.load("apps:STRANGE"))
    scores = peer.judge(torch.zeros(2))
    assert math.isnan(scores.loss)
    assert scores.metrics == {}


def test_an_app_without_a_server_that_says_its_model_is_refused_in_words() -> None:
    with pytest.raises(InputError, match=r"tool\.flwr\.app\.components"):
        of_app("apps:FAULTY")


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    """Returns a place to start processes in."""
    made = Swarm(tmp_path)
    yield made
    made.end()


@pytest.mark.swarm
@pytest.mark.timeout(600)
def test_unmodified_clients_of_flower_gossip_as_real_processes(swarm: Swarm) -> None:
    swarm.tracker()
    client = ("--flower", "clients:torch_client")
    shutil.copy(HERE / "clients.py", swarm.folder)
    torrent = swarm.create(SPEC, "flower", options=client)
    peers = [
        swarm.peer(f"peer-{part}", torrent, *client, "--shard", f"{part}/3") for part in range(3)
    ]
    for peer in peers:
        assert peer.wait() == 0, peer.text()
        summary = peer.summary()
        assert summary["accuracy"] > 85
        assert summary["samples"] in (479, 480)
        assert len(summary["peers_met"]) == 2


@pytest.mark.swarm
@pytest.mark.timeout(600)
def test_a_quick_start_app_of_flower_joins_unmodified(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm.tracker()
    shutil.copytree(HERE / "quickstart", swarm.folder, dirs_exist_ok=True)
    monkeypatch.chdir(swarm.folder)
    app = ("--flower", APP)
    spec = SPEC.replace('kind = "gossip"\nrounds = 8', "rounds = 4").replace("= 3", "= 2")
    torrent = swarm.create(spec, "app", options=app)
    peers = [swarm.peer(f"peer-{part}", torrent, *app, "--shard", f"{part}/3") for part in (0, 1)]
    for peer in peers:
        assert peer.wait() == 0, peer.text()
        summary = peer.summary()
        assert summary["metrics"]["eval_acc"] > 0.85
        assert summary["samples"] == 480
        assert len(summary["peers_met"]) == 1
