"""Promises of training: gradients that are there and right, on any number of threads and on a GPU, and what they do."""

from dataclasses import replace
from unittest import SkipTest

import torch

from metalearn_core.backbones.contract import move_averages
from metalearn_core.data.episodes import EpisodeBatch
from metalearn_core.learners.contract import Learner, query_outcome
from metalearn_core.testing.promises import Promise, promise, require, require_close
from metalearn_core.testing.subject import Subject, gradients, train
from metalearn_core.training.engine import Engine, EngineChoices
from metalearn_core.training.optimiser import OPTIMISERS

PROMISES: list[Promise] = []
STEP_LENGTHS = (1e-1, 1e-2, 1e-3, 1e-4)
OVERFIT_STEPS = {"metric": 200, "optimization": 200, "model": 400, "memory": 600, "transfer": 200}
OVERFIT_RATE = 5e-3
OVERFIT_NOISE = 3.0  # so much that classes cannot be told apart but by heart
OVERFIT_SHARE = 0.5  # of the loss at the start
_LOOK_EVERY = 10
_LOSSES = ("outer loss", "loss of the queries")
_GPU_TOLERANCE = 1e-6


@promise(PROMISES)
def gradients_reach_every_parameter(subject: Subject) -> None:
    """The gradient of the outer loss reaches every parameter, at the start of training or at its end."""
    learner, episodes = subject.make().train(), subject.episodes()
    reached = dict.fromkeys(dict(learner.named_parameters()), False)
    for learner.progress in (0.0, 1.0):
        for name, gradient in gradients(learner, train(learner, episodes).losses.sum()).items():
            require(bool(gradient.isfinite().all()), f"a gradient of {name} that is not finite")
            reached[name] |= bool(gradient.any())
    dead = [name for name, alive in reached.items() if not alive]
    require(not dead, f"gradients of zero: {', '.join(dead)}")


@promise(PROMISES)
def training_has_a_loss_an_episode_and_known_statistics(subject: Subject) -> None:
    """Training gives a loss and an accuracy an episode, and no statistics or those of all `running_averages`."""
    learner, episodes = subject.make().train(), subject.episodes(3)
    outcome, count = train(learner, episodes), 3 if subject.trains_on_episodes else 1
    for name, value in (("losses", outcome.losses), ("accuracies", outcome.accuracies)):
        require(value.shape == (count,), f"{name} of shape {tuple(value.shape)}, not {(count,)}")
    require(not outcome.accuracies.requires_grad, "accuracies with a gradient")
    averages = learner.running_averages()
    if outcome.statistics:
        strange = sorted(outcome.statistics.keys() ^ averages.keys())
        require(not strange, f"statistics and running averages have not the same names: {', '.join(strange)}")
    for name, value in outcome.statistics.items():
        wanted = (count, *averages[name].shape)
        require(value.shape == wanted, f"statistics {name} of shape {tuple(value.shape)}, not {wanted}")
        require(not value.requires_grad, f"statistics {name} with a gradient")


@promise(PROMISES)
def a_small_step_lowers_the_loss(subject: Subject) -> None:
    """A small step against the gradient of the outer loss lowers the loss of the queries.

    (A learner of plain examples, and one that learns from support sets alone, may lower its outer loss instead.)
    """
    episodes = subject.episodes()

    def losses(learner: Learner) -> tuple[float, float]:
        own = train(learner, episodes).losses.mean().item()
        return own, query_outcome(learner(episodes), episodes).losses.mean().item()

    learner = subject.make().train()
    direction = gradients(learner, train(learner, episodes).losses.mean())
    norm = torch.nn.utils.get_total_norm(direction.values())
    before, lowest = losses(learner), [float("inf"), float("inf")]
    for length in STEP_LENGTHS:
        moved = subject.make().train()
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                parameter.sub_(length * direction[name] / norm)
        lowest = [min(pair) for pair in zip(lowest, losses(moved), strict=True)]
    lowered = subject.trains_on_episodes and lowest[1] < before[1]
    if not subject.trains_on_episodes or subject.learns_from == "support":
        lowered = lowered or lowest[0] < before[0]
    steps = ", ".join(f"{length:g}" for length in STEP_LENGTHS)
    found = (f"{name} {was:.6g}, {low:.6g} at best" for name, was, low in zip(_LOSSES, before, lowest, strict=True))
    require(lowered, f"{'; '.join(found)} after steps of length {steps}")


