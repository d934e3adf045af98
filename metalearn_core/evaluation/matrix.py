"""How far a learner carries from the domain that it was trained on to others: a matrix, and a page that shows it."""

from pathlib import Path

import numpy as np

from metalearn_core.data.manifest import Record
from metalearn_core.evaluation.evaluate import Protocol
from metalearn_core.pages import render_page
from metalearn_core.storage import write_bytes

TEMPLATE = Path(__file__).with_name("matrix.html.j2")


class Cell(Record):
    """One learner, trained on the training classes of one domain, on the test classes of another (or of the same).

    Attributes:
        trained_on, tested_on: the domains.
        accuracy: a fraction; None: it could not be measured.
        ci95: half-width over episodes: about this model on these classes.
        ece: expected calibration error.
        reason: why there is no figure, or what was left out since it leaked; empty where all is well.
    """

    trained_on: str
    tested_on: str
    accuracy: float | None
    ci95: float | None
    ece: float | None
    reason: str = ""


class LearnerMatrix(Record):
    """All cells of one learner, row by row.

    Attributes:
        name: with the options that were set.
        cells: row by row: by the domain that was trained on, then the one that was tested on.
        compared: the domains tested on that have both kinds of cell. The means are over these alone, each weighing the
            same, so that they differ by the training alone; where there are none, each is over the domains it has.
        within: mean accuracy on held-out classes of the domain that was trained on; None where there are none.
        across: mean accuracy on other domains; likewise.
    """

    name: str
    cells: tuple[Cell, ...]
    compared: tuple[str, ...]
    within: float | None
    across: float | None

    def cell(self, trained_on: str, tested_on: str) -> Cell:
        """Return one cell."""
        return next(one for one in self.cells if (one.trained_on, one.tested_on) == (trained_on, tested_on))


class Matrix(Record):
    """Learners by the domain that they were trained on and the domain that they were tested on.

    Attributes:
        dataset_digest: of the whole dataset.
        protocol: of each cell.
        budget: of each training, in words.
        seed: of each training.
        train_domains, test_domains: the rows and columns.
        left_out: why a domain is no row, or no column.
        learners: a matrix each.
    """

    dataset_digest: str
    protocol: Protocol
    budget: str
    seed: int
    train_domains: tuple[str, ...]
    test_domains: tuple[str, ...]
    left_out: tuple[str, ...]
    learners: tuple[LearnerMatrix, ...]


def learner_matrix(name: str, cells: tuple[Cell, ...]) -> LearnerMatrix:
    """Return the matrix of one learner with its means over what was measured."""

    same: dict[str, list[float]] = {}
    other: dict[str, list[float]] = {}
    for one in cells:
        if one.accuracy is not None:
            (same if one.trained_on == one.tested_on else other).setdefault(one.tested_on, []).append(one.accuracy)
    compared = tuple(column for column in same if column in other)

    def mean(found: dict[str, list[float]]) -> float | None:
        columns = [float(np.mean(found[column])) for column in compared or found]
        return float(np.mean(columns)) if columns else None

    return LearnerMatrix(name=name, cells=cells, compared=compared, within=mean(same), across=mean(other))


def write_matrix_page(path: Path, matrix: Matrix) -> None:
    """Write the matrices as heat maps on one self-contained page; all learners share the scale."""
    known = [cell.accuracy for one in matrix.learners for cell in one.cells if cell.accuracy is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)

    def heat(accuracy: float) -> int:
        """Return how much of the colour a cell gets, in per cent: it stays readable."""
        return round(5 + 60 * (accuracy - low) / max(high - low, 1e-9))

    write_bytes(path, render_page(TEMPLATE, matrix=matrix, heat=heat, scale=(low, high)).encode())
