"""`--log mlflow:URI`: runs in MLflow, an experiment for each session name, a run for each peer."""

from collections.abc import Mapping
from typing import Any

from p2pl.events import Started
from p2pl.sinks.base import SINKS, Journal, run_name, settings_of

STATES = {"finished": "FINISHED", "interrupted": "KILLED"}
MAX_VALUE_CHARS = 500  # of a parameter, as MLflow takes it everywhere


@SINKS.builtin("mlflow")
def open_mlflow(place: str) -> Journal:
    """Returns the journal that writes to a tracking store.

    Args:
        place: a tracking URI: `sqlite:///mlflow.db`, a server's `http://…`.

    Raises:
        ModuleNotFoundError: the package mlflow is not installed.
    """
    from mlflow import MlflowClient

    return _MLflow(MlflowClient(tracking_uri=place))


class _MLflow:
    """Writes a run; a peer that goes on with a session goes on with its run."""

    def __init__(self, client: Any) -> None:  # noqa: ANN401  # installed by few
        self._client = client
        self._run_id = ""

    def begin(self, run: Started) -> None:
        client = self._client
        known = client.get_experiment_by_name(run.name)
        experiment = known.experiment_id if known else client.create_experiment(run.name)
        tags = {"p2pl.session_id": run.session_id, "p2pl.peer_id": run.peer_id}
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        before = client.search_runs([experiment], wanted, max_results=1) if run.round else []
        if before:
            self._run_id = before[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")
            return
        made = client.create_run(experiment, tags=tags, run_name=run_name(run))
        self._run_id = made.info.run_id
        for name, value in settings_of(run).items():
            client.log_param(self._run_id, name, str(value)[:MAX_VALUE_CHARS])

    def round(self, index: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._client.log_metric(self._run_id, name, value, step=index)

    def end(self, state: str, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._client.log_metric(self._run_id, name, value)
        self._client.set_terminated(self._run_id, STATES.get(state, "FAILED"))
