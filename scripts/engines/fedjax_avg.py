"""Federated averaging by fedjax's own algorithm."""

import jax

jax.tree_map = jax.tree.map  # fedjax 0.0.17 asks for it by the name that JAX gave up
import fedjax
from fedjax.algorithms import fed_avg
from jax_model import begun, loss, right
from work import Clock, read, tell

work = read()
shares = {f"{k:06}": {"x": work.x[mine], "y": work.y[mine]} for k, mine in enumerate(work.rows)}
data = fedjax.InMemoryFederatedData(shares)
batches = fedjax.ShuffleRepeatBatchHParams(batch_size=work.batch, num_epochs=1)
algorithm = fed_avg.federated_averaging(
    jax.grad(lambda parameters, batch, _: loss(parameters, batch["x"], batch["y"])),
    fedjax.optimizers.sgd(work.rate),
    fedjax.optimizers.sgd(1.0),
    batches,
)


def one_round(state, index):  # type: ignore[no-untyped-def]
    keys = jax.random.split(jax.random.PRNGKey(index), work.peers)
    ids = data.client_ids()
    clients = [(who, data.get_client(who), key) for who, key in zip(ids, keys, strict=True)]
    return algorithm.apply(state, clients)[0]


state = algorithm.init(begun(work))
first = Clock()
jax.block_until_ready(one_round(state, 0).params)
compile_s = first.took_s
clock = Clock()
for index in range(work.rounds):
    state = one_round(state, index)
jax.block_until_ready(state.params)
tell(clock.took_s, right(state.params, work), compile_s)
