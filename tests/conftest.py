"""Fixtures that every part of the suite shares."""

import os

import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported: on a busy machine its threads wait for each other at every operation,
# and what takes a second takes two minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A machine that stands still for a while is no finding.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture
def anyio_backend() -> str:
    """Returns the only event loop that zmq.asyncio runs on."""
    return "asyncio"


@pytest.fixture
def own_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the modules of `support.modules` known by name, for one test."""
    from support.modules import MODULES

    from p2pl.learning.models import MODELS

    for name, make in MODULES.items():
        monkeypatch.setitem(MODELS._registered, name, make)
