"""A bare JAX program: one compiled round, peers by vmap, batches by scan."""

import jax
import jax.numpy as jnp
from jax_model import begun, loss, right
from work import Clock, read, tell

work = read()
x, y, rows = jnp.asarray(work.x), jnp.asarray(work.y), jnp.asarray(work.rows)
whole, rest = divmod(rows.shape[1], work.batch)
descent = jax.grad(loss)


def step(parameters, some):  # type: ignore[no-untyped-def]
    gradient = descent(parameters, x[some], y[some])
    moved = jax.tree.map(lambda one, by: one - work.rate * by, parameters, gradient)
    return moved, None


def epoch(parameters, mine, key):  # type: ignore[no-untyped-def]
    mine = jax.random.permutation(key, mine)
    batches = mine[: whole * work.batch].reshape(whole, work.batch)
    parameters, _ = jax.lax.scan(step, parameters, batches)
    return step(parameters, mine[whole * work.batch :])[0] if rest else parameters


@jax.jit
def one_round(parameters, key):  # type: ignore[no-untyped-def]
    keys = jax.random.split(key, work.peers)
    trained = jax.vmap(epoch, in_axes=(None, 0, 0))(parameters, rows, keys)
    return jax.tree.map(lambda one: one.mean(0), trained)


parameters = begun(work)
first = Clock()
jax.block_until_ready(one_round(parameters, jax.random.PRNGKey(0)))
compile_s = first.took_s
clock = Clock()
for index in range(work.rounds):
    parameters = one_round(parameters, jax.random.PRNGKey(index))
jax.block_until_ready(parameters)
tell(clock.took_s, right(parameters, work), compile_s)
