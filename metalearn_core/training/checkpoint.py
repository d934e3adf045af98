"""Checkpoints: all that a training run needs to go on as if it had never stopped. Safetensors and JSON, no pickle."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from filelock import FileLock, Timeout
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from metalearn_core import events
from metalearn_core.data.manifest import Record
from metalearn_core.errors import MetalearnError
from metalearn_core.storage import file_digest, read_json, text_digest, write_bytes, write_json
from metalearn_core.training.engine import EngineChoices

KEPT = 2
LOCK_NAME = ".lock"


class Progress(Record):
    """How far a run has come: the part of a checkpoint that is no tensor.

    Attributes:
        fingerprint: of learner, plan and dataset.
        episodes: training episodes done.
        step: outer steps done.
        seconds: time spent, over all attempts.
        validation_seconds: of these, in validation.
        last_validation_seconds: of these, in the last one.
        validations: of the plan's validations, how many are behind.
        validated_at: the training episodes of the last validation; −1 before the first.
        since_best: validations since the best one.
        best: the best validation accuracy; None before the first.
        finished: nothing is left to do.
        history: a record a validation.
        engine: the choices that the run goes on with.
    """

    fingerprint: str
    episodes: int = 0
    step: int = 0
    seconds: float = 0.0
    validation_seconds: float = 0.0
    last_validation_seconds: float = 0.0
    validations: int = 0
    validated_at: int = -1
    since_best: int = 0
    best: float | None = None
    finished: bool = False
    history: tuple[dict[str, float], ...] = ()
    engine: EngineChoices


class Checkpoints:
    """The folder of one run's checkpoints; the last two are kept, so that a damaged one costs little.

    Args:
        folder: made when needed.
        learner: as warnings name it.
    """

    def __init__(self, folder: Path, learner: str) -> None:
        self.folder, self.learner = folder, learner

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other writers out of the folder; wait for one that is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK_NAME)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            events.emit("note", self.learner, text=f"waiting: another run trains in {self.folder}")
            lock.acquire()
        try:
            for left_behind in self.folder.glob(".*.tmp"):
                left_behind.unlink(missing_ok=True)
            for tensors in self.folder.glob("*.safetensors"):
                if not tensors.with_suffix(".json").exists():
                    tensors.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    def save(self, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Write a checkpoint: the tensors, then the description that makes them count; then drop the oldest."""
        name = f"{1 + max((int(path.stem) for path in self._descriptions()), default=0):012d}"  # none is overwritten
        content = safetensors.torch.save({key: value.detach().contiguous() for key, value in tensors.items()})
        write_bytes(self.folder / f"{name}.safetensors", content)
        described = progress.model_dump(mode="json")
        write_json(
            self.folder / f"{name}.json",
            {
                "progress": described,
                "progress_digest": text_digest(described),
                "tensors_sha256": hashlib.sha256(content).hexdigest(),
            },
        )
        for path in self._descriptions()[KEPT:]:
            path.unlink(missing_ok=True)
            path.with_suffix(".safetensors").unlink(missing_ok=True)

    def load(self, fingerprint: str) -> tuple[Progress, dict[str, Tensor]] | None:
        """Return the newest checkpoint that is whole, or None where there is none at all.

        Raises:
            MetalearnError: it belongs to another run, or all that there are are damaged.
        """
        paths = self._descriptions()
        for path in paths:
            try:
                progress, tensors = self._read(path)
            except MetalearnError as error:
                events.emit("warning", self.learner, text=f"{error}: trying the one before")
                continue
            if progress.fingerprint != fingerprint:
                raise MetalearnError(
                    f"checkpoint: {self.folder} holds a run with another learner, option, plan or dataset: "
                    "take another folder, or discard it with restart"
                )
            return progress, tensors
        if paths:
            raise MetalearnError(
                f"checkpoint: all {len(paths)} in {self.folder} are damaged: discard them with restart"
            )
        return None

    def discard(self) -> None:
        """Remove every checkpoint."""
        for pattern in ("*.json", "*.safetensors"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def _descriptions(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]" * 12 + ".json"), reverse=True)

    def _read(self, path: Path) -> tuple[Progress, dict[str, Tensor]]:
        damaged = MetalearnError(f"checkpoint: {path} is damaged")
        content: Any = read_json(path, "checkpoint")
        tensors_path = path.with_suffix(".safetensors")
        try:
            if text_digest(content["progress"]) != content["progress_digest"]:
                raise damaged
            if not os.access(tensors_path, os.R_OK) or file_digest(tensors_path) != content["tensors_sha256"]:
                raise damaged
            return Progress.model_validate(content["progress"]), safetensors.torch.load_file(tensors_path)
        except (KeyError, TypeError, ValidationError, SafetensorError):
            raise damaged from None
