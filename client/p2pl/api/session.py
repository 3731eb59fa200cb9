"""Session files: read, and made."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from p2pl import __version__
from p2pl.api.files import Given, read_session, read_spec
from p2pl.errors import InputError, SessionFileError, wrong
from p2pl.exchange.base import EXCHANGES, kind_of
from p2pl.learning import checkpoint, flower
from p2pl.learning.flower import NumPyClient
from p2pl.learning.flower_app import ServerModel
from p2pl.learning.models import MODELS
from p2pl.learning.task import TASKS, task_of
from p2pl.learning.weights import Layout, flatten
from p2pl.mixing.base import MIXERS, rule_of
from p2pl.protocol import session as session_format
from p2pl.protocol.session import Session, SessionFile, Spec
from p2pl.run.files import write_atomically

NOBODY = "0" * 64  # the id of a peer that is none: a rule is made only to see whether it can be

__all__ = ["Given", "check_known", "create", "read_session", "read_spec", "unknown_names"]


def check_known(session: Session, *, alone: bool = False) -> None:
    """Checks that the task, the mixing rule and the kind of exchange are known here.

    Args:
        session: which names them; what it names as its model is checked when that is made.
        alone: whether the peer trains alone, and exchanges nothing.

    Raises:
        InputError: one of them is not, or cannot use one of its arguments.
    """
    task_of(session.task)
    rule_of(session)(session, NOBODY)
    if not alone:
        kind_of(session)


def unknown_names(session: Session) -> dict[str, str]:
    """Returns the names in a session that nothing here has, by the field that says them."""
    named = {
        "task.kind": (session.task.kind, TASKS.names()),
        "model.name": (session.model.name, MODELS.names()),
        "exchange.kind": (session.exchange.kind, EXCHANGES.names()),
        "mixing.rule": (session.mixing.rule, MIXERS.names()),
    }
    return {field: name for field, (name, known) in named.items() if name not in known}


def create(
    spec: str | os.PathLike[str] | Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    trackers: Sequence[str] = (),
    model: nn.Module | NumPyClient | ServerModel | None = None,
) -> SessionFile:
    """Makes a session file, and its initial checkpoint beside it, and returns what it holds.

    Args:
        spec: the session as a TOML file, or as a dictionary of the same tables.
        out: the session file to write, NAME.torrent; its folder must exist.
        trackers: URLs, tried in this order.
        model: the session begins with its parameters, and is for models with the same names and
            shapes; `model.name` in the spec is then `arrays`. A module, or a client of Flower, or
            its ServerApp. None: the model that the spec names.

    Raises:
        InputError: the spec, a URL, the model or the folder cannot be used.
    """
    path = Path(out)
    wanted = _spec(spec)
    tiers = tuple((url,) for url in trackers)
    session_format.check_trackers(tiers)
    if not path.parent.is_dir():
        raise SessionFileError(
            wrong("--out", got=str(path), allowed="a file in a folder that exists")
        )
    session = wanted.session()
    check_known(session)
    if model is None:
        payload, promised = checkpoint.build(session)
    elif isinstance(model, nn.Module):
        session = _for_models_like(session, model)
        payload, promised = checkpoint.describe(flatten(model).cpu(), Layout.of(model))
    else:
        client = flower.beginning_of(model, flower.name_of(model))
        session, payload, promised = flower.begin(session, client)
    made = SessionFile(
        name=wanted.name,
        session=session,
        checkpoint=promised,
        trackers=tiers,
        url_list=wanted.url_list,
        comment=wanted.comment,
        created_by=f"p2pl {__version__}",
        created_at=int(time.time()),
    )
    write_atomically(path.parent / made.checkpoint_name, payload)
    write_atomically(path, made.encode())
    return made


def _spec(given: str | os.PathLike[str] | Mapping[str, Any]) -> Spec:
    if isinstance(given, Mapping):
        return session_format.spec_of(given)
    return read_spec(Path(given))


def _for_models_like(session: Session, model: nn.Module) -> Session:
    """Returns the session for modules with the same names and shapes of parameters.

    Raises:
        InputError: the session names another model already.
    """
    if session.model.name != flower.MODEL:
        raise InputError(
            wrong("model.name, with a module of your own", got=session.model.name, allowed="arrays")
        )
    layout = Layout.of(model)
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    described = msgspec.structs.replace(session.model, arguments=shapes)
    return msgspec.structs.replace(session, model=described)
