"""Parquet with a row an example: encoded images or feature vectors, with label columns, in any order of rows."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from metalearn_core.data.sources.contract import Color, GreyTest, Item, Loader, Source, SourceClass
from metalearn_core.data.sources.folder import DEFAULT_DOMAIN, readable
from metalearn_core.data.sources.spill import FeatureLoader, Place, SpilledGreyTest, SpilledImageLoader
from metalearn_core.errors import MetalearnError

LABEL_COLUMNS = ("class", "label")
_BATCH_ROWS = 256


class TableSource(Source):
    """A Parquet file, or a folder of them; `fingerprint` is that of what they are copies of.

    Columns: `image` (bytes of an encoded image, or a struct with `bytes`) or `features` (a list of numbers);
    `class` or `label` (text or whole numbers); if there, `domain` and `id`. Class names that Hugging Face keeps in the
    schema are used for whole-numbered labels. The encoded examples are copied to a scratch file, so rows may come in
    any order and memory holds an index alone.

    Raises:
        MetalearnError: a file is no Parquet, lacks a column, or holds images where the first holds features.
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
        self._names = _label_names(schemas[0])
        self._spill = Path()
        self._sizes: Counter[int] = Counter()

    def classes(self, scratch: Path) -> list[SourceClass]:
        """Return a class for each label; with a domain column, one for each pair of domain and label."""
        self._spill = scratch / "rows"
        items: dict[tuple[str, str], list[Item]] = defaultdict(list)
        with self._spill.open("wb") as spill:
            for file in self.files:
                for name, domain, item in self._rows(file, spill):
                    items[name, domain].append(item)
        if not items:
            raise MetalearnError(f"source {self.location!r}: has no rows")
        return [SourceClass(name, domain, found) for (name, domain), found in items.items()]

    def loader(self, image_size: int, color: Color) -> Loader:
        """Return what decodes rows."""
        if self.modality == "vector":
            usual = max(self._sizes, key=lambda size: (self._sizes[size], size), default=0)
            return FeatureLoader(str(self._spill), usual)
        return SpilledImageLoader(str(self._spill), image_size, color)

    def grey_test(self) -> GreyTest | None:
        """Return what looks at an image's header."""
        return SpilledGreyTest(str(self._spill)) if self.modality == "image" else None

    def fingerprint(self) -> str:
        """Digest the paths, sizes and times of the files, unless they are copies of something that has its own."""
        if self._fingerprint is not None:
            return self._fingerprint
        states = [(str(file), file.stat()) for file in self.files]
        identity = [(path, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for path, state in states]
        return hashlib.sha256(repr(identity).encode()).hexdigest()

    def _rows(self, file: Path, spill: BinaryIO) -> Iterator[tuple[str, str, Item]]:
        """Copy the examples of a file to the spill; yield class, domain and item of each row."""
        row = 0
        try:
            with pq.ParquetFile(file) as table:
                label = _label_column(table.schema_arrow)
                wanted = [name for name in (self._value, label, "domain", "id") if name in table.schema_arrow.names]
                for batch in table.iter_batches(_BATCH_ROWS, columns=wanted):
                    columns = {name: batch.column(name) for name in wanted}
                    for position in range(batch.num_rows):
                        yield self._row(file, row, {n: column[position] for n, column in columns.items()}, label, spill)
                        row += 1
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise MetalearnError(f"source {file}: is damaged near row {row}: {str(error).splitlines()[0]}") from None

    def _row(self, file: Path, row: int, cells: dict[str, Any], label: str, spill: BinaryIO) -> tuple[str, str, Item]:
        given = cells[label].as_py()
        if given is None:
            raise MetalearnError(f"source {file}: row {row} has no {label}")
        name = readable(self._names.get(given, str(given)))
        domain = cells["domain"].as_py() if "domain" in cells else None
        key = cells["id"].as_py() if "id" in cells else None
        readable_key = readable(f"{file.name}#{row}" if key is None else str(key))
        content = self._features_of(cells["features"]) if "features" in cells else _image_bytes(cells["image"])
        item = Item(readable_key, None if content is None else _append(spill, content))
        if domain is None:
            return name, DEFAULT_DOMAIN, item
        return f"{readable(str(domain))}/{name}", readable(str(domain)), item

    def _features_of(self, cell: Any) -> bytes | None:
        if not cell.is_valid:
            return None
        values = cell.values.cast(pa.float32(), safe=False).fill_null(float("nan")).to_numpy(zero_copy_only=False)
        self._sizes[len(values)] += 1
        content: bytes = values.tobytes()
        return content


def _parquet_files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.suffix.lower() == ".parquet" and not file.name.startswith(".")]


def _read_schema(file: Path) -> Any:
    try:
        return pq.read_schema(file)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise MetalearnError(f"source {file}: is no Parquet file: {str(error).splitlines()[0]}") from None


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
    label = schema.field(_label_column(schema))
    text = label.type.value_type if pa.types.is_dictionary(label.type) else label.type
    if not (pa.types.is_string(text) or pa.types.is_large_string(text) or pa.types.is_integer(text)):
        raise MetalearnError(f"source {file}: column {label.name!r} is {label.type}, expected text or whole numbers")


def _is_number(kind: Any) -> bool:
    return kind is not None and (pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _label_column(schema: Any) -> str:
    return next(name for name in LABEL_COLUMNS if name in schema.names)


def _label_names(schema: Any) -> dict[int, str]:
    """Return the class names that Hugging Face's `ClassLabel` keeps in the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return dict(enumerate(features[_label_column(schema)]["names"]))
    except (KeyError, TypeError, ValueError):
        return {}


def _image_bytes(cell: Any) -> bytes | None:
    content: Any = cell.as_py()
    if isinstance(content, dict):
        content = content.get("bytes")
    return content if content is None else bytes(content)


def _append(spill: BinaryIO, content: bytes) -> Place:
    offset = spill.tell()
    spill.write(content)
    return offset, len(content)
