"""Checkpoints: all that a training run needs to go on as if it had never stopped. Safetensors and JSON, no pickle."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import safetensors.torch
from filelock import FileLock, Timeout
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from metalearn_core import events
from metalearn_core.data.manifest import Record
from metalearn_core.errors import MetalearnError, StorageError
from metalearn_core.storage import file_digest, read_file, read_json, text_digest, write_bytes, write_json
from metalearn_core.storage.mirror import fetch_objects, forget, is_noted, noted_names, remember
from metalearn_core.storage.objects import Prefix, StoredObject
from metalearn_core.storage.place import Place
from metalearn_core.training.engine import EngineChoices
from metalearn_core.training.report import Phase
from metalearn_core.training.sending import Sending

KEPT = 2
LOCK_NAME = ".lock"
_DIGITS = 12
_DESCRIPTIONS = "[0-9]" * _DIGITS + ".json"


class Progress(Record):
    """How far a run has come: the part of a checkpoint that is no tensor.

    Attributes:
        fingerprint: of learner, plan and dataset.
        phase: `pretrain` while a plain classifier trains the learner's backbone, then `train`.
        episodes: training episodes done; a batch of plain examples counts as one.
        pretrained: of these, the batches of a pretraining that is over.
        step: outer steps done.
        seconds: time spent, over all attempts.
        validation_seconds: of these, in validation.
        last_validation_seconds: what the last one took, or is expected to take where it was put off.
        validations: of the plan's validations, how many are behind.
        validated_at: the training episodes of the last validation; −1 before the first.
        since_best: validations since the best one.
        best: the best validation accuracy, in regression error; None before the first.
        finished: nothing is left to do.
        history: a record a validation.
        engine: the choices that the run goes on with.
    """

    fingerprint: str
    phase: Phase = "train"
    episodes: int = 0
    pretrained: int = 0
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
    """The place of one run's checkpoints; the last two are kept, so that a damaged one costs little.

    They are written on this machine, and sent to a bucket beside training, which does not wait for it. Of two machines
    that write to one place in a bucket, the one that is behind stops.

    Args:
        place: made when needed.
        learner: as warnings name it.
    """

    def __init__(self, place: Place, learner: str) -> None:
        self.place, self.learner = place, learner
        self._sending = Sending(self._send)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other writers on this machine out; wait for one that is there."""
        folder = self.place.folder
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_NAME)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            events.emit("note", self.learner, text=f"waiting: another run trains in {self.place}")
            lock.acquire()
        try:
            for left_behind in folder.glob(".*.tmp"):
                left_behind.unlink(missing_ok=True)
            described = {path.stem for path in folder.glob(_DESCRIPTIONS)}
            for tensors in folder.glob("*.safetensors"):
                if tensors.name[:_DIGITS] not in described:
                    tensors.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    def save(self, progress: Progress, tensors: Mapping[str, Tensor], *, wait: float | None = None) -> bool:
        """Write a checkpoint: the tensors, then the description that makes them count; drop the oldest, and send it.

        Args:
            progress, tensors: what it holds.
            wait: seconds to wait for a bucket, at most; None: until it has taken the checkpoint. What it has not taken
                by then is sent later, or the next one in its place.

        Returns:
            whether the checkpoint is where it belongs.

        Raises:
            StorageError: the bucket did not take this one, or the one before; both are on this machine.
            MetalearnError: another machine has written one of these, or a later one, meanwhile.
        """
        names = self._descriptions()
        number = f"{1 + (int(Path(names[0]).stem) if names else 0):0{_DIGITS}d}"  # none is overwritten
        content = safetensors.torch.save({key: value.detach().contiguous() for key, value in tensors.items()})
        digest = hashlib.sha256(content).hexdigest()
        tensors_name, name = f"{number}-{digest[:12]}.safetensors", f"{number}.json"
        write_bytes(self.place.folder / tensors_name, content)
        described = progress.model_dump(mode="json")
        write_json(
            self.place.folder / name,
            {
                "progress": described,
                "progress_digest": text_digest(described),
                "tensors": tensors_name,
                "tensors_sha256": digest,
            },
        )
        for old in names[KEPT - 1 :]:
            if old != self._sending.current:
                self._drop_here(old)
        if self.place.prefix is None:
            return True
        self._sending.give(name)
        return self._sending.wait(wait)

    def load(self, fingerprint: str) -> tuple[Progress, dict[str, Tensor]] | None:
        """Return the newest checkpoint that is whole, or None where there is none at all.

        Raises:
            MetalearnError: it belongs to another run, or all that there are are damaged.
        """
        self._agree()
        names, damaged = self._descriptions(), []
        for name in names:
            try:
                progress, tensors = self._whole(name)
            except StorageError:
                raise
            except MetalearnError as error:
                events.emit("warning", self.learner, text=f"{error}: trying the one before")
                damaged.append(name)
                continue
            if progress.fingerprint != fingerprint:
                raise MetalearnError(
                    f"checkpoint: {self.place} holds a run with another learner, option, plan or dataset: "
                    "take another folder, or discard it with restart"
                )
            for worthless in damaged:  # else the next one to be written would push out the whole one, and keep these
                removed = self._drop_here(worthless)
                if self.place.prefix:
                    self.place.prefix.remove(removed)
            return progress, tensors
        if names:
            raise MetalearnError(f"checkpoint: all {len(names)} in {self.place} are damaged: discard them with restart")
        return None

    def discard(self) -> None:
        """Remove every checkpoint."""
        if self.place.prefix:
            self.place.prefix.remove_all()
        for pattern in ("*.json", "*.safetensors"):
            for path in self.place.folder.glob(pattern):
                path.unlink(missing_ok=True)
        if self.place.prefix:
            forget(self.place.prefix)

    def _agree(self) -> None:
        """Make this machine's copy what is in the bucket: another machine may have gone on meanwhile.

        Where nobody has, later checkpoints that the bucket was not there to take stay.
        """
        prefix, folder = self.place.prefix, self.place.folder
        if prefix is None:
            return
        objects = _checkpoint_objects(prefix)
        folder.mkdir(parents=True, exist_ok=True)
        newest = max((found for found in objects if _describes(found.name)), key=lambda found: found.name, default=None)
        later_count, last = self._goes_on_from(prefix, newest), newest.name[:_DIGITS] if newest else ""
        fetch_objects(prefix, objects)
        there = {found.name for found in objects}
        for path in folder.iterdir():
            later = later_count and path.name[:_DIGITS] > last
            if path.name not in there and not later and path.suffix in {".json", ".safetensors"}:
                path.unlink(missing_ok=True)

    def _goes_on_from(self, prefix: Prefix, newest: StoredObject | None) -> bool:
        """Return whether this machine's later checkpoints go on from the newest one in the bucket.

        A bucket without any is one that never got one from here; else another machine has discarded the run.
        """
        if newest is None:
            return not any(map(_describes, noted_names(prefix)))
        own = self.place.folder / newest.name
        return is_noted(prefix, newest) or (own.is_file() and own.read_bytes() == prefix.read(newest.name))

    def _send(self, name: str) -> None:
        """Send a checkpoint, the description last; then drop the oldest ones in the bucket."""
        prefix, folder = self.place.prefix, self.place.folder
        assert prefix is not None
        taken = MetalearnError(f"checkpoint: another run trains in {self.place}: wait for it, then start again")
        there = [found.name for found in _checkpoint_objects(prefix)]
        others = sorted((each for each in there if _describes(each) and each != name), reverse=True)
        if others and others[0] > name:
            raise taken
        description = read_file(folder / name)
        tensors_name = Path(json.loads(description)["tensors"]).name
        prefix.write_file(tensors_name, folder / tensors_name)
        if not prefix.write_new(name, description):
            raise taken
        remember(prefix, [tensors_name, name])
        oldest = min([name, *others[: KEPT - 1]])[:_DIGITS]
        prefix.remove(each for each in there if each[:_DIGITS].isdigit() and each[:_DIGITS] < oldest)

    def _descriptions(self) -> list[str]:
        """Return the names of this machine's checkpoints, the newest first."""
        return sorted((path.name for path in self.place.folder.glob(_DESCRIPTIONS)), reverse=True)

    def _drop_here(self, name: str) -> list[str]:
        """Remove a checkpoint's files from this machine; return their names."""
        folder = self.place.folder
        names = [name, *(path.name for path in folder.glob(f"{Path(name).stem}-*.safetensors"))]
        for each in names:
            (folder / each).unlink(missing_ok=True)
        return names

    def _whole(self, name: str) -> tuple[Progress, dict[str, Tensor]]:
        """Return a checkpoint; where this machine's copy is damaged, from the bucket anew.

        Raises:
            MetalearnError: it is damaged there too, or has never been there.
        """
        try:
            return self._read(name)
        except StorageError:
            raise
        except MetalearnError:
            if self.place.prefix is None:
                raise
            self._drop_here(name)
            self._agree()
            if name not in self._descriptions():
                raise
        return self._read(name)

    def _read(self, name: str) -> tuple[Progress, dict[str, Tensor]]:
        path = self.place.folder / name
        damaged = MetalearnError(f"checkpoint: {self.place}/{name} is damaged")
        content: Any = read_json(path, "checkpoint")
        try:
            if text_digest(content["progress"]) != content["progress_digest"]:
                raise damaged
            tensors_path = path.with_name(Path(content["tensors"]).name)
            if not os.access(tensors_path, os.R_OK) or file_digest(tensors_path) != content["tensors_sha256"]:
                raise damaged
            return Progress.model_validate(content["progress"]), safetensors.torch.load_file(tensors_path)
        except (KeyError, TypeError, ValidationError, SafetensorError):
            raise damaged from None


def _describes(name: str) -> bool:
    """Return whether a file of this name is a checkpoint's description."""
    return fnmatchcase(name, _DESCRIPTIONS)


def _checkpoint_objects(prefix: Prefix) -> list[StoredObject]:
    return [found for found in prefix.objects() if "/" not in found.name]
