"""Parquet with a row an example: encoded images or feature vectors, with label columns, in any order of rows."""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from metalearn_core.data.sources.contract import Color, GreyTest, Item, Loader, Source, SourceClass
from metalearn_core.data.sources.folder import DEFAULT_DOMAIN, copied_state, file_state, readable
from metalearn_core.data.sources.spill import (
    FeatureLoader,
    SpilledGreyTest,
    SpilledImageLoader,
    SpillWriter,
    close_spill,
)
from metalearn_core.errors import MetalearnError
from metalearn_core.events import emit

LABEL_COLUMNS = ("class", "label")
_VALUE_ROWS, _LABEL_ROWS = 256, 8192  # read at a time: images may be large
_BUFFER_BYTES = 2**20  # of a column: without, all that a row group has of it is read before its first rows come
_UNREADABLE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, OSError)


class TableSource(Source):
    """A Parquet file, or a folder of them; `fingerprint` is that of what they are copies of.

    Columns: `image` (bytes of an encoded image, or a struct with `bytes`) or `features` (a list of numbers);
    `class` or `label` (text or whole numbers); if there, `domain` and `id`. Class names that Hugging Face keeps in a
    file's schema are used for its whole-numbered labels; a number without a name, as −1, is then a missing label. The
    labels are read first. Of the encoded examples those that are wanted are copied to a scratch file, so rows may come
    in any order, memory holds an index alone, and a part of a build copies its own share.

    Raises:
        MetalearnError: a file is no Parquet, lacks a column, holds images where the first holds features, or has no
            class names for its numbers where another one has.
    """

    def __init__(self, location: str, path: Path, *, fingerprint: str | None = None) -> None:
        self.location, self._fingerprint = location, fingerprint
        self.files = [path] if path.is_file() else sorted(_parquet_files(path))
        schemas = [_read_schema(file) for file in self.files]
        for file, schema in zip(self.files, schemas, strict=True):
            _require_columns(file, schema)
        self.modality = "image" if "image" in schemas[0].names else "vector"
        self._value: Literal["image", "features"] = "image" if self.modality == "image" else "features"
        for file, schema in zip(self.files, schemas, strict=True):
            if self._value not in schema.names:
                raise MetalearnError(f"source {file}: no column {self._value!r}, as {self.files[0].name} beside it has")
        self._label = {file: _label_column(schema.names) for file, schema in zip(self.files, schemas, strict=True)}
        self._names = {file: _label_names(schema) for file, schema in zip(self.files, schemas, strict=True)}
        self._require_names(schemas)
        self._states = self._states_now()
        self._spill = Path()
        self._rows: list[int] = []
        self._sizes: Counter[int] = Counter()

    def classes(self, scratch: Path) -> list[SourceClass]:
        """Return a class for each label; with a domain column, one for each pair of domain and label."""
        self._spill, self._rows = scratch / "rows", []
        items: dict[tuple[str, str], list[Item]] = defaultdict(list)
        total = 0
        for file in self.files:
            first = total
            for name, domain, key in self._labels(file):
                items[name, domain].append(Item(key, total))
                total += 1
            self._rows.append(total - first)
        if not items:
            raise MetalearnError(f"source {self.location!r}: has no rows")
        return [SourceClass(name, domain, found) for (name, domain), found in items.items()]

    def bring(self, classes: Sequence[SourceClass]) -> None:
        """Copy the examples of some classes to the scratch file, out of the row groups that hold any."""
        wanted = np.zeros(sum(self._rows), bool)
        for found in classes:
            wanted[[item.place for item in found.items]] = True
        emit("progress", "build", done=0.0, total=1.0, text=f"reading {wanted.sum():,} examples")
        try:
            self._spill_rows(wanted)
        finally:  # a file that was replaced meanwhile may be read as damaged, or as anything
            if self._states_now() != self._states:
                raise MetalearnError(
                    f"source {self.location!r}: was changed while it was read: start again when it is complete"
                )

    def loader(self, image_size: int, color: Color) -> Loader:
        """Return what decodes rows."""
        if self.modality == "vector":
            usual = max(self._sizes, key=lambda size: (self._sizes[size], size), default=0)
            return FeatureLoader(str(self._spill), usual)
        return SpilledImageLoader(str(self._spill), image_size, color)

    def grey_test(self) -> GreyTest | None:
        """Return what looks at an image's header."""
        return SpilledGreyTest(str(self._spill)) if self.modality == "image" else None

    def close(self) -> None:
        """Close the scratch file: one that is removed takes its room on the disk until then."""
        close_spill()

    def fingerprint(self) -> str:
        """Digest the paths, sizes and times of the files, unless they are copies of something that has its own."""
        return self._fingerprint or _digest([(str(file), *file_state(file)) for file in self.files])

    def listing_digest(self) -> str:
        """Digest the names, sizes and times of the files as far as copies keep them, or what they are copies of."""
        return self._fingerprint or _digest([(file.name, *copied_state(file)) for file in self.files])

    def _require_names(self, schemas: Sequence[Any]) -> None:
        """Raise a MetalearnError where of two files with numbers for labels only one says what the numbers mean."""
        named = next((file for file in self.files if self._names[file]), None)
        for file, schema in zip(self.files, schemas, strict=True):
            if named and not self._names[file] and _has_numbers(schema):
                raise MetalearnError(f"source {file}: has no names for its classes, as {named.name} beside it has")

    def _states_now(self) -> list[object]:
        return [file_state(file) for file in self.files]

    def _labels(self, file: Path) -> Iterator[tuple[str, str, str]]:
        """Yield class, domain and key of each row of a file."""
        label, names = self._label[file], self._names[file]
        for first, columns in self._batches(file, (label, "domain", "id"), _LABEL_ROWS):
            cells = {name: _cells(file, first, column) for name, column in columns.items()}
            none = [None] * len(cells[label])
            rows = zip(cells[label], cells.get("domain", none), cells.get("id", none), strict=True)
            for row, (given, domain, key) in enumerate(rows, start=first):
                if given is None:
                    raise MetalearnError(f"source {file}: row {row} has no {label}")
                if names and given not in names:
                    raise MetalearnError(
                        f"source {file}: row {row} has no {label}: {given} is none of its {len(names)} names"
                    )
                name = readable(names.get(given, str(given)))
                readable_key = readable(f"{file.name}#{row}" if key is None else str(key))
                if domain is None:
                    yield name, DEFAULT_DOMAIN, readable_key
                else:
                    yield f"{readable(str(domain))}/{name}", readable(str(domain)), readable_key

    def _spill_rows(self, wanted: npt.NDArray[np.bool_]) -> None:
        first = 0
        with SpillWriter(self._spill, len(wanted)) as spill:
            for file, rows in zip(self.files, self._rows, strict=True):
                self._copy(file, wanted[first : first + rows], first, spill)
                first += rows

    def _copy(self, file: Path, wanted: npt.NDArray[np.bool_], first: int, spill: SpillWriter) -> None:
        """Copy the wanted rows of a file, whose row 0 is the source's row `first`; count the sizes of all vectors."""
        vectors = self.modality == "vector"
        for row, columns in self._batches(file, (self._value,), _VALUE_ROWS, None if vectors else wanted):
            column = columns[self._value]
            if vectors:
                self._sizes.update(size for size in pc.list_value_length(column).to_pylist() if size)
            for index in np.flatnonzero(wanted[row : row + len(column)]).tolist():
                content = _features(column[index]) if vectors else _image_bytes(column[index])
                if content is not None:
                    spill.add(first + row + index, content)

    def _batches(
        self, file: Path, columns: Sequence[str], at_once: int, wanted: npt.NDArray[np.bool_] | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number of the first row and those of the columns that are there, so many rows at a time at most.

        Args:
            file: to read.
            columns: by name.
            at_once: rows.
            wanted: (rows,) a row group without any of these is not read; None: all are read.
        """
        row = 0
        try:
            with pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES) as table:
                there = [name for name in columns if name in table.schema_arrow.names]
                for group in range(table.num_row_groups):
                    count = table.metadata.row_group(group).num_rows
                    if wanted is not None and not wanted[row : row + count].any():
                        row += count
                        continue
                    for batch in table.iter_batches(at_once, row_groups=[group], columns=there):
                        yield row, {name: batch.column(name) for name in there}
                        row += batch.num_rows
        except _UNREADABLE as error:
            raise _unreadable(file, f"is damaged near row {row}", error) from None


def _parquet_files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.suffix.lower() == ".parquet" and not file.name.startswith(".")]


def _read_schema(file: Path) -> Any:
    try:
        return pq.read_schema(file)
    except _UNREADABLE as error:
        raise _unreadable(file, "is no Parquet file", error) from None


def _unreadable(file: Path, what: str, error: Exception) -> Exception:
    """Return the error for a file that pyarrow does not read: the system's own, named, where that is what refused."""
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, os.strerror(error.errno), str(file))
    return MetalearnError(f"source {file}: {what}: {str(error).splitlines()[0]}")


