"""One request in twenty fails, by a server error or a broken connection: what is kept is whole all the same."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from infra.local.stack import Stack
from metalearn_core import reuse
from metalearn_core.storage import objects
from metalearn_core.storage.place import Place
from metalearn_core.training.checkpoint import Checkpoints, Progress
from metalearn_core.training.engine import EngineChoices
from tests.fault_proxy import FaultProxy

SHARE = 0.05


@pytest.fixture
def proxy(
    bucket: str, s3_store: Stack, fault_proxy: Callable[..., FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> FaultProxy:
    made = fault_proxy(s3_store.store.endpoint, rate=SHARE, seed=0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
    objects.client.cache_clear()
    return made


def test_results_and_checkpoints_survive_a_share_of_failing_requests(
    proxy: FaultProxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(number: int) -> Callable[[Path], None]:
        def fill(folder: Path) -> None:
            for name in range(5):
                (folder / f"{name}.bin").write_bytes(bytes([number]) * 1000 * (name + 1))

        return fill

    root = f"{bucket}/results"
    for number in range(12):
        reuse.kept(Place.at(root), "thing", {"number": number}, make(number))
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "elsewhere"))
    for number in range(12):
        folder, was_kept = reuse.kept(Place.at(root), "thing", {"number": number}, make(number))
        assert was_kept
        assert (folder / "4.bin").read_bytes() == bytes([number]) * 5000
    checkpoints = Checkpoints(Place.at(f"{bucket}/run"), "maml")
    choices = EngineChoices(threads=1, precision="fp32", chunks=1)
    with checkpoints.lock():
        for step in range(1, 20):
            checkpoints.save(Progress(fingerprint="f", step=step, engine=choices), {"w": torch.full((9,), float(step))})
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "third"))
    other = Checkpoints(Place.at(f"{bucket}/run"), "maml")
    with other.lock():
        found, tensors = other.load("f") or pytest.fail("there is none")
    assert (found.step, tensors["w"][0].item()) == (19, 19.0)
    assert proxy.faults.total() >= 10
