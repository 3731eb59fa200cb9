"""Session files: read, and made."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from p2pl import __version__
from p2pl.api import arguments
from p2pl.api.files import Given, read_session, read_spec, read_toml
from p2pl.api.private import AUTHOR_SUFFIX, beside
from p2pl.data.describe import Wanted, completed
from p2pl.data.texts import with_tokenizer
from p2pl.errors import InputError, ModelError, SessionFileError, wrong
from p2pl.exchange.base import EXCHANGES, kind_of
from p2pl.learning import checkpoint, flower, models, pretrained
from p2pl.learning.flower import NumPyClient
from p2pl.learning.flower_app import ServerModel
from p2pl.learning.models import MODELS
from p2pl.learning.objective import Objective
from p2pl.learning.task import TASKS, task_of
from p2pl.learning.weights import Layout
from p2pl.mixing.base import MIXERS, rule_of
from p2pl.network.keys import Identity
from p2pl.protocol import session as session_format
from p2pl.protocol.session import Session, SessionFile, Spec
from p2pl.run.files import check_can_be_written, write_atomically

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


def create(  # noqa: PLR0913  # keywords, each of them a different thing
    spec: str | os.PathLike[str] | Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    trackers: Sequence[str] = (),
    model: nn.Module | NumPyClient | ServerModel | None = None,
    schema_from: str | os.PathLike[str] | None = None,
    target: str | Sequence[str] | None = None,
    categorical: str | Sequence[str] = (),
    leave_out: str | Sequence[str] = (),
    tokenizer: str | os.PathLike[str] | None = None,
    from_folder: str | os.PathLike[str] | None = None,
    relays: Sequence[str] = (),
    private: bool = False,
    replace: bool = True,
) -> SessionFile:
    """Makes a session file, and its initial checkpoint beside it, and returns what it holds.

    Args:
        spec: the session as a TOML file, or as a dictionary of the same tables.
        out: the session file to write, NAME.torrent; its folder must exist. The checkpoint beside
            it has the name of the session, not of this file.
        trackers: URLs, tried in this order.
        model: the session begins with its parameters, and is for models with the same names and
            shapes; `model.name` in the spec is then `arrays`. A module, or a client of Flower, or
            its ServerApp. None: the model that the spec names.
        schema_from: a CSV or parquet file of the author: its columns, with their means, standard
            deviations and categories, become the session's table. None: the spec has one, or needs
            none.
        target: the column of it that is to be predicted, or several.
        categorical: the column of it whose numbers stand for categories, or several.
        leave_out: the column of it that no model is to see, or several.
        tokenizer: a file of the library tokenizers, whose hash and number of tokens the session
            takes over; everybody who joins needs the same one. None: tokens are bytes, or the data
            are no text.
        from_folder: of a causal model of the library transformers: its config.json, which the
            session takes over, and its model.safetensors, with which the session begins; without
            one, it begins with random weights. None: the model is another one.
        relays: endpoints of relays for peers that cannot be dialled, beside those that trackers
            name, best first: relay://HOST:PORT, or relays://HOST:443 by WebSocket over TLS.
        private: whether only peers take part whom the author has invited (`p2pl.invite`). The
            author's key is made and kept beside the session file, as NAME.author.pem: whoever has
            it decides who takes part, and without it nobody can be invited any more. A spec that
            says `private = true` means the same.
        replace: whether a file that is there already is replaced, where it is another session (it
            has another id) or no session file, or a checkpoint that is no session's. False: it is
            refused.

    Raises:
        InputError: the spec, a URL, the model or the folder cannot be used, or a file is there that
            may not be replaced.
    """
    arguments.check(locals(), out=arguments.OUT)
    path = Path(out)
    if from_folder is not None and model is not None:
        raise InputError("--from: not allowed with a model of your own; leave one of them out")
    described = _described(schema_from, target, categorical, leave_out)
    wanted = _spec(spec, described, tokenizer, from_folder)
    tiers = tuple((url,) for url in trackers)
    session_format.check_trackers(tiers)
    named_relays = session_format.check_relays(relays, "--relay-url")
    if not path.parent.is_dir():
        raise SessionFileError(
            wrong("--out", got=str(path), allowed="a file in a folder that exists")
        )
    if not replace:
        _check_is_session(path)
    session = wanted.session()
    check_known(session)
    if from_folder is not None:
        model = models.build(session)
        pretrained.load_weights(model, Path(from_folder))
        payload, promised = checkpoint.of(model)
    elif model is None:
        payload, promised = checkpoint.build(session)
    elif isinstance(model, nn.Module):
        session = _for_models_like(session, model)
        _check_takes_table(session, model)
        payload, promised = checkpoint.of(model)
    elif isinstance(model, type) and issubclass(model, nn.Module):
        allowed = "a torch.nn.Module, a client of Flower, or None"
        raise ModelError(wrong("model", got=model, allowed=allowed, hint="pass an object of it"))
    else:
        client = flower.beginning_of(model, flower.name_of(model))
        session, payload, promised = flower.begin(session, client)
    with _no_key_left(path):
        made = SessionFile(
            name=wanted.name,
            session=_with_author(session, path, private=private),
            checkpoint=promised,
            trackers=tiers,
            url_list=wanted.url_list,
            relays=named_relays,
            comment=wanted.comment,
            created_by=f"p2pl {__version__}",
            created_at=int(time.time()),
        )
        _check_not_taken(path, made)
        check_can_be_written(path)
        if not replace:
            _check_replaces_its_own(path, made, payload)
        write_atomically(path.parent / made.checkpoint_name, payload)
        write_atomically(path, made.encode())
    return made


@contextlib.contextmanager
def _no_key_left(path: Path) -> Iterator[None]:
    """Removes the author's key again, where it was made for a session file that is refused."""
    key = beside(path, AUTHOR_SUFFIX)
    was_there = key.exists()
    try:
        yield
    except InputError:
        if not was_there:
            key.unlink(missing_ok=True)
        raise


