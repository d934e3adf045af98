"""MAML's training step beside its peers: the same network, data and precision, and the same gradients.

    pip install higher torchopt graphviz         (peers; where one is missing, its row is left out)
    python -m benchmarks.engine [--dataset FOLDER] [--rounds 7] [--steps 3]

Omniglot's shape: 5-way 1-shot 15-query, conv4-64 with strides, second order, meta-batch 32. Every peer normalises
transductively, since none can do otherwise. Each is a process of its own, with an allocator and threads of its own; in
each round all of them, one after the other, take some steps in a row, as a training does: after a pause the first one
finds the caches full of what others left. A figure is the median of the rounds, a ratio that of the rounds' own ratios
to higher; memory is the largest resident size of the process, data and libraries included. "Its arithmetic alone"
(`benchmarks.arithmetic`) is no contestant, but what no engine on torch's kernels can pass.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.arithmetic import training
from metalearn_core.data.build import build_dataset
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.data.episodes import EpisodeBatch, EpisodeShape
from metalearn_core.data.sampler import EpisodeSampler
from metalearn_core.learners import LearnerSpec, make_learner
from metalearn_core.learners.contract import Learner
from metalearn_core.memory import PeakMemory, kept_memory
from metalearn_core.training.engine import Engine, EngineChoices
from metalearn_core.training.plan import TrainingPlan

WAY, INNER_LR, META_BATCH = 5, 0.4, 32
OURS = ("ours, fp32", "ours, bf16")
PLAIN, VMAP = "a plain loop over tasks", "torch.func.vmap"
PEERS = ("higher", "torchopt")
BARE = {"its arithmetic alone, fp32": torch.float32, "its arithmetic alone, bf16": torch.bfloat16}
Gradients = list[Tensor]
Step = Callable[[], Gradients | None]


class Network(nn.Module):
    """The network as every peer takes it: batch norm always on the statistics of the batch."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (1, 64, 64, 64):
            layers += [nn.Conv2d(inputs, 64, 3, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(64, track_running_stats=False), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, WAY))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, way)."""
        return self.layers(x)


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="that each takes in a row")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, inner_steps, out = arguments.one
        serve(name, arguments.dataset, int(inner_steps), Path(out))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.dataset or Path(scratch) / "glyphs"
        if arguments.dataset is None:
            build_dataset("glyphs", folder)
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
        print(f"| inner steps | what | tasks a second, median | to {base()}, median (range) | memory | difference |")
        print("| --- | --- | --- | --- | --- | --- |")
        for inner_steps in (1, 5):
            table(folder, inner_steps, arguments.rounds, arguments.steps, Path(scratch))


class Contestant:
    """A process that takes a training step whenever it is told to.

    Args:
        name: of what takes it.
        dataset: the episode dataset's folder.
        inner_steps: of MAML.
        out: a file for its first gradient.
    """

    def __init__(self, name: str, dataset: Path, inner_steps: int, out: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.engine", "--dataset", str(dataset)]
        command += ["--one", name, str(inner_steps), str(out)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()
        self.gradient = load_file(out)

    def steps(self, count: int) -> float:
        """Return the seconds of a step, of so many in a row."""
        self._tell(f"{count}")
        return float(self._answer()) / count

    def end(self) -> float:
        """End the process, and return its largest resident size in MB."""
        self._tell("end")
        return float(self._answer())

    def _tell(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("a contestant ended early")
        return answer


def table(dataset: Path, inner_steps: int, rounds: int, steps: int, scratch: Path) -> None:
    """Print the rows for one number of inner steps."""
    names = [*OURS, *BARE, PLAIN, VMAP, *(name for name in PEERS if _installed(name))]
    contestants = {
        name: Contestant(name, dataset, inner_steps, scratch / f"{number}") for number, name in enumerate(names)
    }
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            seconds[name].append(contestant.steps(steps))
    memory = {name: contestant.end() for name, contestant in contestants.items()}
    seconds_of_base = seconds[base()]
    expected = contestants[PLAIN].gradient
    for name, spent in seconds.items():
        ratios = sorted(one / other for one, other in zip(seconds_of_base, spent, strict=True))
        found = contestants[name].gradient
        differences = (
            (value - expected[key]).norm() / expected[key].norm().clamp_min(1e-12) for key, value in found.items()
        )
        difference = f"{max(differences):.1e}" if found else ""
        print(
            f"| {inner_steps} | {name} | {META_BATCH / statistics.median(spent):.1f} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) "
            f"| {memory[name]:.0f} MB | {difference} |",
            flush=True,
        )


def base() -> str:
    """Return the name of what all are compared with: higher, where it is installed."""
    return "higher" if _installed("higher") else PLAIN


def _installed(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def serve(name: str, dataset: Path, inner_steps: int, out: Path) -> None:
    """Be a contestant: write the first gradient, then take as many steps as a line says, and answer with their time."""
    opened = EpisodeDataset.open(dataset)
    batch = EpisodeSampler(opened, "train", EpisodeShape(WAY, 1, 15), seed=0).batch(0, META_BATCH)
    options = {"inner_lr": INNER_LR, "inner_steps": inner_steps, "batch_norm": "transductive"}
    learner = make_learner(LearnerSpec(learner="maml", options=options), opened.spec, way=WAY).train()
    with torch.no_grad():
        learner.head.weight.normal_(std=0.01, generator=torch.Generator().manual_seed(0))
    network = Network()
    copy_weights(learner, network)
    with PeakMemory() as memory, contextlib.ExitStack() as stack:
        step = _step(name, stack, network, learner, batch, inner_steps)
        save_file({f"{number}": value.contiguous() for number, value in enumerate(step() or [])}, out)
        print("ready", flush=True)
        for line in sys.stdin:
            if line.strip() == "end":
                break
            started = time.perf_counter()
            for _ in range(int(line)):
                step()
            print(time.perf_counter() - started, flush=True)
    print(memory.resident_bytes / 2**20, flush=True)


def _step(
    name: str, stack: contextlib.ExitStack, network: Network, learner: Learner, batch: EpisodeBatch, inner_steps: int
) -> Step:
    """Return what a contestant does."""
    if name in BARE:
        stack.enter_context(kept_memory())
        return training(META_BATCH, inner_steps, BARE[name])
    if name in OURS:
        return ours(stack, learner, batch, name.removeprefix("ours, "))
    if name == VMAP:
        return lambda: vmapped(network, batch, learner, inner_steps)
    tasks = [
        (learner.standardise(sx), sy, learner.standardise(qx), qy)
        for sx, sy, qx, qy in zip(batch.support_x, batch.support_y, batch.query_x, batch.query_y, strict=True)
    ]
    function = {PLAIN: plain, "higher": with_higher, "torchopt": with_torchopt}[name]
    return lambda: function(network, tasks, inner_steps)


def copy_weights(learner: Learner, network: Network) -> None:
    """Give the peers' network the learner's weights, which stand in the same order."""
    with torch.no_grad():
        for own, other in zip(network.parameters(), learner.parameters(), strict=True):
            own.copy_(other)


def ours(stack: contextlib.ExitStack, learner: Learner, batch: EpisodeBatch, precision: str) -> Step:
    """Return the engine's step."""
    plan = TrainingPlan(way=WAY, shot=1, query=15, episodes=1, precision=precision)  # type: ignore[arg-type]
    stack.enter_context(kept_memory())
    choices = EngineChoices.choose(plan, len(batch), learner.episodes_at_once(EpisodeShape(WAY, 1, 15)))
    engine = stack.enter_context(Engine(choices))

    def step() -> Gradients:
        return list(engine.gradient(learner, lambda chunk: learner.train_episodes(batch[chunk]), len(batch)).gradients)

    return step


