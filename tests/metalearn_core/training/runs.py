"""Small trainings, here and in a process of their own."""

import subprocess
import sys
from pathlib import Path

from safetensors.torch import save

from metalearn_core.learners import LearnerSpec
from metalearn_core.training.plan import TrainingPlan

HERE = Path(__file__).parent


def spec(name, **options):
    return LearnerSpec(learner=name, options=options, backbone_options={"width": 8, "blocks": 3})


def plan(**values):
    base = {"way": 4, "shot": 1, "query": 3, "episodes": 12, "validations": 2, "validation_episodes": 20}
    return TrainingPlan(**{**base, **values})


def content(result):
    return save({name: value.contiguous() for name, value in result.learner.state_dict().items()})


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from conftest import tiny_dataset
from safetensors.torch import save_file
from metalearn_core.learners import LearnerSpec
from metalearn_core.training.engine import EngineChoices
from metalearn_core.training.loop import fit
from metalearn_core.training.plan import TrainingPlan
spec = LearnerSpec(learner="maml", backbone_options={{"width": 8, "blocks": 3}})
plan = TrainingPlan(way=4, shot=1, query=3, episodes={episodes}, validations=3, validation_episodes=10,
                    checkpoint_seconds=0)
result = fit(spec, tiny_dataset(), plan, checkpoint_dir=sys.argv[1])
save_file(result.learner.state_dict(), sys.argv[2])
"""


def start(folder, out, episodes):
    script = SCRIPT.format(here=str(HERE), episodes=episodes)
    return subprocess.Popen([sys.executable, "-c", script, str(folder), str(out)], stderr=subprocess.PIPE)
