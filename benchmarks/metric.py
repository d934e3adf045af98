"""Prototypical networks in training beside what one would write without a package; the same network, data and shape.

    python -m benchmarks.metric IMAGES [--steps 500] [--rounds 3]

IMAGES is a folder of images as `metalearn dataset build` takes it (Omniglot's images_background, say), split by class.
60-way 1-shot 5-query, conv4-64 with strides, Adam 1e-3. Two comparisons, each with the same 1,000 test episodes:

- a training step: ours, bf16 where the processor has it, beside a loop in fp32 on tensors that are in memory;
- from image files to a trained model: ours, which builds a dataset first, beside torch's DataLoader with two workers
  that decode with PIL each time.

Every run is a process of its own, its imports not counted; runs take turns. Figures are medians over the rounds. What
drawing an episode takes of a step stands below.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import BuildOptions
from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.evaluation.scoring import evaluate_episodes
from metalearn_core.learners import LearnerSpec
from metalearn_core.training.loop import fit
from metalearn_core.training.plan import TrainingPlan

WAY, SHOT, QUERY = 60, 1, 5
TEST = EpisodeShape(5, 1, 15)
EPISODES = 1000
DRAWN = 101
OPTIONS = BuildOptions(rotations="none", split_by="class", color="grey")
RUNS = ("step ours", "step plain", "files ours", "files plain")


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, dataset = arguments.one
        print(json.dumps(globals()[name.replace(" ", "_")](arguments.images, Path(dataset), arguments.steps)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        dataset = Path(scratch) / "dataset"
        build_dataset(str(arguments.images), dataset, OPTIONS)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in RUNS}
        for _ in range(arguments.rounds):
            for name in RUNS:
                found[name].append(_run(name, arguments.images, dataset, arguments.steps))
                print(f"{name}: {found[name][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    print("| what | ours, s | plain, s | plain / ours, median (range) | accuracy, % | plain, % |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind, title in (("step", f"{arguments.steps} training steps"), ("files", "the same, from image files")):
        ours, plain = found[f"{kind} ours"], found[f"{kind} plain"]
        ratios = sorted(p["seconds"] / o["seconds"] for o, p in zip(ours, plain, strict=True))
        seconds, accuracies = (
            [statistics.median(run[key] for run in runs) for runs in (ours, plain)] for key in ("seconds", "accuracy")
        )
        print(
            f"| {title} | {seconds[0]:.1f} | {seconds[1]:.1f} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) "
            f"| {100 * accuracies[0]:.2f} | {100 * accuracies[1]:.2f} |"
        )
    runs = found["step ours"]
    drawing, step = (
        1000 * statistics.median(values)
        for values in ([run["drawing"] for run in runs], [run["seconds"] / arguments.steps for run in runs])
    )
    print(f"\nDrawing an episode takes {drawing:.2f} ms of a step of {step:.1f} ms: {100 * drawing / step:.1f} %.")


def _run(name: str, images: Path, dataset: Path, steps: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.metric", str(images), "--steps", str(steps), "--one", name]
    result = subprocess.run([*command, str(dataset)], stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def step_ours(images: Path, dataset: Path, steps: int) -> dict[str, float]:
    """Train on a dataset that is built and open."""
    del images
    return _ours(EpisodeDataset.open(dataset), steps, time.perf_counter())


def files_ours(images: Path, dataset: Path, steps: int) -> dict[str, float]:
    """Build the dataset, open it and train."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=dataset.parent) as scratch:
        build_dataset(str(images), Path(scratch) / "built", OPTIONS)
        return _ours(EpisodeDataset.open(Path(scratch) / "built"), steps, started)


def _ours(dataset: EpisodeDataset, steps: int, started: float) -> dict[str, float]:
    options = {"learning_rate": 1e-3, "schedule": "constant"}
    spec = LearnerSpec(learner="protonet", options=options, backbone_options={"pooling": "stride"})
    shape = {"train_way": WAY, "train_shot": SHOT, "train_query": QUERY}
    plan = TrainingPlan(way=5, shot=1, query=15, episodes=steps, validations=0, **shape)
    result = fit(spec, dataset, plan)
    seconds = time.perf_counter() - started
    scores = evaluate_episodes(result.learner, EpisodeSampler(dataset, "test", TEST, seed=1), EPISODES)
    return {"seconds": seconds, "accuracy": float(scores.accuracy.mean()), "drawing": _drawing(dataset)}


