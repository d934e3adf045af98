"""The verbs that use a trained model: `predict`, `adapt`, `export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from pipelines.command_line.explanation import adaptation_of, print_reasons, reasons_of
from pipelines.command_line.models import ModelArgument
from pipelines.command_line.options import (
    DEFAULT_WORKDIR,
    JsonOption,
    WorkdirOption,
    answers,
    print_json,
    print_table,
    workdir_at,
)

if TYPE_CHECKING:
    from metalearn_core.model import Classifier

_SHOWN_PROBABILITIES = 3


def add_to(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(epilog="Example:  metalearn predict few-shot@champion --support labelled/ --query unlabelled/")(predict)
    app.command(epilog="Example:  metalearn adapt few-shot@champion --support labelled/ -o my-classifier")(adapt)
    app.command(epilog="Example:  metalearn export few-shot@champion -o backbone")(export)


def predict(
    model: ModelArgument,
    query: Annotated[
        Path, typer.Option("--query", help="An image, or a folder of images at any depth; for vectors, a Parquet file.")
    ],
    support: Annotated[
        Path | None,
        typer.Option(
            "--support",
            help="Labelled images, one folder per class; for vectors, a Parquet file.",
            show_default="what `adapt` gave the model",
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the nearest support files, distances, and what adaptation moved.")
    ] = False,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Predict the class of each query from a few labelled examples."""
    from pipelines.folders import image_files
    from pipelines.vectors import named_vectors

    workdir_at(workdir).open_for(model)
    classifier, sources, labels = _adapted(model, support)
    queried: Sequence[Any]
    names: Sequence[Any]
    if classifier.model.description.input.modality == "vector":
        queried, names = named_vectors(query)
    else:
        names = queried = image_files(query)
    explanation = classifier.explain(queried) if explain else None
    prediction = explanation.prediction if explanation else classifier.predict(queried)
    predictions: list[dict[str, Any]] = [
        {
            "file": str(file),
            "label": label,
            "probabilities": {name: float(p) for name, p in zip(prediction.classes, row, strict=True)},
        }
        for file, label, row in zip(names, prediction.labels, prediction.probabilities, strict=True)
    ]
    answer: dict[str, Any] = {"predictions": predictions}
    if explanation:
        for entry, reasons in zip(predictions, reasons_of(explanation, sources, labels), strict=True):
            entry.update(reasons)
        answer |= {
            "adaptation": adaptation_of(explanation),
            "decides_by_distance": explanation.decides_by_distance,
        }
    if json:
        print_json(answer)
        return
    rows = []
    for entry in predictions:
        best = sorted(entry["probabilities"].items(), key=lambda item: -item[1])[:_SHOWN_PROBABILITIES]
        shown = ", ".join(f"{name} {100 * p:.0f} %" for name, p in best)
        rows.append([str(entry["file"]), str(entry["label"]), shown])
    print_table(["file ", "label ", "probabilities "], rows)
    if explanation:
        print_reasons(predictions, explanation)


def adapt(
    model: ModelArgument,
    support: Annotated[
        Path, typer.Option("--support", help="Labelled images, one folder per class; for vectors, a Parquet file.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the new bundle.")],
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Give a model its support set once and for all: a bundle that `predict` takes without --support."""
    workdir_at(workdir).open_for(model)
    classifier, sources, _ = _adapted(model, support)
    classifier.save(output)
    if json:
        print_json({"output": str(output), "classes": classifier.classes, "examples": len(sources)})
        return
    answers.print(Text(f"{output}: {len(sources)} examples of {len(classifier.classes)} classes"), soft_wrap=True)


def _adapted(model: str, support: Path | None) -> "tuple[Classifier, Sequence[object], Sequence[str]]":
    """Return a classifier of a support set, or the one that is in the bundle; and its examples' names and labels."""
    from metalearn_core.errors import UsageError
    from metalearn_core.model import RegressionModel, load_classifier, load_model
    from pipelines.folders import labelled_images
    from pipelines.vectors import labelled_vectors

    loaded = load_model(model)
    if isinstance(loaded, RegressionModel):
        raise UsageError(f"model {model}: predicts numbers, not classes: use it in Python, load_model(…).adapt(x, y)")
    if support is None:
        if not loaded.has_support:
            raise UsageError(f"model {model}: has no support set in it: give --support, or a bundle made by `adapt`")
        classifier = load_classifier(loaded)
        labels = [str(classifier.classes[column]) for column in classifier.support_y.tolist()]
        return classifier, [f"example {number} ({label})" for number, label in enumerate(labels)], labels
    examples: Sequence[Any]
    if loaded.description.input.modality == "vector":
        examples, labels = labelled_vectors(support)
        sources: Sequence[object] = [f"{support} row {number}" for number in range(len(labels))]
    else:
        examples, labels = labelled_images(support)
        sources = examples
    return loaded.adapt(examples, labels), sources, labels


def export(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create for ONNX, torch.export and JSON.")],
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    json: JsonOption = False,
) -> None:
    """Write the embedding backbone as ONNX and as torch.export, each checked against the model."""
    from metalearn_core.bundle_fetch import resolve_model
    from metalearn_core.export import export_backbone

    workdir_at(workdir).open_for(model)
    description = export_backbone(resolve_model(model), output)
    if json:
        print_json({"output": str(output), **description.model_dump(mode="json")})
        return
    for name, difference in description.largest_difference.items():
        shown = f"{output / name}: features differ by at most {difference:.0e} of their size"
        answers.print(Text(shown), soft_wrap=True)
