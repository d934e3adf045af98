"""How long it takes to evaluate: 10,000 episodes of a metric learner, and episodes of MAML.

    python -m benchmarks.evaluation [DATASET] [--episodes 10000] [--maml-episodes 600]

Without a dataset, `glyphs` is built into a temporary folder. Weights are untrained: they do not change the work. MAML
with ten inner steps stands beside a loop over the tasks: the same network, weights, episodes and (transductive) mode.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.arithmetic import evaluation
from benchmarks.engine import Network, copy_weights
from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.evaluation.evaluate import Protocol, evaluate
from metalearn_core.evaluation.scoring import Scorer
from metalearn_core.learners import LearnerSpec, make_learner
from metalearn_core.learners.contract import Learner


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", type=Path)
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--maml-episodes", type=int, default=600)
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
        beside_a_loop(dataset, arguments.maml_episodes, arguments.repeats)


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
    learner = make_learner(LearnerSpec(learner="protonet"), dataset.spec)
    sampler = EpisodeSampler(dataset, "test", Protocol().shape, seed=0)
    started = time.perf_counter()
    with Scorer(learner, "transductive") as scorer:
        scorer.score(sampler, episodes)
    spent = time.perf_counter() - started
    print(f"| protonet, transductive | 5 | 1 | {episodes} | | {spent:.2f} | {episodes / spent:.0f} |")


def beside_a_loop(dataset: EpisodeDataset, episodes: int, repeats: int) -> None:
    """Print what MAML with ten inner steps takes, and what a plain loop over the tasks takes for the same answers."""
    options = {"eval_steps": 10, "inner_lr": 0.1, "batch_norm": "transductive"}
    learner = make_learner(LearnerSpec(learner="maml", options=options), dataset.spec, way=5)
    with torch.no_grad():
        learner.head.weight.normal_(std=0.01, generator=torch.Generator().manual_seed(0))
    sampler = EpisodeSampler(dataset, "test", Protocol().shape, seed=0)
    network = Network()
    copy_weights(learner, network)
    bare = evaluation(episodes, inner_steps=10)
    ratios, rates, accuracies = [], [], []
    for _ in range(repeats):
        started = time.perf_counter()
        with Scorer(learner, "transductive") as scorer:
            ours = float(scorer.score(sampler, episodes).accuracy.mean())
        middle = time.perf_counter()
        plain = looped(network, learner, sampler, episodes, steps=10)
        end = time.perf_counter()
        bare()
        last = time.perf_counter()
        ratios.append(((end - middle) / (middle - started), (end - middle) / (last - end)))
        rates.append(tuple(episodes / spent for spent in (middle - started, end - middle, last - end)))
        accuracies.append((ours, plain))
    ours, plain, alone = (statistics.median(column) for column in zip(*rates, strict=True))
    own, possible = zip(*ratios, strict=True)
    print(
        f"\nMAML, ten inner steps, {episodes} episodes: {ours:.0f} episodes a second, a loop over the tasks "
        f"{plain:.0f}; ratio {statistics.median(own):.2f} ({min(own):.2f} to {max(own):.2f}); accuracies "
        f"{accuracies[0][0]:.4f} and {accuracies[0][1]:.4f}; its arithmetic alone {alone:.0f}, "
        f"ratio {statistics.median(possible):.2f} ({min(possible):.2f} to {max(possible):.2f})"
    )


def looped(network: nn.Module, learner: Learner, sampler: EpisodeSampler, episodes: int, steps: int) -> float:
    """Adapt and predict task by task; return the mean accuracy."""
    names = [name for name, _ in network.named_parameters()]
    right = []
    for number in range(episodes):
        episode = sampler.batch(number, 1)
        support, query = (learner.standardise(x[0]) for x in (episode.support_x, episode.query_x))
        weights = [parameter.detach().requires_grad_() for parameter in network.parameters()]
        for _ in range(steps):
            logits = torch.func.functional_call(network, dict(zip(names, weights, strict=True)), support)
            found = torch.autograd.grad(F.cross_entropy(logits, episode.support_y[0]), weights)
            weights = [(w - 0.1 * g).detach().requires_grad_() for w, g in zip(weights, found, strict=True)]
        with torch.no_grad():
            logits = torch.func.functional_call(network, dict(zip(names, weights, strict=True)), query)
        right.append((logits.argmax(1) == episode.query_y[0]).float().mean().item())
    return statistics.fmean(right)


if __name__ == "__main__":
    main()
