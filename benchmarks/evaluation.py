"""How long it takes to evaluate: 10,000 episodes of a metric learner, and episodes of MAML.

    python -m benchmarks.evaluation [DATASET] [--episodes 10000] [--maml-episodes 200]

Without a dataset, `glyphs` is built into a temporary folder. Weights are untrained: they do not change the work.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.evaluation.evaluate import Protocol, evaluate
from metalearn_core.evaluation.scoring import Scorer
from metalearn_core.learners import LearnerSpec, make_learner


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", type=Path)
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--maml-episodes", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.dataset or Path(scratch) / "glyphs"
        if arguments.dataset is None:
            build_dataset("glyphs", folder)
        dataset = EpisodeDataset.open(folder)
        test = dataset.manifest.of_split("test")
        examples = sum(entry.count for entry in test)
        print(f"{len(test)} test classes, {examples} examples, {torch.get_num_threads()} threads\n")
        print("| learner | way | shot | episodes | accuracy, untrained | seconds (best, worst) | episodes a second |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name, way, shot, episodes in (
            ("protonet", 5, 1, arguments.episodes),
            ("protonet", 5, 5, arguments.episodes),
            ("protonet", 20, 1, arguments.episodes),
            ("maml", 5, 1, arguments.maml_episodes),
        ):
            measure(
                dataset, name, Protocol(way=way, shot=shot, episodes=episodes, domain_episodes=0), arguments.repeats
            )
        whole_episodes(dataset, arguments.episodes // 50)


def measure(dataset: EpisodeDataset, name: str, protocol: Protocol, repeats: int) -> None:
    """Print a line for one learner: the best and the worst of several evaluations."""
    learner = make_learner(LearnerSpec(learner=name), dataset.spec, way=protocol.way)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = evaluate(learner, dataset, protocol)
        times.append(time.perf_counter() - started)
    rate = protocol.episodes / min(times)
    print(
        f"| {name} | {protocol.way} | {protocol.shot} | {protocol.episodes} | {result.accuracy:.3f} "
        f"| {min(times):.2f}, {max(times):.2f} | {rate:.0f} |"
    )


def whole_episodes(dataset: EpisodeDataset, episodes: int) -> None:
    """Print what a metric learner takes when it embeds every episode's images anew, as it must when transductive."""
    from metalearn_core.data.sampler import EpisodeSampler

    learner = make_learner(LearnerSpec(learner="protonet"), dataset.spec)
    sampler = EpisodeSampler(dataset, "test", Protocol().shape, seed=0)
    started = time.perf_counter()
    with Scorer(learner, "transductive") as scorer:
        scorer.score(sampler, episodes)
    spent = time.perf_counter() - started
    print(f"| protonet, transductive | 5 | 1 | {episodes} | | {spent:.2f} | {episodes / spent:.0f} |")


if __name__ == "__main__":
    main()
