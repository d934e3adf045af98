"""The step in which the gate decides on promotion."""

from typing import Any

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(
    dataset: Input[Dataset],
    model_name: str,
    version: str,
    way: str,
    shot: str,
    query: int,
    eval_episodes: int,
    eval_seed: int,
    gate: dict[str, Any],
    decision: Output[Artifact],
) -> bool:
    """Compare a version with the champion on the same test episodes, and promote it where the gate's rules allow.

    Args:
        dataset: the pointer that `build_episodes` wrote.
        model_name: the registered model's name.
        version: the candidate.
        way: classes per episode, or a range, as 5-20.
        shot: support examples per class, or a range.
        query: query examples per class.
        eval_episodes: how many episodes.
        eval_seed: of the stream of episodes.
        gate: the rules, by the names of `GateRules`.
        decision: the decision with its reasons and figures, as JSON.

    Returns:
        whether the version is the champion now.
    """
    from pathlib import Path

    from metalearn_core.steps import promotion
    from metalearn_core.steps.data import read_pointer
    from metalearn_core.steps.frame import step
    from metalearn_core.steps.requests import evaluation_request

    with step("promote"):
        request = evaluation_request(way=way, shot=shot, query=query, episodes=eval_episodes, seed=eval_seed)
        return promotion.promote(*read_pointer(dataset.path), model_name, version, request, gate, Path(decision.path))
