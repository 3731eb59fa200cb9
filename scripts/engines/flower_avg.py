"""Federated averaging in Flower's simulation engine.

Its clients compute in processes of Ray, which are waited for; their processor time counts.
"""

import torch
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation
from torch.nn.functional import cross_entropy
from torch_model import begun, right, shared
from work import Clock, read, tell

work = read()
last = list(work.initial)


class Client(NumPyClient):
    """One peer, as Flower has them: made anew for every round."""

    def __init__(self, number: int) -> None:
        torch.set_num_threads(1)
        self.mine = torch.from_numpy(work.rows[number])

    def fit(self, parameters, config):  # type: ignore[no-untyped-def]
        model, (x, y) = begun(work), shared(work)
        with torch.no_grad():
            for one, value in zip(model.parameters(), parameters, strict=True):
                one.copy_(torch.tensor(value))
        optimizer = torch.optim.SGD(model.parameters(), lr=work.rate)
        for some in self.mine[torch.randperm(len(self.mine))].split(work.batch):
            optimizer.zero_grad()
            cross_entropy(model(x[some]), y[some]).backward()
            optimizer.step()
        return [one.detach().numpy() for one in model.parameters()], len(self.mine), {}


class Kept(FedAvg):
    """FedAvg that keeps what it made."""

    def aggregate_fit(self, *given):  # type: ignore[no-untyped-def]
        made, metrics = super().aggregate_fit(*given)
        last[:] = parameters_to_ndarrays(made)
        return made, metrics


def server(_):  # type: ignore[no-untyped-def]
    strategy = Kept(
        fraction_evaluate=0.0,
        min_fit_clients=work.peers,
        min_available_clients=work.peers,
        initial_parameters=ndarrays_to_parameters(list(work.initial)),
    )
    config = ServerConfig(num_rounds=work.rounds)
    return ServerAppComponents(strategy=strategy, config=config)


clock = Clock()
run_simulation(
    server_app=ServerApp(server_fn=server),
    client_app=ClientApp(
        client_fn=lambda c: Client(int(c.node_config["partition-id"])).to_client()
    ),
    num_supernodes=work.peers,
    backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
)
took_s = clock.took_s
model = begun(work)
with torch.no_grad():
    for one, value in zip(model.parameters(), last, strict=True):
        one.copy_(torch.tensor(value))
tell(took_s, right(model, work))