def _drawing(dataset: EpisodeDataset) -> float:
    """Return the median time, in seconds, in which a training episode is drawn."""
    sampler, times = EpisodeSampler(dataset, "train", EpisodeShape(WAY, SHOT, QUERY), seed=0), []
    for number in range(DRAWN):
        started = time.perf_counter()
        sampler.batch(number, 1)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def step_plain(images: Path, dataset: Path, steps: int) -> dict[str, float]:
    """Train in a plain loop in fp32, on tensors in memory."""
    del images
    opened = EpisodeDataset.open(dataset)
    classes = _train_classes(opened)
    stored = [_floats(opened.examples[rows]) for rows in classes]
    generator = torch.Generator().manual_seed(0)

    def episodes() -> Any:
        for _ in range(steps):
            yield _draw(stored, generator)

    return _plain(opened, episodes())


def files_plain(images: Path, dataset: Path, steps: int) -> dict[str, float]:
    """Train in a plain loop that decodes every image of every episode, in two processes beside it."""
    started = time.perf_counter()
    opened = EpisodeDataset.open(dataset)
    names = [entry.name for entry in opened.manifest.of_split("train")]
    files = [sorted(path for path in (images / name).iterdir() if path.is_file()) for name in names]
    loader = DataLoader(_Episodes(files, steps), batch_size=None, num_workers=2)
    return _plain(opened, loader, started)


class _Episodes(Dataset[tuple[Tensor, Tensor]]):
    """Episode i, its images decoded when it is asked for."""

    def __init__(self, files: list[list[Path]], steps: int) -> None:
        self._files, self._steps = files, steps

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(number)
        chosen = torch.randperm(len(self._files), generator=generator)[:WAY]
        rows = []
        for label in chosen.tolist():
            files = self._files[label]
            picked = torch.randperm(len(files), generator=generator)[: SHOT + QUERY]
            rows.append(torch.stack([self._image(files[one]) for one in picked.tolist()]))
        x = torch.stack(rows)
        return x[:, :SHOT].flatten(0, 1), x[:, SHOT:].flatten(0, 1)

    @staticmethod
    def _image(path: Path) -> Tensor:
        with Image.open(path) as image:
            pixels = np.array(image.convert("L").resize((28, 28), Image.Resampling.BICUBIC))
        return _floats(torch.from_numpy(pixels)[None])


def _train_classes(dataset: EpisodeDataset) -> list[slice]:
    entries = dataset.manifest.of_split("train")
    first = [int(dataset.class_offset[entry.id]) for entry in entries]
    return [slice(start, start + entry.count) for start, entry in zip(first, entries, strict=True)]


def _floats(pixels: Tensor) -> Tensor:
    return 1 - pixels.float() / 255


def _draw(stored: list[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    chosen = torch.randperm(len(stored), generator=generator)[:WAY].tolist()
    x = torch.stack(
        [stored[label][torch.randperm(len(stored[label]), generator=generator)[: SHOT + QUERY]] for label in chosen]
    )
    return x[:, :SHOT].flatten(0, 1), x[:, SHOT:].flatten(0, 1)


def _plain(dataset: EpisodeDataset, episodes: Any, started: float | None = None) -> dict[str, float]:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (1, 64, 64, 64):
        layers += [nn.Conv2d(inputs, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()]
    encoder = nn.Sequential(*layers, nn.Flatten())
    optimiser = torch.optim.Adam(encoder.parameters(), lr=1e-3)
    labels = torch.arange(WAY).repeat_interleave(QUERY)
    started = time.perf_counter() if started is None else started
    for support, query in episodes:
        features = encoder(torch.cat([support, query]))
        prototypes = features[: len(support)].view(WAY, SHOT, -1).mean(1)
        loss = F.cross_entropy(-torch.cdist(features[len(support) :], prototypes).square(), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "accuracy": _accuracy(encoder.eval(), dataset)}


@torch.no_grad()
def _accuracy(encoder: nn.Module, dataset: EpisodeDataset) -> float:
    sampler = EpisodeSampler(dataset, "test", TEST, seed=1)
    right = []
    for number in range(EPISODES):
        batch = sampler.batch(number, 1)
        support, query = (encoder(_floats(x[0])) for x in (batch.support_x, batch.query_x))
        prototypes = torch.stack([support[batch.support_y[0] == label].mean(0) for label in range(TEST.way)])
        right.append((torch.cdist(query, prototypes).argmin(1) == batch.query_y[0]).float().mean())
    return float(torch.stack(right).mean())


if __name__ == "__main__":
    main()
