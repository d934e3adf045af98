"""Train learners on one domain each, and test them on every other: cell by cell, each of which is kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import Split
from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.data.subset import only_domain
from metalearn_core.errors import UsageError, unknown
from metalearn_core.evaluation.evaluate import Protocol, evaluate_bundle
from metalearn_core.evaluation.matrix import Cell, Matrix, learner_matrix, write_matrix_page
from metalearn_core.events import emit
from metalearn_core.reuse import kept, result_digest
from metalearn_core.steps.data import wanted_shapes
from metalearn_core.steps.naming import learner_name
from metalearn_core.steps.requests import (
    EvaluationRequest,
    TrainingOrder,
    TrainingRequest,
    TrainingResources,
    check_learners,
)
from metalearn_core.steps.training import BUNDLE, TRAINING, carry_out
from metalearn_core.storage import read_json, write_json
from metalearn_core.storage.place import Place

JSON_NAME, PAGE_NAME = "matrix.json", "matrix.html"
_CELL = "cell.json"


def cross_domain_matrix(
    dataset: str,
    items: Sequence[Mapping[str, Any]],
    request: TrainingRequest,
    evaluation: EvaluationRequest,
    resources: TrainingResources,
    storage: Place,
    domains: Sequence[str] = (),
) -> Matrix:
    """Return the accuracies of learners trained on each domain and tested on each; what was made before is found.

    The dataset's splits stand: a domain is trained on by its training classes and tested on by its test classes, so no
    test class is ever trained on, and where the dataset is split by domain, rows and columns are different domains.
    There is no validation, since few domains have the classes for it: the last weights count. A training or cell that
    is finished is kept in the storage, and a training that was cut off goes on from its checkpoint.

    Args:
        dataset: the episode dataset's location.
        items: the JSON form of each `LearnerSpec`.
        request: shapes, budget and seed of each training.
        evaluation: the episodes of each cell.
        resources: what a training may use; one trains at a time.
        storage: where trainings and cells are kept.
        domains: to be looked at, by name; none: all.

    Raises:
        UsageError: there is no such domain, or none that can be trained on, or tested on; or a learner cannot be.
    """
    opened = EpisodeDataset.open(dataset)
    request = request.model_copy(update={"validations": 0})
    protocol = Protocol(split="test", domain_episodes=0, **evaluation.model_dump())
    names = _domains(opened, domains)
    check_learners(items, request, opened.manifest)
    rows, no_rows = _usable(opened, names, "train", wanted_shapes(request)["train"])
    columns, no_columns = _usable(opened, names, "test", protocol.shape)
    if not rows or not columns:
        what = "trained" if not rows else "tested"
        raise UsageError(f"no domain can be {what} on: {(no_rows if not rows else no_columns)[0]}")
    parts = {name: only_domain(opened, name) for name in columns}
    matrices, total, done = [], len(items) * len(rows) * len(columns), 0
    for item in items:
        cells = []
        for row in rows:
            emit("note", "matrix", text=f"{learner_name(item)}: trains on {row}")
            bundle = _trained(dataset, opened.digest, row, item, request, resources, storage)
            for column in columns:
                cells.append(_cell(bundle, row, column, parts[column], protocol, storage))
                done += 1
                emit("progress", "matrix", done=done, total=total, text=f"{learner_name(item)}: {row} → {column}")
        matrices.append(learner_matrix(learner_name(item), tuple(cells)))
    return Matrix(
        dataset_digest=opened.digest,
        protocol=protocol,
        budget=f"{request.episodes:,} episodes" if request.episodes else f"{request.seconds:g} s",
        seed=request.seed,
        train_domains=tuple(rows),
        test_domains=tuple(columns),
        left_out=(*no_rows, *no_columns),
        learners=tuple(matrices),
    )


def write_matrix(folder: Path, matrix: Matrix) -> None:
    """Write a matrix as JSON and as a page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JSON_NAME, matrix.model_dump(mode="json"))
    write_matrix_page(folder / PAGE_NAME, matrix)


def _domains(dataset: EpisodeDataset, asked: Sequence[str]) -> list[str]:
    found = sorted({entry.domain for entry in dataset.manifest.classes})
    for name in asked:
        if name not in found:
            raise unknown("domain", name, found)
    return list(dict.fromkeys(asked)) or found


def _usable(
    dataset: EpisodeDataset, names: Sequence[str], split: Split, shape: EpisodeShape
) -> tuple[list[str], list[str]]:
    """Return the domains whose classes of a split are enough for such episodes, and the reasons for the others."""
    usable, reasons = [], []
    for name in names:
        try:
            EpisodeSampler(dataset, split, shape, seed=0, domain=name)
        except UsageError as error:
            reasons.append(f"{name} is not {'trained' if split == 'train' else 'tested'} on: {error}")
        else:
            usable.append(name)
    return usable, reasons


def _trained(
    dataset: str,
    digest: str,
    domain: str,
    item: Mapping[str, Any],
    request: TrainingRequest,
    resources: TrainingResources,
    storage: Place,
) -> Path:
    """Return the bundle of a learner that was trained on one domain."""
    key = {"dataset": digest, "domain": domain, "learner": dict(item), "request": request.model_dump()}
    checkpoints = storage / "checkpoints" / result_digest("domain-training", key)

    def make(folder: Path) -> None:
        order = TrainingOrder(
            dataset=dataset,
            item=dict(item),
            request=request,
            resources=resources,
            checkpoints=checkpoints.location,
            bundle=folder / BUNDLE,
            domain=domain,
        )
        write_json(folder / TRAINING, carry_out(order))

    folder, _ = kept(storage / "results", "domain-training", key, make)
    checkpoints.remove()
    return folder / BUNDLE


def _cell(bundle: Path, row: str, column: str, part: EpisodeDataset, protocol: Protocol, storage: Place) -> Cell:
    training = read_json(bundle.parent / TRAINING, "training")
    key = {"dataset": part.digest, "bundle": training["bundle_digest"], "protocol": protocol.model_dump()}

    def make(folder: Path) -> None:
        write_json(folder / _CELL, _measured(bundle, row, column, part, protocol).model_dump(mode="json"))

    folder, _ = kept(storage / "results", "domain-cell", key, make)
    return Cell.model_validate(read_json(folder / _CELL, "cell"))


def _measured(bundle: Path, row: str, column: str, part: EpisodeDataset, protocol: Protocol) -> Cell:
    """Return a cell; without a figure where too few classes are left once those that leaked are left out."""
    try:
        result, _ = evaluate_bundle(bundle, part, protocol)
    except UsageError as error:
        return Cell(trained_on=row, tested_on=column, accuracy=None, ci95=None, ece=None, reason=str(error))
    leaked = result.leakage.finding if result.leakage and result.leakage.class_names else ""
    return Cell(
        trained_on=row,
        tested_on=column,
        accuracy=result.accuracy,
        ci95=result.ci95,
        ece=result.ece,
        reason=leaked,
    )
