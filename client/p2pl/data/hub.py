"""A dataset of the Hugging Face Hub, through its own libraries: token, cache and offline mode."""

from pathlib import Path
from typing import Any

from p2pl.data.parquet import Table, source_of
from p2pl.data.source import Source
from p2pl.errors import DataError, wrong
from p2pl.extras import install
from p2pl.protocol.session import Task

DEADLINE_S = 5.0  # for the first question; without it, `datasets` tries for half a minute
LOG_IN = "run `hf auth login`, or set HF_TOKEN to a token that may read it"


def hub_dataset(ref: str, task: Task | None, data_dir: Path | None) -> Source:
    """Returns the dataset of this id, from the Hub or from the cache of `datasets`.

    A token is taken from `HF_TOKEN` or from `hf auth login`; with `HF_HUB_OFFLINE=1` only what was
    downloaded before is looked at.

    Args:
        ref: the id, `OWNER/NAME` or `NAME`.
        task: the session's; None: whatever classes there are.
        data_dir: the person's folder of datasets, if any; for the message.

    Raises:
        DataError: the Hub cannot be reached, has no such dataset or does not let this person read
            it; or the dataset has no training split, or is not of the session's classes.
    """
    try:
        import datasets
        import huggingface_hub
    except ModuleNotFoundError as fault:
        raise DataError(
            f"--data {ref}: a hub dataset needs {fault.name}: {install('hf')}"
        ) from fault
    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    is_gated = not offline and _ask(ref, data_dir)
    try:
        splits = datasets.load_dataset(ref)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as fault:
        if is_gated and isinstance(fault, datasets.exceptions.DatasetNotFoundError):
            raise _gated(ref) from fault
        hint = "; it was not downloaded here before, and HF_HUB_OFFLINE is set" if offline else ""
        message = f"--data {ref}: the hub dataset cannot be loaded: {fault}{hint}"
        raise DataError(message) from fault
    if "train" not in splits:
        raise DataError(wrong(f"--data {ref}", got=sorted(splits), allowed="a split called train"))
    tables = {name: [_table(name, split)] for name, split in splits.items()}
    return source_of(tables["train"], tables.get("test", ()), task)


def _ask(ref: str, data_dir: Path | None) -> bool:
    """Returns whether the owner of the dataset gives access to its files one by one.

    Raises:
        DataError: the Hub cannot be reached in time, or has no dataset that this person may see.
    """
    import httpx
    from huggingface_hub import HfApi, errors

    try:
        return bool(HfApi().dataset_info(ref, timeout=DEADLINE_S, expand=["gated"]).gated)
    except errors.GatedRepoError as fault:
        raise _gated(ref) from fault
    except errors.RepositoryNotFoundError as fault:
        raise _hidden(ref) from fault
    except errors.HFValidationError as fault:
        raise DataError(wrong("--data", got=ref, allowed=f"a dataset id ({fault})")) from fault
    except errors.HfHubHTTPError as fault:
        status = fault.response.status_code
        hint = f"; {LOG_IN}" if status in (401, 403) else ""
        message = f"--data {ref}: the Hugging Face hub answered {status}: {fault}{hint}"
        raise DataError(message) from fault
    except ImportError as fault:  # httpx's word for a SOCKS proxy without the package for it
        raise DataError(
            f"--data {ref}: the hub is asked through the proxy that the environment names "
            "(ALL_PROXY, HTTPS_PROXY), and SOCKS needs the package socksio: "
            "pip install 'httpx[socks]', or unset the variable"
        ) from fault
    except (httpx.HTTPError, OSError, ValueError) as fault:
        place = data_dir / ref if data_dir else f"DIR/{ref}, with P2PL_DATA_DIR=DIR"
        raise DataError(
            f"--data {ref}: no such file or folder is here, and the Hugging Face hub, where a "
            f"dataset may have that name, cannot be reached ({fault}); put the dataset's "
            f"parquet files into {place}, or set HF_HUB_OFFLINE=1 if it was downloaded here before"
        ) from fault


def _hidden(ref: str) -> DataError:
    """Returns what to say of a dataset that is not there or is private: the Hub says not which."""
    from huggingface_hub import get_token

    hint = "there is none of this name that the token in use (HF_TOKEN or `hf auth login`) may read"
    return DataError(
        wrong(
            "--data",
            got=ref,
            allowed="digits, an existing folder, or the id of a dataset of the Hugging Face hub",
            hint=hint if get_token() else f"there is none of this name, or it is private: {LOG_IN}",
        )
    )


def _gated(ref: str) -> DataError:
    """Returns what to say of a dataset whose owner wants to be asked first."""
    from huggingface_hub import constants

    return DataError(
        f"--data {ref}: its owner gives access one by one; ask for it at "
        f"{constants.ENDPOINT}/datasets/{ref}, then {LOG_IN}"
    )


def _table(name: str, split: Any) -> Table:  # noqa: ANN401  # datasets.Dataset is not typed
    table = split.data.table
    return Table(name, split.features.arrow_schema, table.column)
