"""The embedding backbone of a trained learner for other runtimes: ONNX, and torch.export without its pickle."""

import json
import logging
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from metalearn_core.bundle import load_bundle, verify_bundle
from metalearn_core.data.manifest import DatasetSpec, Record
from metalearn_core.errors import MetalearnError, UsageError, one_line
from metalearn_core.storage import file_digest, new_folder, write_json
from metalearn_core.version import library_versions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from metalearn_core.learners.contract import Learner
    from metalearn_core.learners.embedding import EmbeddingLearner

ONNX_NAME, TORCH_NAME, DESCRIPTION_NAME = "backbone.onnx", "backbone.pt2", "backbone.json"
INPUT, OUTPUT = "x", "features"
TOLERANCE = 1e-5
"""How far an export's features may be from the learner's, in units of the largest of them (or of 1)."""
_CHECKED_BATCHES = (1, 5)
_SAMPLE_INPUTS, _CONFIG = "/data/sample_inputs/", "_config.json"


class ExportDescription(Record):
    """The content of `backbone.json`, which stands beside the exports.

    Attributes:
        learner, backbone: what was exported of what.
        bundle_digest: of the bundle that it comes from.
        input: what a row of the input `x` (n, *example_shape) is; its mean and std are part of the graph, and so is
            the division of uint8 by 255.
        feature_size: d of the output `features` (n, d), float32.
        largest_difference: by file, of its features from the learner's, in units of the largest of them (or of 1).
        sha256: by file.
        torch: the version that wrote them.
    """

    learner: str
    backbone: str
    bundle_digest: str
    input: DatasetSpec
    feature_size: int
    largest_difference: dict[str, float]
    sha256: dict[str, str]
    torch: str


def has_embedding(learner: "Learner") -> "TypeGuard[EmbeddingLearner]":
    """Return whether a learner embeds each example on its own, whatever the support set."""
    from metalearn_core.learners.embedding import EmbeddingLearner

    return isinstance(learner, EmbeddingLearner)


def export_backbone(bundle: Path, folder: Path) -> ExportDescription:
    """Write a bundle's backbone as ONNX and as torch.export into a new folder, each held against the learner.

    Args:
        bundle: the bundle's folder.
        folder: must not be there, or be empty.

    Raises:
        UsageError: the learner has no embedding that is the same for every support set, or the folder is taken.
        MetalearnError: the bundle is damaged, the backbone cannot be traced, or an export's features are others.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"export {folder}: there is something already: give another place")
    digest = verify_bundle(bundle)
    learner, description = load_bundle(bundle)
    if not has_embedding(learner):
        raise UsageError(
            f"{description.learner} has no embedding to export: a support set changes its weights, so it takes "
            "`metalearn serve`; learners of the metric family have one"
        )
    with new_folder(folder) as made:
        differences = _write_checked(learner, made)
        found = ExportDescription(
            learner=description.learner,
            backbone=description.backbone,
            bundle_digest=digest,
            input=description.input,
            feature_size=learner.backbone.feature_size,
            largest_difference=differences,
            sha256={name: file_digest(made / name) for name in differences},
            torch=library_versions()["torch"],
        )
        write_json(made / DESCRIPTION_NAME, found.model_dump(mode="json"))
    return found


def _write_checked(learner: "EmbeddingLearner", folder: Path) -> dict[str, float]:
    """Write both files, and return how far the features of each are from the learner's."""
    import torch

    x = _examples(learner.spec, 3)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(_embedding(learner), (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
            _save_without_pickle(program, folder / TORCH_NAME)
            torch.onnx.export(
                program,
                (x,),
                folder / ONNX_NAME,
                input_names=[INPUT],
                output_names=[OUTPUT],
                external_data=False,
                verbose=False,
            )
            differences = _differences(learner, folder)
    except MetalearnError:
        raise
    except Exception as error:  # torch and onnxruntime have no types of their own for what they cannot do
        what = type(learner.backbone).__name__
        raise MetalearnError(f"the backbone {what} cannot be exported: {one_line(error)}") from error
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise MetalearnError(f"{name}: its features differ by {difference:.1e} from the learner's: it is not kept")
    return differences


def _differences(learner: "EmbeddingLearner", folder: Path) -> dict[str, float]:
    """Return by file how far its features are from the learner's, in units of the largest of them (or of 1)."""
    import torch

    readers = {ONNX_NAME: _onnx_reader(folder / ONNX_NAME), TORCH_NAME: _torch_reader(folder / TORCH_NAME)}
    found: dict[str, list[Tensor]] = {name: [] for name in readers}
    for count in _CHECKED_BATCHES:
        x = _examples(learner.spec, count)
        expected = learner.embed(x)
        for name, features in readers.items():
            found[name].append((features(x) - expected).abs().max() / expected.abs().max().clamp_min(1))
    return {name: float(torch.stack(differences).max()) for name, differences in found.items()}  # NaN is the largest


def _embedding(learner: "EmbeddingLearner") -> "torch.nn.Module":
    from torch import nn

    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.learner = learner

        def forward(self, x: "Tensor") -> "Tensor":
            return self.learner.embed(x)

    return Embedding().eval()


def _examples(spec: DatasetSpec, count: int) -> "Tensor":
    """Return examples (count, *x) such as the dataset's might be."""
    import torch

    random = torch.Generator().manual_seed(count)
    shape = (count, *spec.example_shape)
    if spec.dtype == "uint8":
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    return torch.randn(shape, generator=random) * torch.tensor(spec.std) + torch.tensor(spec.mean)


def _save_without_pickle(program: Any, file: Path) -> None:
    """Save an exported program with nothing in the place of its pickled example inputs, which loading does not need.

    Raises:
        MetalearnError: it holds another pickle: a tensor of a kind of its own.
    """
    import torch

    whole = file.with_suffix(".whole.pt2")
    torch.export.save(program, whole)
    with zipfile.ZipFile(whole) as before, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as after:
        for entry in before.infolist():
            content = b"" if _SAMPLE_INPUTS in entry.filename else before.read(entry)
            if entry.filename.endswith(_CONFIG) and (pickled := _pickled(content)):
                raise MetalearnError(f"the backbone cannot be exported without a pickle: {pickled[0]} is one")
            after.writestr(entry.filename, content)
    whole.unlink()


def _pickled(config: bytes) -> list[str]:
    """Return the names of the tensors and constants that torch has pickled, by one of its archive's own lists."""
    listed = json.loads(config)["config"]
    plain = ("weight_", "tensor_")
    return [name for name, kept in listed.items() if kept.get("use_pickle") or not kept["path_name"].startswith(plain)]


def _onnx_reader(file: Path) -> Any:
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


def _torch_reader(file: Path) -> Any:
    import torch

    return torch.export.load(file).module()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch's exporter says of libraries that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
