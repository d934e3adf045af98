"""Meta-training: outer steps over a stream of episodes, validation, early stopping, and checkpoints to go on from."""

import contextlib
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metalearn_core import events
from metalearn_core.backbones.contract import move_averages
from metalearn_core.data.episodes import EpisodeBatch, EpisodeShape
from metalearn_core.data.tasks import stream_of
from metalearn_core.evaluation.metric import metric_of
from metalearn_core.evaluation.scoring import NoNumbersError
from metalearn_core.learners import LearnerSpec, make_learner, resolve_spec
from metalearn_core.learners.contract import ExampleLearner, Learner
from metalearn_core.memory import kept_memory
from metalearn_core.storage.place import Place
from metalearn_core.training.advice import diverged, too_large, unanswered
from metalearn_core.training.budget import Clock, is_spent, share_of_budget, validation_is_due
from metalearn_core.training.checkpoint import Checkpoints, Progress
from metalearn_core.training.engine import Engine, EngineChoices, Gradient
from metalearn_core.training.optimiser import OPTIMISERS, Optimiser
from metalearn_core.training.plan import TrainingPlan, fingerprint, training_shape
from metalearn_core.training.pretraining import Phases
from metalearn_core.training.report import OnMetrics, Phase, Reporter
from metalearn_core.training.saving import Saving
from metalearn_core.training.schedule import learning_rate
from metalearn_core.training.state import pack, told_checkpoint, unpack
from metalearn_core.training.supply import Supply
from metalearn_core.training.termination import SigtermFlag, StopRequested, TrainingStoppedError, sigterm_flag
from metalearn_core.training.validation import validate
from metalearn_core.training.world import ALONE, World

if TYPE_CHECKING:
    from metalearn_core.data.tasks import Tasks

VALIDATION_SEED = 1_000_003
FEW_STEPS = 50


@dataclass(frozen=True)
class FitResult:
    """What a training run ended with.

    Attributes:
        learner: with the best weights, in eval mode.
        history: a record a validation: episodes, seconds, and the metrics.
        seconds: time spent, over all attempts.
        episodes: training episodes done; a batch of plain examples counts as one.
        pretrained: of these, the batches of pretraining.
        best_validation: the best validation accuracy, in regression error; NaN where there was no validation.
        train_shape: of training episodes; None where the learner trains on plain examples.
    """

    learner: Learner
    history: list[dict[str, float]]
    seconds: float
    episodes: int
    pretrained: int
    best_validation: float
    train_shape: EpisodeShape | None


def fit(
    spec: LearnerSpec,
    dataset: "Tasks",
    plan: TrainingPlan,
    *,
    checkpoint_dir: str | Path | None = None,
    restart: bool = False,
    on_metrics: OnMetrics | None = None,
    world: World = ALONE,
) -> FitResult:
    """Meta-train a learner, or go on where an earlier run in `checkpoint_dir` stopped.

    A run of so many episodes, killed at any moment and called again with the same arguments, ends with the same
    weights, byte by byte, on the same type of machine and version of torch.

    Args:
        spec: the learner.
        dataset: whose training split is learned from, and whose validation split chooses the weights; or a distribution
            of regressions.
        plan: budget, shapes, seed.
        checkpoint_dir: a folder or an `s3://` address, for this run alone; of two runs with the same one the second
            waits. None: no checkpoints.
        restart: discard the checkpoints that are there.
        on_metrics: called now and then with metrics by name, and the training episodes so far.
        world: the processes that train together, each of which calls this with the same arguments: the result is that
            of one process, whatever their number. The first one saves and reports.

    Raises:
        UsageError: the shape does not fit the dataset, or an option is wrong; found before training starts.
        MetalearnError: the loss, or an answer in validation, is not finite; a GPU's memory does not hold a step; or the
            checkpoint is of another run, or damaged beyond use.
        TrainingStoppedError: SIGTERM arrived; a checkpoint was written, and sent where the bucket took it at once.
    """
    run = _Run(resolve_spec(spec), dataset, plan, on_metrics, world)
    if checkpoint_dir is None:
        return run.train(None)
    checkpoints = Checkpoints(Place.at(checkpoint_dir), spec.learner)
    with checkpoints.lock() if world.leads else contextlib.nullcontext():
        if restart and world.leads:
            checkpoints.discard()
        world.wait()
        run.resume(checkpoints)
        world.wait()
        return run.train(Saving(checkpoints, run.packed, restarted=restart) if world.leads else None)