def _digest(identity: Sequence[tuple[str | int, ...]]) -> str:
    return hashlib.sha256(repr(list(identity)).encode()).hexdigest()


def _require_columns(file: Path, schema: Any) -> None:
    found = ", ".join(schema.names)
    for name in ("image", "features", *LABEL_COLUMNS, "domain", "id"):
        if schema.names.count(name) > 1:
            raise MetalearnError(f"source {file}: {schema.names.count(name)} columns are named {name!r}")
    if not {"image", "features"} & set(schema.names):
        raise MetalearnError(f"source {file}: no column 'image' or 'features': found {found}")
    if not set(LABEL_COLUMNS) & set(schema.names):
        raise MetalearnError(f"source {file}: no column 'class' or 'label': found {found}")
    if "image" in schema.names:
        kind = schema.field("image").type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise MetalearnError(f"source {file}: column 'image' is {kind}, expected the bytes of encoded images")
    elif not _is_number(getattr(kind := schema.field("features").type, "value_type", None)):
        raise MetalearnError(f"source {file}: column 'features' is {kind}, expected lists of numbers")
    label = schema.field(_label_column(schema.names))
    text = label.type.value_type if pa.types.is_dictionary(label.type) else label.type
    if not (pa.types.is_string(text) or pa.types.is_large_string(text) or pa.types.is_integer(text)):
        raise MetalearnError(f"source {file}: column {label.name!r} is {label.type}, expected text or whole numbers")


