"""Bundles of registered versions: what comes is what was registered."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from metalearn_core.bundle import DESCRIPTION_NAME, DamagedError, verify_bundle
from metalearn_core.bundle_fetch import fetch_bundle
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.errors import MetalearnError
from metalearn_core.model import load_model


def test_a_bundle_that_was_exchanged_with_its_sums_is_refused(
    workshop: Any, client: MlflowClient, small_dataset: EpisodeDataset, good: Path, database: str, tmp_path: Path
) -> None:
    workshop.register(good, "exchanged")
    assert load_model("models:/exchanged/1").digest == verify_bundle(good)
    other = workshop.make_bundle(tmp_path / "other", small_dataset, seed=5)
    kept = Path(database.removeprefix("sqlite:///")).parent
    [place] = [
        file.parent for file in kept.rglob(DESCRIPTION_NAME) if verify_bundle(file.parent) == verify_bundle(good)
    ]
    for file in other.iterdir():
        shutil.copy(file, place / file.name)
    assert verify_bundle(place) == verify_bundle(other)
    with pytest.raises(MetalearnError, match="version 1 of exchanged: its bundle is not the one that was registered"):
        fetch_bundle("exchanged", None, "1")


def test_a_bundle_that_is_gone_is_missed_where_it_was(workshop: Any, client: MlflowClient, good: Path) -> None:
    workshop.register(good, "emptied")
    model_id = client.get_model_version("emptied", "1").source.removeprefix("models:/")
    location = client.get_logged_model(model_id).artifact_location
    shutil.rmtree(location.removeprefix("file://"))
    with pytest.raises(DamagedError, match=f"version 1 of emptied: its bundle is gone from {location}"):
        fetch_bundle("emptied", None, "1")
