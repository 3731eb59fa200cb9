"""A cluster of Ray: joined, or started on this machine, and left again.

Ray carries what it is given by pickle, as far as it is no array. That stays among the machines of
one cluster, which belong to whoever runs the simulation; nothing that came from a file or from a
stranger is unpickled.
"""

import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from p2pl.errors import ClientError, InputError, NetworkError, P2PLError, visible, wrong
from p2pl.extras import install

# Of Ray, which has no types: the module, a worker, the name of something in the object store.
Ray: TypeAlias = Any
Handle: TypeAlias = Any
Ref: TypeAlias = Any

REACH_DEADLINE_S = 5.0  # for a connection to the head of a cluster
JOIN_DEADLINE_S = 120.0  # chosen: on a machine with six times as much work as cores it took 40

# Chosen: for one phase of a round, or one seed. That a worker has died shows long before.
ANSWER_DEADLINE_S = 6 * 3600.0

# Read by Ray when it is imported or started; what the person has set stays.
_QUIETLY = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would tell its makers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # as it is going to be; else it warns of that
}
_OPTIONS: Mapping[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def joined(
    engine: str,
    cores: int,
    deadline_s: float = JOIN_DEADLINE_S,
    environment: Mapping[str, Any] | None = None,
) -> Iterator[Ray]:
    """Yields Ray, once this process belongs to a cluster; it leaves afterwards.

    Where the process belongs to one already, that is the one, and it stays.

    Args:
        engine: `ray` starts Ray on this machine, and ends it; `ray:ADDRESS` joins a cluster that is
            there, by the HOST:PORT of its head, or `auto` for the one of this machine.
        cores: for Ray on this machine.
        deadline_s: for joining.
        environment: of the workers, as Ray's `runtime_env`; None: as their machines have it.

    Raises:
        InputError: Ray is not installed, or the address is none.
        NetworkError: the cluster could not be reached, or joined, in time.
    """
    address = address_of(engine)
    ray = imported()
    if ray.is_initialized():
        yield ray
        return
    options = {**_OPTIONS, "runtime_env": dict(environment or {})}
    try:
        if address is None:
            _start(ray, engine, num_cpus=cores, include_dashboard=False, **options)
        else:
            if address != "auto":
                _reach(engine, address)
            _join(ray, engine, deadline_s, address=address, **options)
        yield ray
    finally:
        ray.shutdown()


def address_of(engine: str) -> str | None:
    """Returns the address in `ray:ADDRESS`; None for `ray` alone.

    Raises:
        InputError: it is no address.
    """
    _, colon, address = engine.partition(":")
    if not colon:
        return None
    if address == "auto":
        return address
    host, _, port = address.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        allowed = "ray, ray:auto, or ray:HOST:PORT of the head of a cluster"
        raise InputError(wrong("--engine", got=engine, allowed=allowed))
    return address


def imported() -> Ray:
    """Returns Ray, which tells nobody that it is used.

    Raises:
        InputError: it is not installed.
    """
    for name, value in _QUIETLY.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError as missing:
        raise InputError(f"ray is not installed; it comes with: {install('ray')}") from (missing)
    return ray


def put(ray: Ray, value: object) -> Ref:
    """Returns the name of a value, once it lies in the object store.

    Raises:
        ClientError: there is no room for it, not even on disk.
    """
    try:
        return ray.put(value)
    except ray.exceptions.RayError as fault:
        raise translated(fault, "data were put into the object store") from fault


def translated(fault: Exception, what: str) -> P2PLError:
    """Returns an error of Ray's as one of p2pl's: of code of p2pl's, the one that it raised.

    Args:
        fault: Ray's.
        what: was being done.
    """
    cause = getattr(fault, "cause", None)
    if isinstance(cause, P2PLError):
        return type(cause)(str(cause))
    return ClientError(f"simulation: {what}: {summary(cause or fault)}")


def summary(fault: BaseException) -> str:
    """Returns the kind of a fault and the first line of what it says."""
    first = next((line for line in str(fault).splitlines() if line.strip()), "")
    return visible(f"{type(fault).__name__}: {first.strip()}"[:300])


def _reach(engine: str, address: str) -> None:
    """Raises NetworkError where nobody listens, which Ray would find out in minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_DEADLINE_S).close()
    except OSError as fault:
        raise NetworkError(
            f"--engine {visible(engine)}: nobody answers there ({fault.strerror or fault}); start "
            "the head of a cluster with: ray start --head, which prints its address"
        ) from fault


def _start(ray: Ray, engine: str, **options: object) -> None:
    """Starts Ray on this machine.

    Not in a thread: Ray's processes end when the thread does that started them.
    """
    try:
        ray.init(address="local", **options)
    except Exception as fault:  # Ray raises just that where a node is slow
        raise NetworkError(f"--engine {engine}: Ray did not start: {summary(fault)}") from fault


def _join(ray: Ray, engine: str, deadline_s: float, **options: object) -> None:
    """Joins a cluster, in a thread: where something else answers, Ray waits for minutes."""
    faults: list[Exception] = []

    def join() -> None:
        try:
            ray.init(**options)
        except Exception as fault:  # noqa: BLE001  # raised below, where somebody sees it
            faults.append(fault)

    joining = threading.Thread(target=join, name="joins-ray", daemon=True)
    joining.start()
    joining.join(deadline_s)
    reason = summary(faults[0]) if faults else f"no answer within {deadline_s:g} s"
    if faults or joining.is_alive():
        raise NetworkError(
            f"--engine {visible(engine)}: could not be joined: {reason}; every machine of a "
            "cluster, this one too, joins with: ray start --address=HOST:PORT"
        )