def plain(network: Network, tasks: list[tuple[Tensor, ...]], inner_steps: int) -> Gradients:
    """One task after the other, by functional calls."""
    names = [name for name, _ in network.named_parameters()]
    parameters = list(network.parameters())
    total: Gradients = [torch.zeros_like(parameter) for parameter in parameters]
    for support, labels, query, wanted in tasks:
        weights: Gradients = parameters
        for _ in range(inner_steps):
            logits = torch.func.functional_call(network, dict(zip(names, weights, strict=True)), support)
            found = torch.autograd.grad(F.cross_entropy(logits, labels), weights, create_graph=True)
            weights = [weight - INNER_LR * gradient for weight, gradient in zip(weights, found, strict=True)]
        logits = torch.func.functional_call(network, dict(zip(names, weights, strict=True)), query)
        found = torch.autograd.grad(F.cross_entropy(logits, wanted), parameters)
        total = [sum_ + gradient / len(tasks) for sum_, gradient in zip(total, found, strict=True)]
    return total


def vmapped(network: Network, batch: EpisodeBatch, learner: Learner, inner_steps: int) -> Gradients:
    """All tasks at once, by torch.func."""
    from torch.func import functional_call, grad, vmap

    parameters = dict(network.named_parameters())

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, weights, x), y)

    def task(weights: dict[str, Tensor], sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        for _ in range(inner_steps):
            found = grad(loss)(weights, sx, sy)
            weights = {name: weight - INNER_LR * found[name] for name, weight in weights.items()}
        return loss(weights, qx, qy)

    def total(weights: dict[str, Tensor]) -> Tensor:
        x = learner.standardise(batch.support_x), learner.standardise(batch.query_x)
        losses = vmap(task, in_dims=(None, 0, 0, 0, 0))(weights, x[0], batch.support_y, x[1], batch.query_y)
        return losses.mean()

    return list(grad(total)(parameters).values())


def with_higher(network: Network, tasks: list[tuple[Tensor, ...]], inner_steps: int) -> Gradients:
    """One task after the other, as higher's own example does it."""
    import higher

    network.zero_grad()
    optimiser = torch.optim.SGD(network.parameters(), lr=INNER_LR)
    for support, labels, query, wanted in tasks:
        with higher.innerloop_ctx(network, optimiser, copy_initial_weights=False) as (functional, inner):
            for _ in range(inner_steps):
                inner.step(F.cross_entropy(functional(support), labels))
            (F.cross_entropy(functional(query), wanted) / len(tasks)).backward()
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


def with_torchopt(network: Network, tasks: list[tuple[Tensor, ...]], inner_steps: int) -> Gradients:
    """One task after the other, with torchopt's differentiable optimiser."""
    import torchopt

    network.zero_grad()
    optimiser = torchopt.MetaSGD(network, lr=INNER_LR)
    start_network = torchopt.extract_state_dict(network, by="reference")
    start_optimiser = torchopt.extract_state_dict(optimiser, by="reference")
    parameters = list(network.parameters())
    for support, labels, query, wanted in tasks:
        for _ in range(inner_steps):
            optimiser.step(F.cross_entropy(network(support), labels))
        (F.cross_entropy(network(query), wanted) / len(tasks)).backward()
        torchopt.recover_state_dict(network, start_network)
        torchopt.recover_state_dict(optimiser, start_optimiser)
    return [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]


if __name__ == "__main__":
    main()
