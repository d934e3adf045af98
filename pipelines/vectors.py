"""Labelled and unlabelled feature vectors in a Parquet file, as `predict` takes them."""

from pathlib import Path
from typing import Any

from metalearn_core.errors import MetalearnError


def labelled_vectors(path: Path) -> tuple[list[list[float]], list[str]]:
    """Return the vectors of a file and their labels, from the columns `features` and `class` or `label`.

    Raises:
        MetalearnError: the file or a column is not there, or a row lacks one.
    """
    from metalearn_core.data.sources.table import LABEL_COLUMNS

    table = _read(path, "--support")
    label = next((name for name in LABEL_COLUMNS if name in table.column_names), None)
    if label is None:
        raise MetalearnError(f"--support {path}: no column 'class' or 'label': found {', '.join(table.column_names)}")
    labels = table.column(label).to_pylist()
    if None in labels:
        raise MetalearnError(f"--support {path}: row {labels.index(None)} has no {label}")
    return _vectors(table, path, "--support"), [str(value) for value in labels]


def named_vectors(path: Path) -> tuple[list[list[float]], list[str]]:
    """Return the vectors of a file, and what each is called: its `id`, or its row.

    Raises:
        MetalearnError: the file or its column `features` is not there, or a row lacks one.
    """
    table = _read(path, "--query")
    names = table.column("id").to_pylist() if "id" in table.column_names else [None] * table.num_rows
    shown = [f"{path.name}#{row}" if name is None else str(name) for row, name in enumerate(names)]
    return _vectors(table, path, "--query"), shown


def _read(path: Path, option: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise MetalearnError(f"{option}: there is no file {path}: this model takes vectors, from a Parquet file")
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise MetalearnError(f"{option} {path}: is no Parquet file: {str(error).splitlines()[0]}") from None


def _vectors(table: Any, path: Path, option: str) -> list[list[float]]:
    if "features" not in table.column_names:
        raise MetalearnError(f"{option} {path}: no column 'features': found {', '.join(table.column_names)}")
    vectors: list[list[float]] = table.column("features").to_pylist()
    if None in vectors:
        raise MetalearnError(f"{option} {path}: row {vectors.index(None)} has no features")  # type: ignore[arg-type]
    return vectors
