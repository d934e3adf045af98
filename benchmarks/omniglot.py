"""Our learners against plain loops on Omniglot's background set, split by alphabet, on the same test episodes.

    python -m benchmarks.omniglot images_background [--seconds 600] [--maml-seconds 900] [--only protonet,maml]

The loops train one after the other, each for the same time on the whole machine. Prints a table in Markdown, and writes
the figures as JSON with -o.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.plain_loops import PlainMAML, draw_from, plain_maml, plain_protonet
from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.episodes import EpisodeBatch, EpisodeShape
from metalearn_core.data.manifest import BuildOptions, Split
from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.evaluation.scoring import evaluate_episodes
from metalearn_core.evaluation.statistics import paired, t_interval
from metalearn_core.learners import parse_spec
from metalearn_core.learners.contract import BatchNormMode, Learner
from metalearn_core.training.loop import fit
from metalearn_core.training.plan import TrainingPlan

VALIDATION = ("Blackfoot", "Balinese", "Inuktitut", "Greek", "Malay")
TEST = ("Burmese", "Syriac", "N_Ko", "Anglo-Saxon_Futhorc", "Gujarati")
EPISODES = 1000
TEST_SEED = 20

Accuracies = NDArray[np.float64]


def main() -> None:
    """Train, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="Omniglot's images_background")
    parser.add_argument("--seconds", type=float, default=600, help="of training, for protonet and transfer")
    parser.add_argument("--maml-seconds", type=float, default=900)
    parser.add_argument("--only", default="protonet,transfer,maml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="LEARNER.OPTION=VALUE")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        options = BuildOptions(split_file=split_by_alphabet(arguments.images))
        build_dataset(str(arguments.images), Path(scratch) / "omniglot", options)
        dataset = EpisodeDataset.open(Path(scratch) / "omniglot")
    print(f"dataset {dataset.digest}, {EPISODES} test episodes, {torch.get_num_threads()} threads\n")
    benchmark = Benchmark(dataset, arguments.seed, arguments.set)
    for name in arguments.only.split(","):
        getattr(benchmark, name)(arguments.maml_seconds if name == "maml" else arguments.seconds)
    print("\n| learner | mode | seconds | shape | accuracy, % | plain loop, % | difference | of training |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in benchmark.rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    if arguments.output:
        arguments.output.write_text(json.dumps(benchmark.rows, indent=2))


def split_by_alphabet(images: Path) -> tuple[tuple[str, Split], ...]:
    """Return (class, split) for every character, by its alphabet."""

    def split(alphabet: str) -> Split:
        return "validation" if alphabet.startswith(VALIDATION) else "test" if alphabet.startswith(TEST) else "train"

    folders = sorted(path for path in images.glob("*/*") if path.is_dir())
    return tuple((f"{path.parent.name}/{path.name}", split(path.parent.name)) for path in folders)


class Benchmark:
    """Trains each learner and its plain loop, and collects a row for each comparison."""

    def __init__(self, dataset: EpisodeDataset, seed: int, settings: list[str]) -> None:
        self.dataset, self.seed, self.settings = dataset, seed, settings
        self.rows: list[dict[str, str]] = []
        entries = dataset.manifest.of_split("train")
        rows = torch.stack([torch.arange(20) + dataset.class_offset[entry.id] for entry in entries])
        self.draw = draw_from(dataset.examples[rows, 0])

    def protonet(self, seconds: float) -> None:
        """Compare at 5 and 20 ways; the same model for both."""
        encoder = plain_protonet(self.draw, seconds, self.seed)

        def plain(batch: EpisodeBatch) -> torch.Tensor:
            support, query = (
                encoder(ink(x.flatten(0, 1))).view(*x.shape[:2], -1) for x in (batch.support_x, batch.query_x)
            )
            return -torch.cdist(query, support.gather(1, order(batch).unsqueeze(-1).expand_as(support)))

        learner, note = self._fit("protonet", seconds, [])
        for way in (5, 20):
            self._compare("protonet", learner, "inductive", seconds, way, note, self._plain(plain, way))

    def transfer(self, seconds: float) -> None:
        """Report alone."""
        learner, note = self._fit("transfer", seconds, [])
        for way in (5, 20):
            self._compare("transfer", learner, "inductive", seconds, way, note, None)

    def maml(self, seconds: float) -> None:
        """Compare both modes with the plain loop, which is transductive."""
        model = plain_maml(self.draw, seconds, self.seed)
        accuracies = self._plain(lambda batch: maml_logits(model, batch), 5)
        modes: tuple[BatchNormMode, ...] = ("transductive", "inductive")
        for mode in modes:
            learner, note = self._fit("maml", seconds, [f"batch_norm={mode}"])
            self._compare("maml", learner, mode, seconds, 5, note, accuracies)

    def _fit(self, name: str, seconds: float, settings: list[str]) -> tuple[Learner, str]:
        own = [text.removeprefix(f"{name}.") for text in self.settings if text.startswith(f"{name}.")]
        spec = parse_spec(name, dict(text.split("=", 1) for text in [*settings, *own]))
        plan = TrainingPlan(way=5, shot=1, query=15, seconds=seconds, seed=self.seed)
        result = fit(spec, self.dataset, plan)
        note = f"{result.episodes} episodes, validation {result.best_validation:.1%}"
        print(f"{name} {settings}: {note}")
        return result.learner, note

    def _sampler(self, way: int) -> EpisodeSampler:
        return EpisodeSampler(self.dataset, "test", EpisodeShape(way, 1, 15), seed=TEST_SEED)

    def _plain(self, logits: Callable[[EpisodeBatch], torch.Tensor], way: int) -> Accuracies:
        sampler, parts = self._sampler(way), []
        for first in range(0, EPISODES, 10):
            batch = sampler.batch(first, 10)
            parts.append((logits(batch).argmax(-1) == batch.query_y).double().mean(1).detach())
        return torch.cat(parts).numpy()

    def _compare(
        self,
        name: str,
        learner: Learner,
        mode: BatchNormMode,
        seconds: float,
        way: int,
        note: str,
        plain: Accuracies | None,
    ) -> None:
        ours = evaluate_episodes(learner, self._sampler(way), EPISODES, mode).accuracy
        row = {"learner": name, "mode": mode, "seconds": f"{seconds:g}", "shape": f"{way}-way 1-shot"}
        row["accuracy"] = percent(ours)
        row["plain"] = percent(plain) if plain is not None else ""
        row["difference"] = ""
        if plain is not None:
            difference = paired(ours, plain)
            row["difference"] = f"{difference.difference:+.2%} ({difference.low:+.2%} to {difference.high:+.2%})"
        row["training"] = note
        self.rows.append(row)
        print(row)


def ink(x: torch.Tensor) -> torch.Tensor:
    """Return bytes as the plain loops take them: floats, ink 1."""
    return 1 - x.float() / 255


def order(batch: EpisodeBatch) -> torch.Tensor:
    """Return the places of a 1-shot support set, sorted by class (b, way)."""
    return batch.support_y.argsort(1)


def maml_logits(model: PlainMAML, batch: EpisodeBatch) -> torch.Tensor:
    """Return the plain loop's logits (b, q, way) after three inner steps."""
    logits = []
    for support, labels, query in zip(batch.support_x, batch.support_y, batch.query_x, strict=True):
        weights = model.adapted(ink(support), labels, 3, False)
        with torch.no_grad():
            logits.append(model.logits(weights, ink(query)))
    return torch.stack(logits)


def percent(accuracies: Accuracies) -> str:
    """Return a mean with its 95 % half-width."""
    interval = t_interval(accuracies)
    return f"{100 * interval.mean:.2f} ± {100 * interval.half_width:.2f}"


if __name__ == "__main__":
    main()
