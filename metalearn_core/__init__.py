"""Few-shot meta-learning: episode datasets, learners, training, evaluation with honest statistics, and bundles."""

from importlib import import_module
from typing import Any

_HOMES = {
    "DatasetSpec": "data.manifest",
    "EpisodeBatch": "data.episodes",
    "EpisodeDataset": "data.dataset",
    "EpisodeSampler": "data.sampler",
    "EpisodeShape": "data.episodes",
    "Learner": "learners.contract",
    "MetalearnError": "errors",
    "build_dataset": "data.build",
    "compare": "evaluation.compare",
    "evaluate": "evaluation.evaluate",
    "fit": "training.loop",
    "load_model": "model",
}

__all__ = [
    "DatasetSpec",
    "EpisodeBatch",
    "EpisodeDataset",
    "EpisodeSampler",
    "EpisodeShape",
    "Learner",
    "MetalearnError",
    "build_dataset",
    "compare",
    "evaluate",
    "fit",
    "load_model",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
