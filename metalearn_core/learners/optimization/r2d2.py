"""R2-D2: ridge regression on the features of a support set, solved in closed form, is what training differentiates."""

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from metalearn_core.backbones.contract import Backbone
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.learners.contract import LearnerConfig, LearnerInfo, State, zero_padding
from metalearn_core.learners.embedding import EmbeddingLearner, membership
from metalearn_core.learners.pretrainable import PretrainableConfig


class R2D2Config(PretrainableConfig):
    """The options of r2d2; the paper's learning rate is 5e-3, halved every 2,000 episodes, its train_way 60 (Omniglot).

    The paper learns λ, and so does this. The published code holds it at 50, where it weighs s times as much: see R2D2.
    """

    learning_rate: float = Field(5e-3, gt=0, description="of the outer optimiser at the start")
    ridge: float = Field(50.0, gt=0, description="λ, the penalty on the weights of the regression, at the start")
    scale: float = Field(10.0, gt=0, description="α, which the regression's answers are multiplied by, at the start")
    train_way: int = Field(60, ge=2, description="classes of a training episode, where none is asked for")
    train_query: int = Field(5, ge=1, description="queries per class of a training episode, where none is asked for")


class R2D2(EmbeddingLearner):
    """Ridge regression differentiable discriminator (Bertinetto, Henriques, Torr, Vedaldi 2019).

    With the rows of X (s, d) the features of the support set and those of Y (s, way) its one-hot labels,

        W = argmin ‖X W − Y‖² + λ ‖W‖² = Xᵀ (X Xᵀ + λ I)⁻¹ Y        (section 3.2)

    by Woodbury's identity: the system has the size of the support set, not that of the features. The answers
    α X′ W + β to queries X′ are taken as logits. λ, α and β are meta-learned with the backbone; λ and α by their
    logarithms, which keeps them positive.

    The published code divides X and Y by √s, so that the penalty is s λ: it grows with the support set. Here, by the
    equation, it is λ whatever s is; what was learned with 60 examples stays for 5 or 25. And that code gives X a column
    of ones, for an intercept, which the equation has not.

    A β for all classes alike changes no softmax and no cross-entropy: it is there for real targets Y (s, d) alone,
    where the answers are the means.
    """

    info = LearnerInfo(
        name="r2d2",
        family="optimization",
        paper="Bertinetto, Henriques, Torr, Vedaldi 2019, Meta-learning with Differentiable Closed-form Solvers",
        fixed_way=False,
        targets=("class", "real"),
        transductive=True,
    )
    Config: ClassVar[type[LearnerConfig]] = R2D2Config
    backbone_defaults: ClassVar = {"conv4": {"pooling": "max", "gain": 3**-0.5}}
    config: R2D2Config

    def __init__(self, spec: DatasetSpec, backbone: Backbone, config: R2D2Config, way: int | None = None) -> None:
        super().__init__(spec, backbone, config, way)
        self.log_ridge = nn.Parameter(torch.tensor(math.log(config.ridge)))
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)))
        if spec.target_size is not None:
            self.bias = nn.Parameter(torch.zeros(spec.target_size))

    def adapt_features(
        self, support: Tensor, support_y: Tensor, *, way: int, support_mask: Tensor | None = None
    ) -> State:
        """Return W (b, d, way) from support features (b, s, d), and which classes are present (b, way).

        The system is solved in fp64: without λ it is singular where there are more examples than features.
        """
        rows = zero_padding(support, support_mask)
        if support_y.is_floating_point():
            targets = zero_padding(support_y, support_mask)
            present = targets.new_ones(len(targets), targets.shape[-1], dtype=torch.bool)
        else:
            targets = membership(support_y, way, support_mask, support.dtype)
            present = targets.sum(dim=1) > 0
        with torch.autocast(support.device.type, enabled=False):
            rows64 = rows.double()
            gram = rows64 @ rows64.mT
            identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
            system = gram + self.log_ridge.double().exp() * identity
            factor, _ = torch.linalg.cholesky_ex(system)  # unlike `cholesky` it does not wait for a GPU's verdict
            weight = (rows64.mT @ torch.cholesky_solve(targets.double(), factor)).to(support.dtype)
        return {"weight": weight, "present": present}

    def predict_features(self, state: State, query: Tensor) -> Tensor:
        """Return α X′ W (b, q, way) of query features X′ (b, q, d); of real targets α X′ W + β (b, q, d)."""
        with torch.autocast(query.device.type, enabled=False):
            answers = self.log_scale.exp() * (query @ state["weight"])
        if self.spec.target_size is not None:
            return answers + self.bias
        return torch.where(state["present"].unsqueeze(1), answers, -torch.inf)
