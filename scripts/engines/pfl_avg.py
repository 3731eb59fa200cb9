"""Federated averaging in Apple's pfl-research, by its simulated backend for PyTorch."""

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.internal.ops.selector import set_framework_module
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch_model import begun, right, shared
from work import Clock, read, tell

NEVER = 10**9  # rounds between two evaluations: it is told to make none


class Net(nn.Module):
    """The model, with the two methods that pfl asks for."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits

    def loss(self, x: Tensor, y: Tensor, eval: bool = False) -> Tensor:
        return cross_entropy(self(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor, eval: bool = True) -> dict[str, object]:
        return {"accuracy": Weighted(float((self(x).argmax(1) == y).sum()), len(y))}


torch.set_num_threads(1)
set_framework_module(pytorch_ops)
work = read()
x, y = shared(work)
net = Net(begun(work))
model = PyTorchModel(
    net,
    local_optimizer_create=torch.optim.SGD,
    central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
)


def user(number: int) -> Dataset:
    mine = torch.from_numpy(work.rows[number])
    return Dataset([x[mine], y[mine]], user_id=str(number))


def users() -> FederatedDataset:
    return FederatedDataset(user, get_user_sampler("minimize_reuse", list(range(work.peers))))


backend = SimulatedBackend(training_data=users(), val_data=users())
clock = Clock()
FederatedAveraging().run(
    algorithm_params=NNAlgorithmParams(
        central_num_iterations=work.rounds,
        evaluation_frequency=NEVER,
        train_cohort_size=work.peers,
        val_cohort_size=0,
    ),
    backend=backend,
    model=model,
    model_train_params=NNTrainHyperParams(
        local_learning_rate=work.rate, local_num_epochs=1, local_batch_size=work.batch
    ),
    model_eval_params=NNEvalHyperParams(local_batch_size=1024),
    callbacks=[],
)
tell(clock.took_s, right(net, work))