@promise(PROMISES)
def one_episode_is_learned_by_heart(subject: Subject) -> None:
    """Trained on one episode of nearly pure noise, a learner ends with every query right and half the loss.

    (For regression: half the squared error. A learner of plain examples learns a batch of those; one that says that it
    learns from support sets alone is asked for these.)
    """
    steps = subject.overfit_steps or OVERFIT_STEPS[subject.info.family]
    learner = subject.make(dtype=torch.float32, randomise=False).train()
    episode = subject.episodes(1, noise=OVERFIT_NOISE, dtype=torch.float32)
    optimiser = OPTIMISERS[learner.config.optimiser](learner.parameters(), weight_decay=0)
    if subject.learns_from == "support":
        episode = replace(episode, query_x=episode.support_x, query_y=episode.support_y)
    start = loss, accuracy = _answers(subject, learner, episode)
    for step in range(steps):
        learner.progress = step / steps
        outcome = train(learner, episode)
        found = gradients(learner, outcome.losses.mean())
        optimiser.step(list(found.values()), max(learner.config.learning_rate, OVERFIT_RATE))
        if outcome.statistics:
            move_averages(learner.running_averages(), outcome.statistics)
        if step % _LOOK_EVERY == _LOOK_EVERY - 1:
            loss, accuracy = _answers(subject, learner, episode)
            if loss <= OVERFIT_SHARE * start[0] and (accuracy == 1 or subject.target == "real"):
                return
    require(
        False,
        f"after {steps} steps loss {loss:.3g}, accuracy {accuracy:.3g}; before {start[0]:.3g}, {start[1]:.3g}",
    )


def _answers(subject: Subject, learner: Learner, episode: EpisodeBatch) -> tuple[float, float]:
    """Return loss and accuracy of the queries, or of plain examples."""
    outcome = query_outcome(learner(episode), episode) if subject.trains_on_episodes else train(learner, episode)
    return outcome.losses.mean().item(), outcome.accuracies.mean().item()


@promise(PROMISES, lambda subject: subject.trains_on_episodes)
def chunks_and_threads_give_the_same_gradient(subject: Subject) -> None:
    """The outer gradient of several episodes is the same at once, one by one, and (to the last bit) on two threads."""
    learner, episodes = subject.make().train(), subject.episodes(4)
    found = []
    for chunks, threads in ((1, 1), (4, 1), (4, 2)):
        choices = EngineChoices(threads=threads, precision="fp32", chunks=chunks)
        with Engine(choices) as engine:
            found.append(engine.gradient(learner, lambda chunk: learner.train_episodes(episodes[chunk]), 4))
    together, one_by_one, threaded = found
    for (name, _), *values in zip(
        learner.named_parameters(), together.gradients, one_by_one.gradients, threaded.gradients, strict=True
    ):
        require_close(values[1], values[0], f"gradient of {name}, one by one against at once")
        require(torch.equal(values[2], values[1]), f"gradient of {name}: other bits on two threads than on one")
    require(threaded.loss == one_by_one.loss, f"loss {threaded.loss} on two threads, {one_by_one.loss} on one")


@promise(PROMISES)
def a_gpu_gives_the_same_numbers(subject: Subject) -> None:
    """Logits and gradients on a GPU are those on the processor, but for rounding."""
    if not torch.cuda.is_available():
        raise SkipTest("torch finds no GPU here, so that the processor's numbers cannot be compared with a GPU's")
    device = torch.device("cuda")
    episodes, learners = subject.episodes(), (subject.make(), subject.make().to(device))
    on_gpu = episodes.to(device)
    require_close(learners[1](on_gpu).cpu(), learners[0](episodes), "logits on the GPU", _GPU_TOLERANCE)
    here, there = (
        gradients(learner, train(learner.train(), own).losses.sum())
        for learner, own in zip(learners, (episodes, on_gpu), strict=True)
    )
    for name, value in here.items():
        require_close(there[name].cpu(), value, f"gradient of {name} on the GPU", _GPU_TOLERANCE)
