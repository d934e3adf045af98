"""The work directory: where everything that a laptop's runs leave behind is kept."""

import os
from dataclasses import dataclass
from pathlib import Path

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
DEFAULT = Path(".metalearn")


@dataclass(frozen=True)
class Workdir:
    """A work directory by its path; nothing is made until it is needed."""

    path: Path

    @property
    def artifacts(self) -> Path:
        """Where MLflow's artifacts are kept when tracking is local."""
        return self.path / "artifacts"

    @property
    def runs(self) -> Path:
        """Where each pipeline run has a folder: its request, events, log and KFP's artifacts."""
        return self.path / "runs"

    def storage(self, engine: str) -> Path:
        """Where an engine keeps datasets, results and checkpoints: no engine takes what another one made."""
        return self.path if engine == "local" else self.path / engine

    @property
    def tracking_uri(self) -> str:
        """Where tracking goes: MLFLOW_TRACKING_URI, or else a sqlite database in the work directory."""
        return os.environ.get(TRACKING_VARIABLE) or f"sqlite:///{self.path}/mlflow.db"

    def select_tracking(self) -> str:
        """Point this process and those that it starts at the tracking store; return its address."""
        os.environ[TRACKING_VARIABLE] = self.tracking_uri
        return os.environ[TRACKING_VARIABLE]

    def open_tracking(self) -> str:
        """Like `select_tracking`, and make and migrate a local database where it is needed.

        Raises:
            MetalearnError: the tracking store does not answer, or cannot be made.
        """
        from metalearn_core import tracking

        uri = self.select_tracking()
        self.path.mkdir(parents=True, exist_ok=True)
        tracking.prepare(uri)
        return uri

    def open_for(self, *models: str) -> None:
        """Point this process at the tracking store; open it where one of the models is a registered one.

        Raises:
            MetalearnError: the tracking store does not answer.
        """
        from metalearn_core.bundle_fetch import registered_address

        if any(registered_address(model) for model in models):
            self.open_tracking()
        else:
            self.select_tracking()