class _Run:
    """One training run: its fixed parts, and its state, which is what a checkpoint holds."""

    def __init__(
        self,
        spec: LearnerSpec,
        dataset: "Tasks",
        plan: TrainingPlan,
        on_metrics: OnMetrics | None,
        world: World,
    ) -> None:
        self.spec, self.dataset, self.plan, self.world = spec, dataset, plan, world
        self.learner = make_learner(spec, dataset.spec, way=plan.shape.way, seed=plan.seed)
        self.phases = Phases(self.learner, plan.seed)
        self.config = self.learner.config
        self.metric = metric_of(dataset.spec)
        self.train_shape = training_shape(spec, plan, dataset)
        choices = self._choices(self.phases.first)
        self.device = torch.device(choices.device)
        self.learner.to(self.device)
        self.phases.trained(self.phases.first).to(self.device)
        pretrainer = self.phases.pretrainer
        on_examples = pretrainer.config if pretrainer else self.config if self.train_shape is None else None
        batch_size = getattr(on_examples, "batch_size", None)
        self.supply = Supply(dataset, plan, self.train_shape, batch_size, self.device)
        self.validation = None
        if plan.validations:
            place = dataset.place_for(self.device)
            self.validation = stream_of(dataset, "validation", plan.shape, seed=VALIDATION_SEED, device=place)
        self.progress = Progress(
            fingerprint=fingerprint(spec, plan, dataset.digest), phase=self.phases.first, engine=choices
        )
        self.optimiser = self._new_optimiser()
        self.best = self._weights()
        self.clock = Clock(0.0)
        self.now = 0.0
        self.reporter = Reporter(spec.learner, on_metrics, self.metric) if world.leads else None

    def resume(self, checkpoints: Checkpoints) -> None:
        """Take up the newest checkpoint, where there is one."""
        found = checkpoints.load(self.progress.fingerprint) if self.world.leads else None
        found = told_checkpoint(self.world, found)
        if found is not None:
            self.progress, tensors = found
            self.optimiser = self._new_optimiser()
            self.best = unpack(tensors, self._trained(), self.optimiser)
            if self.world.leads and not self.progress.finished:
                name = self.spec.learner
                text = f"{name}: goes on from training episode {self.progress.episodes:,} of its checkpoint"
                events.emit("note", name, text=text)
            kept, now = self.progress.engine, self._choices(self.progress.phase)
            idle = now.device == "cuda" and kept.chunks < now.chunks  # there are more processes now
            asked = self.plan.chunk is not None and kept.chunks != now.chunks
            if kept.device != now.device or idle or asked:
                self._update(engine=now)
            elif kept.chunks > 1:  # threads change no bit then; there may be more processes now, or fewer
                self._update(engine=kept.model_copy(update={"threads": now.threads}))

    def train(self, saving: Saving | None) -> FitResult:
        """Train until the budget is spent; the first process saves, where there is a place for it."""
        if self.progress.finished:
            return self._result()
        self._say_if_alone()
        self.clock = Clock(self.progress.seconds)
        self.learner.train()
        with contextlib.ExitStack() as stack:
            stack.enter_context(kept_memory())
            stop = stack.enter_context(sigterm_flag())
            stack.enter_context(self.supply.drawing_ahead())
            if not self._ran_to_its_end(saving, stop):
                raise self._stopped(saving)
        if not self.plan.validations:
            self.best = self._weights()
        self._update(finished=True, seconds=self.clock.seconds())
        few = self.progress.step < FEW_STEPS and self._learns()
        if self.plan.seconds is not None and few and self.world.leads:
            trained = f"only {self.progress.episodes} training episodes in {self.progress.seconds:.0f} s"
            events.emit("warning", self.spec.learner, text=f"{self.spec.learner}: {trained}: give it more time")
        if saving:
            saving.at_the_end()
        return self._result()

    def _ran_to_its_end(self, saving: Saving | None, stop: SigtermFlag) -> bool:
        """Train phase by phase; False where SIGTERM came, and nothing of a step that it cut off is held any more."""
        try:
            self._train_phase(saving, stop)
            if self.progress.phase == "pretrain":
                self._begin_meta_training()
                self._train_phase(saving, stop)
        except StopRequested:
            return False
        return True

    def _train_phase(self, saving: Saving | None, stop: SigtermFlag) -> None:
        """Train until the phase, or the budget, is over."""
        saved = time.monotonic()
        if self.reporter:
            self.reporter.begin(self.progress.phase)
        with Engine(self.progress.engine, self.world, stop) as engine:
            while self._advance(engine, stop):
                self._update(engine=engine.choices)
                if saving and time.monotonic() - saved >= self.plan.checkpoint_seconds:
                    saving.on_the_way()
                    saved = time.monotonic()

    def _advance(self, engine: Engine, stop: SigtermFlag) -> bool:
        """Take one outer step, or run the validation episodes where it is time to; False when the phase is over."""
        if self.world.any(stop.is_set()):
            raise StopRequested
        (self.now,) = self.world.agree(self.clock.seconds())
        spent = not self._learns() or is_spent(self.plan, self.progress, self.now)
        if self.validation is not None and validation_is_due(self.plan, self.progress, self.now, spent=spent):
            self._validate(stop, last=spent)
        elif spent or self.phases.pretrained(self.progress, self.plan.episodes, self._share()):
            return False
        else:
            self._step(engine)
        return True

    # The phases: a plain classifier may train the backbone before the learner itself is trained.

    def _trained(self) -> Learner:
        return self.phases.trained(self.progress.phase)

    def _begin_meta_training(self) -> None:
        """Go on from the backbone as it is, with an optimiser that knows nothing; patience counts from here."""
        done = self.progress.episodes
        self._update(phase="train", pretrained=done, since_best=0, engine=self._choices("train"))
        self.optimiser = self._new_optimiser()
        if self.world.leads:
            name = self.spec.learner
            events.emit("note", name, text=f"{name}: pretrained on {done:,} batches of examples, meta-training begins")

    def _new_optimiser(self) -> Optimiser:
        trained = self._trained()
        return OPTIMISERS[trained.config.optimiser](trained.parameters(), self.config.weight_decay)

    # The budget.

    def _learns(self) -> bool:
        """Return whether the learner has weights: one without has nothing to learn."""
        return next(self.learner.parameters(), None) is not None

    def _share(self) -> float:
        return share_of_budget(self.plan, self.progress, self.now)

    # One outer step.

    def _choices(self, phase: Phase) -> EngineChoices:
        """Return the choices for a phase: this process's threads, and for all else what the first process chooses."""
        if phase == "pretrain":
            own = EngineChoices.choose(self.plan, processes=self.world.size)
        else:
            at_once = 1 if self.train_shape is None else self.learner.episodes_at_once(self.train_shape)
            varied = self.train_shape is not None and self.train_shape.varied
            own = EngineChoices.choose(self.plan, self.config.meta_batch, at_once, self.world.size, varied=varied)
        chunks, bf16, graph = self.world.agree(own.chunks, own.precision == "bf16", own.graph)
        precision = "bf16" if bf16 else "fp32"
        return own.model_copy(update={"chunks": int(chunks), "precision": precision, "graph": bool(graph)})

    def _gradient(self, engine: Engine) -> tuple[Gradient, int]:
        """Return the gradient over the next episodes of the stream, and how many they are."""
        first, learner, held = self.progress.episodes - self.progress.pretrained, self._trained(), engine.choices.graph
        if isinstance(learner, ExampleLearner):
            return engine.drawn_gradient(
                learner,
                lambda _, __: self.supply.examples(first, held=held),
                lambda examples: learner.train_examples(*examples),
                1,
            ), 1
        left = self.config.meta_batch if self.plan.episodes is None else self.plan.episodes - self.progress.episodes
        count = min(self.config.meta_batch, left)

        def episodes(chunk: slice, following: slice) -> EpisodeBatch:
            wanted, ahead = (range(first + part.start, first + part.stop) for part in (chunk, following))
            return self.supply.episodes(wanted, ahead, held=held)

        return engine.drawn_gradient(learner, episodes, learner.train_episodes, count), count

    def _step(self, engine: Engine) -> None:
        trained = self._trained()
        config = trained.config
        trained.progress = self.phases.share_of(self.progress.phase, self._share())
        rate = learning_rate(config.learning_rate, config.schedule, trained.progress, config.halvings)
        try:
            gradient, episodes = self._gradient(engine)
        except torch.OutOfMemoryError:
            chunked = engine.choices.chunks < self.config.meta_batch
            raise too_large(self.spec, self.progress.phase, self.train_shape, chunked=chunked) from None
        norm = torch.nn.utils.get_total_norm(gradient.gradients).item()
        if not (math.isfinite(gradient.loss) and math.isfinite(norm)):
            found = f"loss {gradient.loss}, gradient norm {norm}, learning rate {rate:.3g}"
            raise diverged(self.spec, self.progress, self.progress.step + 1, found)
        clip = self.config.gradient_clip
        scale = 1.0 if clip is None or norm <= clip else clip / norm
        gradients = gradient.gradients if scale == 1 else [value * scale for value in gradient.gradients]
        self.optimiser.step(gradients, rate)
        if gradient.statistics:
            move_averages(trained.running_averages(), gradient.statistics)
        self._update(episodes=self.progress.episodes + episodes, step=self.progress.step + 1)
        if self.reporter:
            self.reporter.step(gradient.loss, gradient.accuracy, rate, episodes)
            self.reporter.report(self.progress.episodes, self.now, self._share())

    # Validation.

    def _validate(self, stop: SigtermFlag, *, last: bool) -> None:
        """Run the validation episodes; but for the last time, they are put off where they take too much of the time."""
        assert self.validation is not None
        before = self.progress
        try:
            result = validate(self.learner, self.validation, self.plan, before, self.world, stop, last=last)
        except NoNumbersError as error:
            raise unanswered(self.spec, before, error) from None
        (self.now,) = self.world.agree(self.clock.seconds())
        validation_seconds = before.validation_seconds + result.seconds
        if result.put_off:
            self._update(validation_seconds=validation_seconds, last_validation_seconds=result.expected)
            self._say_put_off(result.expected)
            return
        mean = result.mean
        better = before.best is None or self.metric.better(mean, before.best)
        if better or mean == before.best:
            self.best = self._weights()
        metrics = {f"validation/{self.metric.name}": mean, "validation/ci95": result.half_width}
        recent = self.reporter.recent() if self.reporter else {}
        record = {"episodes": float(before.episodes), "seconds": self.now, **recent, **metrics}
        self._update(
            validation_seconds=validation_seconds,
            last_validation_seconds=result.seconds,
            validations=max(before.validations, math.floor(self._share() * self.plan.validations)),
            validated_at=before.episodes,
            since_best=0 if better else before.since_best + 1,
            best=mean if better else before.best,
            history=(*before.history, record),
        )
        if self.reporter:
            self.reporter.report(before.episodes, self.now, self._share(), metrics)

    def _say_put_off(self, expected: float) -> None:
        if self.world.leads:
            name, seconds = self.spec.learner, self.plan.seconds
            text = f"{name}: a validation takes about {expected:.0f} s of {seconds:g}: there is one, at the end"
            events.emit("warning", name, text=text)

    def _say_if_alone(self) -> None:
        """Say so where the processes have nothing to share."""
        if self.world.size == 1 or self._choices("train").chunks > 1 or not self.world.leads:
            return
        name, no_quicker = self.spec.learner, f"so {self.world.size} processes are no quicker than one"
        if self.train_shape is None:
            text = f"{name} takes one batch a step, {no_quicker}"
        elif self.config.meta_batch == 1:
            text = f"{name} takes one batch a step, {no_quicker}: {name}.meta_batch takes several"
        else:
            text = f"{name}: one process takes all episodes of a step, {no_quicker}: a smaller --chunk shares them out"
        events.emit("warning", name, text=text)

    # State.

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.learner.state_dict().items()}

    def _update(self, **values: object) -> None:
        self.progress = self.progress.model_copy(update=values)

    def packed(self) -> tuple[Progress, dict[str, Tensor]]:
        """Return what a checkpoint holds.

        Raises:
            MetalearnError: a weight is no number.
        """
        if not all(bool(weight.isfinite().all()) for weight in self._trained().parameters()):
            raise diverged(self.spec, self.progress, self.progress.step, "weights that are no numbers")
        if not self.progress.finished:
            self._update(seconds=self.clock.seconds())
        return self.progress, pack(self._trained(), self.optimiser, self.best)

    def _stopped(self, saving: Saving | None) -> TrainingStoppedError:
        """Save the last checkpoint, and return what the first process, which alone knows, says of it."""
        done = f"{self.spec.learner}: stopped by SIGTERM after {self.progress.episodes} training episodes"
        said = saving.when_asked_to_end() if saving else "; without a checkpoint folder they are lost"
        return TrainingStoppedError(done + self.world.tell(said.encode()).decode())

    def _result(self) -> FitResult:
        self.learner.load_state_dict(self.best)
        self.learner.cpu()
        best = self.progress.best
        return FitResult(
            learner=self.learner.eval(),
            history=[dict(record) for record in self.progress.history],
            seconds=self.progress.seconds,
            episodes=self.progress.episodes,
            pretrained=self.progress.pretrained,
            best_validation=math.nan if best is None else best,
            train_shape=self.train_shape,
        )
