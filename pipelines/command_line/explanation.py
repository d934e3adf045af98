"""How `predict --explain` says what a prediction may go by."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.command_line.options import answers, print_table

if TYPE_CHECKING:
    from metalearn_core.model import Explanation

SHOWN_PROTOTYPES = 3


def reasons_of(explanation: "Explanation", files: Sequence[object], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return what `predict --explain --json` adds to each prediction.

    Args:
        explanation: of the predictions.
        files, labels: the support set.
    """
    classes = explanation.prediction.classes
    to_prototypes = explanation.prototype_distances
    return [
        {
            "nearest": [
                {"file": str(files[place]), "label": labels[place], "distance": distance}
                for place, distance in zip(places.tolist(), distances.tolist(), strict=True)
            ],
            "prototype_distances": None
            if to_prototypes is None
            else dict(zip(classes, to_prototypes[number].tolist(), strict=True)),
        }
        for number, (places, distances) in enumerate(zip(explanation.nearest, explanation.distances, strict=True))
    ]


def print_reasons(predictions: Sequence[dict[str, Any]], explanation: "Explanation") -> None:
    """Print the nearest support files of each prediction, the distances to prototypes, and what adapting moved."""
    answers.print()
    print_table(
        ["file ", "nearest support files ", "distance"],
        [
            ["" if number else entry["file"], near["file"], f"{near['distance']:.3g}"]
            for entry in predictions
            for number, near in enumerate(entry["nearest"])
        ],
    )
    if explanation.prototype_distances is not None:
        answers.print()
        print_table(
            ["file ", "distances to the nearest prototypes "],
            [[entry["file"], _nearest(entry["prototype_distances"])] for entry in predictions],
        )
    if not explanation.decides_by_distance:
        answers.print("\nthis model does not decide by distances: they show what is alike to it", soft_wrap=True)
    adaptation = explanation.adaptation
    if adaptation.layers:
        answers.print()
        print_table(
            ["layer ", "moved by, % of its norm"],
            [
                [layer.layer, "from zero" if layer.relative is None else f"{100 * layer.relative:.1f}"]
                for layer in adaptation.layers
            ],
        )
    if adaptation.support_losses:
        losses = ", ".join(f"{step.steps}: {step.loss:.3g}" for step in adaptation.support_losses)
        answers.print(f"\nloss on the support set after so many inner steps: {losses}", soft_wrap=True)


def adaptation_of(explanation: "Explanation") -> dict[str, Any]:
    """Return what `predict --explain --json` says of adapting."""
    return explanation.adaptation.model_dump(mode="json")


def _nearest(distances: dict[str, float]) -> str:
    shown = sorted(distances.items(), key=lambda item: item[1])[:SHOWN_PROTOTYPES]
    return ", ".join(f"{name} {distance:.3g}" for name, distance in shown)