def _is_number(kind: Any) -> bool:
    return kind is not None and (pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _label_column(names: Container[str]) -> str:
    return next(name for name in LABEL_COLUMNS if name in names)


def _has_numbers(schema: Any) -> bool:
    """Return whether the labels are whole numbers."""
    return bool(pa.types.is_integer(schema.field(_label_column(schema.names)).type))


def _label_names(schema: Any) -> dict[int, str]:
    """Return the class names that Hugging Face's `ClassLabel` keeps in the schema for numbers."""
    if not _has_numbers(schema):
        return {}
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return dict(enumerate(features[_label_column(schema.names)]["names"]))
    except (KeyError, TypeError, ValueError):
        return {}


def _cells(file: Path, first: int, column: Any) -> list[Any]:
    """Return the values of a column, whose first row has that number."""
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        row = next(row for row, cell in enumerate(column, start=first) if not _is_utf8(cell))
        raise MetalearnError(f"source {file}: row {row} has text that is not UTF-8") from None


def _is_utf8(cell: Any) -> bool:
    try:
        cell.as_py()
    except UnicodeDecodeError:
        return False
    return True


def _image_bytes(cell: Any) -> bytes | None:
    content: Any = cell.as_py()
    if isinstance(content, dict):
        content = content.get("bytes")
    return content if content is None else bytes(content)


def _features(cell: Any) -> bytes | None:
    if not cell.is_valid or not len(cell.values):
        return None
    values = cell.values.cast(pa.float32(), safe=False).fill_null(float("nan")).to_numpy(zero_copy_only=False)
    content: bytes = values.tobytes()
    return content
