"""Regression of sinusoids from ten points and from five, beside the figures of MAML's paper.

    python -m benchmarks.sinusoid [--iterations 70000] [--seeds 0,1,2] [--learners maml,joint]

The tasks and settings of Finn, Abbeel, Levine 2017, section 5.1: two layers of 40 ReLU units, 25 tasks a meta-batch,
10 points to adapt to in training. Each learner is trained on as many iterations, and tested on the same tasks after 1,
5 and 10 inner steps, on 100 other points a task. `joint` is the paper's baseline, one network trained on all tasks at
once and fine-tuned at test: Reptile of one inner step is that (Nichol, Achiam, Schulman 2018, section 5.1).
"""

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metalearn_core.data.sinusoid import SinusoidTasks
from metalearn_core.errors import MetalearnError
from metalearn_core.evaluation.evaluate import Protocol, evaluate
from metalearn_core.evaluation.regression import RegressionEvaluation
from metalearn_core.learners import LearnerSpec
from metalearn_core.learners.contract import Learner
from metalearn_core.training.loop import fit
from metalearn_core.training.plan import TrainingPlan

META_BATCH, TRAIN_POINTS = 25, 10
POINTS, STEPS = (10, 5), (1, 5, 10)
TEST_TASKS, TEST_QUERIES, TEST_SEED = 1000, 100, 20
BACKBONE: dict[str, Any] = {"backbone": "mlp", "backbone_options": {"hidden": (40, 40)}}
PAPER = {"maml": (0.67, 0.38, 0.35), "joint": (2.41, 2.23, 2.19)}  # it does not say of how many points


@dataclass(frozen=True)
class Contestant:
    """A learner with its settings.

    Attributes:
        learner: its name in the package.
        options: that differ from its defaults.
        train_points: a task in training.
    """

    learner: str
    options: dict[str, Any]
    train_points: int = TRAIN_POINTS


ADAM = {"learning_rate": 1e-3, "schedule": "constant"}
SGD_INSIDE = {"inner_optimiser": "sgd", "inner_batch": 10, "optimiser": "adam"}
CONTESTANTS = {
    "maml": Contestant("maml", {**ADAM, "inner_lr": 0.01, "inner_steps": 1, "train_query": 10}),
    "metasgd": Contestant("metasgd", {**ADAM, "inner_steps": 1, "train_query": 10}),
    # The authors' demonstration: 50 points a task, mini-batches of 10, outer rate 0.1 down to zero. Its inner rate of
    # 0.02, with tanh units, diverges with these.
    "reptile": Contestant(
        "reptile",
        {"inner_optimiser": "sgd", "inner_lr": 0.01, "inner_batch": 10, "inner_steps": 5, "learning_rate": 0.1},
        train_points=50,
    ),
    "cnp": Contestant("cnp", {"train_query": 10}),
    # A step of SGD moves by −α∇L, so the outer gradient θ − φ is α∇L, whose size Adam takes no notice of.
    "joint": Contestant("reptile", {**ADAM, **SGD_INSIDE, "inner_lr": 0.01, "inner_steps": 1}),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and test, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=70_000, help="outer steps of each training")
    parser.add_argument("--seeds", default="0", help="of training, as 0,1,2")
    parser.add_argument("--learners", default=",".join(CONTESTANTS))
    asked = parser.parse_args(arguments)
    seeds, names = [int(text) for text in asked.seeds.split(",")], asked.learners.split(",")
    if unknown := set(names) - set(CONTESTANTS):
        parser.error(f"--learners: there is no {unknown.pop()!r}: there are {', '.join(CONTESTANTS)}")
    print("| learner | points | after 1 step | 5 | 10 | paper, of either | tasks a second in training | parameters |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in names:
        trained = [trained_learner(CONTESTANTS[name], asked.iterations, seed) for seed in seeds]
        for points in POINTS:
            print(_row(name, points, trained), flush=True)
    return 0


def trained_learner(contestant: Contestant, iterations: int, seed: int) -> tuple[Learner, float]:
    """Return a learner after so many outer steps, and how many tasks a second they took."""
    spec = LearnerSpec(learner=contestant.learner, options={**contestant.options, "meta_batch": META_BATCH}, **BACKBONE)
    plan = TrainingPlan(
        way=1, shot=TRAIN_POINTS, query=TRAIN_POINTS, train_shot=contestant.train_points,
        episodes=iterations * META_BATCH, seed=seed, validations=0,
    )  # fmt: skip
    started = time.perf_counter()
    learner = fit(spec, SinusoidTasks(), plan).learner.eval()
    rate = iterations * META_BATCH / (time.perf_counter() - started)
    return learner, rate


def errors(learner: Learner, points: int) -> list[RegressionEvaluation | None]:
    """Return the evaluations after 1, 5 and 10 inner steps; of a learner that takes none, a single one.

    None: an answer was no number, as where the steps are larger than the curvature lets them be.
    """
    protocol = Protocol(way=1, shot=points, query=TEST_QUERIES, episodes=TEST_TASKS, seed=TEST_SEED)
    if not hasattr(learner.config, "eval_steps"):
        return [_evaluated(learner, protocol)]
    found = []
    for steps in STEPS:
        shorter = copy.copy(learner)  # shares the weights
        shorter.config = learner.config.model_copy(update={"eval_steps": steps})
        found.append(_evaluated(shorter, protocol))
    return found


def _evaluated(learner: Learner, protocol: Protocol) -> RegressionEvaluation | None:
    try:
        return evaluate(learner, SinusoidTasks(), protocol)
    except MetalearnError:
        return None


def _row(name: str, points: int, trained: Sequence[tuple[Learner, float]]) -> str:
    found = [errors(learner, points) for learner, _ in trained]
    cells = [_figure([own[number] for own in found]) for number in range(len(found[0]))]
    cells += [""] * (len(STEPS) - len(cells))
    paper = ", ".join(f"{value:.2f}" for value in PAPER[name]) if name in PAPER else ""
    rate = float(np.median([rate for _, rate in trained]))
    parameters = sum(value.numel() for value in trained[0][0].parameters())
    return f"| {name} | {points} | {' | '.join(cells)} | {paper} | {rate:,.0f} | {parameters:,} |"


def _figure(evaluated: Sequence[RegressionEvaluation | None]) -> str:
    """Return the mean squared error: of one seed with its interval over tasks, of several their mean and range."""
    found = [one for one in evaluated if one]
    if len(found) < len(evaluated):
        return f"diverges ({len(evaluated) - len(found)} of {len(evaluated)})"
    values = [one.mse for one in found]
    if len(found) == 1:
        return f"{values[0]:.3f}" + (f" ± {found[0].ci95:.3f}" if found[0].ci95 else "")
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    sys.exit(main())
