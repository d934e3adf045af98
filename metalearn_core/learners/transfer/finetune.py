"""Fine-tuning: a plain classifier's whole backbone, and a new linear head, trained on each support set."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metalearn_core.backbones.functional import channels_last, linear
from metalearn_core.learners.contract import BACKBONE, HEAD, LearnerConfig, LearnerInfo, State, zero_padding
from metalearn_core.learners.embedding import membership
from metalearn_core.learners.transfer.pretraining import PretrainedLearner, PretrainingConfig

BETAS, EPSILON = (0.9, 0.999), 1e-8
_HEAD = f"{HEAD}weight", f"{HEAD}bias"


class FineTuneConfig(PretrainingConfig):
    """The options of finetune. Dhillon et al. take Adam at 5e-5 for 25 steps on far larger networks."""

    eval_steps: int = Field(10, ge=0, le=1000, description="of fine-tuning, each on the whole support set; 0: none")
    inner_optimiser: Literal["adam", "sgd"] = Field("adam", description="of fine-tuning")
    inner_lr: float = Field(1e-3, gt=0, description="learning rate of fine-tuning")
    head: Literal["imprinted", "zero"] = Field(
        "imprinted", description="the new head's start: the mean unit feature of each class, scaled; or zeros"
    )
    scale: float = Field(10.0, gt=0, description="of the imprinted head")


class FineTune(PretrainedLearner):
    """Train everything on the support set (Chen et al. 2019; Dhillon, Chaudhari, Ravichandran, Soatto 2020).

    θ is the pretrained backbone with a new linear head on features of unit length. It takes `eval_steps` steps of
    ∇θ mean cross-entropy over the support set. The head starts at zero, or imprinted (Dhillon et al., section 3.1): its
    rows are the unit mean features of the classes, times `scale`, so that fine-tuning sets out from nearest centroids.

    Batch norm uses the running averages of pretraining all along: an example's features do not depend on others.
    """

    info = LearnerInfo(
        name="finetune",
        family="transfer",
        paper="Dhillon, Chaudhari, Ravichandran, Soatto 2020, A Baseline for Few-Shot Image Classification",
        fixed_way=False,
        stream="examples",
    )
    Config: ClassVar[type[LearnerConfig]] = FineTuneConfig
    config: FineTuneConfig

    def adapt(self, support_x: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None) -> State:
        """Return the fine-tuned weights of b episodes, each (b, …), and which classes are present (b, way).

        Works under `torch.no_grad` and `torch.inference_mode` too; keeps no graph.
        """
        device = support_x.device.type
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            x = self.standardise(support_x.clone() if support_x.is_inference() else support_x)
            x = zero_padding(x, support_mask)
            members = membership(support_y.clone(), way, support_mask, x.dtype)
            present = members.sum(dim=1) > 0
            weights = self._start(x, members)
            moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in weights.items()}
            for step in range(1, self.config.eval_steps + 1):
                gradients = self._gradient({**weights, "present": present}, x, members)
                for name, gradient in gradients.items():
                    weights[name] = weights[name] - self.config.inner_lr * self._direction(
                        gradient, *moments[name], step
                    )
        return {**weights, "present": present}

    def predict(self, state: State, query_x: Tensor, query_mask: Tensor | None = None) -> Tensor:
        """Return logits (b, q, way) of the fine-tuned weights."""
        del query_mask
        return self._logits(state, self.standardise(query_x))

    def compared_features(self, state: State, x: Tensor) -> Tensor:
        """Return features (b, n, d) of unit length: the head sees no others."""
        return F.normalize(super().compared_features(state, x), dim=-1)

    def _start(self, x: Tensor, members: Tensor) -> dict[str, Tensor]:
        """Return the weights (b, …) that fine-tuning sets out from, for x (b, s, *x) and members (b, s, way)."""
        weights = {
            BACKBONE + name: channels_last(parameter.detach()).expand(len(x), *parameter.shape)
            for name, parameter in self.backbone.named_parameters()
        }
        head = x.new_zeros(len(x), members.shape[2], self.backbone.feature_size)
        if self.config.head == "imprinted":
            head = self.config.scale * F.normalize(members.mT @ self._features(weights, x), dim=-1)
        return {**weights, _HEAD[0]: head, _HEAD[1]: head.new_zeros(head.shape[:2])}

    def _gradient(self, state: State, x: Tensor, members: Tensor) -> Mapping[str, Tensor]:
        """Return ∇θ of the mean cross-entropy over the support set, of each episode."""
        leaves = {name: value.detach().requires_grad_() for name, value in state.items() if name != "present"}
        with torch.enable_grad():
            scores = torch.log_softmax(self._logits({**leaves, "present": state["present"]}, x), dim=-1)
            losses = -torch.where(members > 0, scores, 0.0).sum(dim=(1, 2)) / members.sum(dim=(1, 2))
            found = torch.autograd.grad(losses.sum(), list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    def _direction(self, gradient: Tensor, first: Tensor, second: Tensor, step: int) -> Tensor:
        """Return the direction of one step: the gradient, or Adam's (Kingma, Ba 2015), whose moments it moves."""
        if self.config.inner_optimiser == "sgd":
            return gradient
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        corrected, spread = first / (1 - BETAS[0] ** step), second / (1 - BETAS[1] ** step)
        return corrected / (spread.sqrt() + EPSILON)

    def _features(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return features (b, n, d) of unit length of standardised x (b, n, *x)."""
        own = {name.removeprefix(BACKBONE): value for name, value in weights.items() if name.startswith(BACKBONE)}
        features, _ = self.backbone.embed(own, x, self.backbone.running_statistics())
        return F.normalize(features.to(x.dtype), dim=-1)

    def _logits(self, state: State, x: Tensor) -> Tensor:
        """Return logits (b, n, way) of standardised x (b, n, *x); −inf for absent classes."""
        features = self._features(state, x)
        with torch.autocast(x.device.type, enabled=False):
            logits = linear(features, *(state[name] for name in _HEAD))
        return torch.where(state["present"].unsqueeze(1), logits, -torch.inf)