def _with_author(session: Session, path: Path, *, private: bool) -> Session:
    """Returns the session with the key of its author, which is made where there is none."""
    if not (private or session.private) or session.author:
        return session
    author = Identity.load_or_create(beside(path, AUTHOR_SUFFIX)).public_key.hex()
    return msgspec.structs.replace(session, private=True, author=author)


def _described(
    schema_from: str | os.PathLike[str] | None,
    target: str | Sequence[str] | None,
    categorical: str | Sequence[str],
    leave_out: str | Sequence[str],
) -> Wanted | None:
    """Returns what the author says of a table; None: there is none to be described."""
    if schema_from is None:
        if target or categorical or leave_out:
            raise InputError(
                "--target, --categorical, --leave-out: allowed only with --schema-from FILE"
            )
        return None
    targets = (target,) if isinstance(target, str) else tuple(target or ())
    return Wanted(Path(schema_from), targets, _names(categorical), _names(leave_out))


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    """Returns one name, or several, as several."""
    return (given,) if isinstance(given, str) else tuple(given)


def _check_not_taken(path: Path, made: SessionFile) -> None:
    """Raises SessionFileError where the checkpoint would replace that of another session."""
    for other in sorted(path.parent.glob("*.torrent")):
        if other.name == path.name:
            continue
        try:
            there = read_session(other)
        except SessionFileError:  # no session of p2pl, so none whose checkpoint lies here
            continue
        is_same_file = there.checkpoint_name == made.checkpoint_name
        if is_same_file and there.checkpoint.root != made.checkpoint.root:
            raise SessionFileError(
                wrong(
                    "name",
                    got=made.name,
                    allowed=f"another one: {other.name} has that name and another checkpoint, "
                    f"and {path.parent / made.checkpoint_name} is its own",
                    hint="or write to another folder",
                )
            )


def _check_is_session(path: Path) -> None:
    """Raises SessionFileError where something is there that is no session file."""
    if path.is_file():
        try:
            read_session(path)
        except SessionFileError as fault:
            raise _would_replace(path, "no session file of p2pl", "the new session") from fault


def _check_own_checkpoint(path: Path, made: SessionFile, payload: bytes) -> None:
    """Raises SessionFileError where weights that are no session's here would be replaced."""
    weights = path.parent / made.checkpoint_name
    if not weights.exists():
        return
    with contextlib.suppress(OSError):  # who cannot read it does not know whose it is
        if weights.stat().st_size == len(payload) and weights.read_bytes() == payload:
            return  # left by a `create` that was cut short
    raise SessionFileError(
        wrong(
            "name",
            got=made.name,
            allowed=f"a name whose checkpoint is not there yet: {weights} would be replaced",
            hint="name the session otherwise, move that file, or replace it with --force",
        )
    )


def _would_replace(path: Path, what: str, by: str) -> SessionFileError:
    return SessionFileError(
        wrong(
            "--out",
            got=str(path),
            allowed=f"a file that is not there yet, or one of the same session: this is {what}, "
            f"and would be replaced by {by}",
            hint="name another file, or replace it with --force",
        )
    )


def _check_replaces_its_own(path: Path, made: SessionFile, payload: bytes) -> None:
    """Raises SessionFileError where what would be replaced is not this session's own."""
    if not path.exists():
        _check_own_checkpoint(path, made, payload)
        return
    there = read_session(path)
    if there.id != made.id:
        what = f"another session, {there.name} {there.id[:8]}"
        raise _would_replace(path, what, f"{made.name} {made.id[:8]}")


def _spec(
    given: str | os.PathLike[str] | Mapping[str, Any],
    described: Wanted | None,
    tokenizer: str | os.PathLike[str] | None,
    from_folder: str | os.PathLike[str] | None,
) -> Spec:
    if not isinstance(given, str | os.PathLike | Mapping):
        allowed = "the path of a TOML file, or a dictionary of its tables"
        raise SessionFileError(wrong("spec", got=given, allowed=allowed))
    plain = described is None and tokenizer is None and from_folder is None
    if plain and not isinstance(given, Mapping):
        return read_spec(Path(given))
    raw = given if isinstance(given, Mapping) else read_toml(Path(given))
    if described is not None:
        raw = completed(raw, described)
    if tokenizer is not None:
        raw = with_tokenizer(raw, Path(tokenizer))
    if from_folder is not None:
        raw = pretrained.with_config(raw, Path(from_folder))
    return session_format.spec_of(raw)


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


def _check_takes_table(session: Session, model: nn.Module) -> None:
    """Raises ModelError where the session has a table and the module cannot take its rows."""
    if session.table is None:
        return
    modes = [(part, part.training) for part in model.modules()]  # some may be fixed in one
    try:
        with torch.no_grad():
            objective = Objective.of(model.eval(), task_of(session.task))
            objective.here(torch.zeros(2, session.table.width))
    except ModelError as fault:
        width = session.table.width
        raise ModelError(f"{fault}; a row of the session's table is {width} numbers") from fault
    finally:
        for part, mode in modes:
            part.training = mode
