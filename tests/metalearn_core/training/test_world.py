"""Several processes train the model that one would have trained."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from metalearn_core.events import EVENTS_VARIABLE
from metalearn_core.training.world import World

HERE = Path(__file__).parent
SCRIPT = """
import signal
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from conftest import tiny_dataset
from safetensors.torch import save
from metalearn_core.learners import LearnerSpec
from metalearn_core.training.loop import fit
from metalearn_core.training.plan import TrainingPlan
from metalearn_core.training.world import joined
{prelude}
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, which comes after an end, would cut off what is said of it
name, episodes, out, checkpoints = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
options = {{
    "protonet": {{"meta_batch": 1}}, "maml": {{"meta_batch": 4}}, "relationnet": {{"meta_batch": 4, "pretrain": 0.3}},
    "metasgd": {{"meta_batch": 4}}, "maml in long steps": {{"meta_batch": 400}},
    "maml in uneven chunks": {{"meta_batch": 5}},
}}[name]
chunk = 2 if name.endswith("chunks") else None
name = name.split()[0]
little = {{"backbone": "mlp", "backbone_options": {{"hidden": (16,)}}}}
backbone = little if name == "metasgd" else {{"backbone_options": {{"width": 8, "blocks": 3}}}}
spec = LearnerSpec(learner=name, options=options, **backbone)
plan = TrainingPlan(
    way=4, shot=1, query=3, episodes=episodes, validations=2, validation_episodes=20, precision="fp32",
    checkpoint_seconds=0.05, chunk=chunk,
)
with joined() as world:
    result = fit(spec, tiny_dataset(), plan, checkpoint_dir=checkpoints, world=world)
    if world.leads:
        out.write_bytes(save({{n: v.contiguous() for n, v in result.learner.state_dict().items()}}))
"""


def start(folder: Path, processes: int, name: str, episodes: int, out: str, prelude: str = "") -> subprocess.Popen:
    (folder / "script.py").write_text(SCRIPT.format(here=str(HERE), prelude=prelude))
    arguments = [str(folder / "script.py"), name, str(episodes), str(folder / out), str(folder / f"{out} checkpoints")]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        arguments = [*launcher, *arguments]
    root = str(HERE.parent.parent.parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, EVENTS_VARIABLE: str(folder / "events")}
    return subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True, env=environment)


def finished(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


@pytest.mark.parametrize(
    ("name", "numbers"), [("maml", (1, 2)), ("maml in uneven chunks", (1, 2, 3)), ("relationnet", (1, 2))]
)
def test_the_weights_do_not_depend_on_the_number_of_processes(tmp_path, name, numbers):
    for processes in numbers:
        finished(start(tmp_path, processes, name, 21, f"{processes}"))  # the last step of maml has one episode
    assert len({(tmp_path / str(processes)).read_bytes() for processes in numbers}) == 1
    events = tmp_path / "events"
    assert not events.exists() or "no quicker" not in events.read_text()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("protonet", "protonet takes one batch a step, so 2 processes are no quicker than one: protonet.meta_batch"),
        ("metasgd", "metasgd: one process takes all episodes of a step, so 2 processes are no quicker than one: a sm"),
    ],
)
def test_where_the_processes_have_nothing_to_share_it_is_said(tmp_path, name, text):
    for processes in (1, 2):
        finished(start(tmp_path, processes, name, 6, f"{processes}"))
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    (told,) = [event["text"] for event in events if "no quicker" in event.get("text", "")]
    assert told.startswith(text)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_when_a_process_dies_all_end_and_another_number_of_them_goes_on(tmp_path):
    finished(start(tmp_path, 1, "maml", 400, "whole"))
    job = start(tmp_path, 2, "maml", 400, "cut")
    wait_for(lambda: list((tmp_path / "cut checkpoints").glob("*.json")))
    os.kill(process_of(job, rank=1).pid, signal.SIGKILL)
    _, errors = job.communicate(timeout=30)
    assert job.returncode != 0
    assert "PeerLostError: another training process has ended, or does not answer" in errors
    finished(start(tmp_path, 3, "maml", 400, "cut"))
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


SLOW = """
import os
import time
from metalearn_core.learners.optimization.maml import MAML

train = MAML.train_episodes

def slowly(learner, episodes):
    Path(f"{sys.argv[3]}.{os.environ['RANK']}").touch()
    time.sleep(0.5)
    return train(learner, episodes)

MAML.train_episodes = slowly
sys.argv[1] = "maml in long steps"
"""


def test_processes_leave_a_long_step_together_when_one_is_asked_to_end(tmp_path):
    job = start(tmp_path, 2, "maml", 800, "cut", SLOW)
    wait_for((tmp_path / "cut.1").exists)
    os.kill(process_of(job, rank=1).pid, signal.SIGTERM)
    _, errors = job.communicate(timeout=60)
    assert "TrainingStoppedError: maml: stopped by SIGTERM after 0 training episodes" in errors
    assert list((tmp_path / "cut checkpoints").glob("*.json"))


def process_of(job, rank):
    """Return the process of a rank."""
    children = psutil.Process(job.pid).children(recursive=True)
    scripts = [child for child in children if "script.py" in " ".join(child.cmdline())]
    return next(child for child in scripts if child.environ().get("RANK") == str(rank))


def test_alone_every_task_is_ones_own():
    alone = World()
    assert list(alone.share(3)) == [0, 1, 2]
    assert alone.agree(1.5, 2.0) == (1.5, 2.0)
    assert alone.any(True)
    assert not alone.any(False)
    vectors = [torch.tensor([1.0]), torch.tensor([2.0])]
    assert list(alone.gather(vectors, 2)) == vectors
    assert alone.tell(b"told") == b"told"


@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_task_is_one_processs(size):
    shares = [list(World(rank, size).share(7)) for rank in range(size)]
    assert sorted(task for share in shares for task in share) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
