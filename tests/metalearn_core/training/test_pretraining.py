import json
import math
import statistics

import pytest
import torch
from safetensors.torch import save
from torch.nn import functional as F

from metalearn_core.bundle import load_bundle, save_bundle
from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import DatasetSpec
from metalearn_core.data.sampler import EpisodeSampler, ExampleSampler
from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.learners import LearnerSpec, make_learner
from metalearn_core.training.loop import fit
from metalearn_core.training.plan import TrainingPlan
from metalearn_core.training.pretraining import Phases

PRETRAINABLE = ["protonet", "matchingnet", "relationnet", "r2d2"]


def spec(name="protonet", **options):
    return LearnerSpec(learner=name, options={"pretrain": 0.5, **options}, backbone_options={"width": 8, "blocks": 3})


def plan(**values):
    base = {"way": 4, "shot": 1, "query": 3, "episodes": 12, "validations": 4, "validation_episodes": 20, "threads": 1}
    return TrainingPlan(**{**base, **values})


def content(result):
    return save({name: value.contiguous() for name, value in result.learner.state_dict().items()})


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("name", "meta_batch"), [*((name, 1) for name in PRETRAINABLE), ("protonet", 2)])
def test_a_run_cut_off_in_either_phase_ends_with_the_same_bytes(dataset, tmp_path, name, meta_batch):
    learner = spec(name, meta_batch=meta_batch)
    whole = fit(learner, dataset, plan())
    phases = set()
    for cut in (1, 3):
        calls = []

        def die(metrics, episodes, calls=calls, cut=cut):
            if "validation/accuracy" in metrics:
                calls.append(episodes)
                if len(calls) == cut:
                    phases.update(key.split("/")[0] for key in metrics if key.endswith("/loss"))
                    raise Killed

        folder = tmp_path / str(cut)
        with pytest.raises(Killed):
            fit(learner, dataset, plan(checkpoint_seconds=0), checkpoint_dir=folder, on_metrics=die)
        resumed = fit(learner, dataset, plan(checkpoint_seconds=0), checkpoint_dir=folder)
        assert content(resumed) == content(whole)
        assert (resumed.episodes, resumed.pretrained) == (whole.episodes, whole.pretrained) == (12, 6)
        assert [record["episodes"] for record in resumed.history] == [record["episodes"] for record in whole.history]
    assert phases == {"pretrain", "train"}


def test_a_run_cut_off_at_the_last_batch_of_pretraining_ends_with_the_same_bytes(dataset, tmp_path):
    def die(_metrics, episodes):
        if episodes == 6:
            raise Killed

    every = plan(checkpoint_seconds=0, validations=12)
    with pytest.raises(Killed):
        fit(spec(), dataset, every, checkpoint_dir=tmp_path, on_metrics=die)
    described = json.loads(max(tmp_path.glob("*.json")).read_text())["progress"]
    assert (described["phase"], described["episodes"]) == ("pretrain", 6)
    assert content(fit(spec(), dataset, every, checkpoint_dir=tmp_path)) == content(fit(spec(), dataset, every))


def test_pretraining_is_a_plain_loop_of_torch_over_the_training_classes(dataset):
    """Meta-training at a learning rate of nothing leaves the weights as pretraining left them."""
    still = {"learning_rate": 1e-30, "schedule": "constant", "pretrain_learning_rate": 0.01}
    learner = spec(**still, pretrain_batch_size=16)
    result = fit(learner, dataset, plan(episodes=10, validations=0, precision="fp32"))

    model = make_learner(learner, dataset.spec, seed=0)
    phases = Phases(model, 0)
    head = phases.pretrainer.classifier
    parameters = [*model.backbone.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0)
    sampler = ExampleSampler(dataset, "train", seed=0, batch_size=16)
    for number in range(5):
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * (1 + math.cos(math.pi * number / 5)) / 2
        x, y = sampler.batch(number)
        hidden = (x / 255 - 0.5) / 0.25
        for block in model.backbone.blocks:
            hidden = F.conv2d(hidden, block.conv.weight, padding=1)
            hidden = F.batch_norm(hidden, None, None, block.norm.weight, block.norm.bias, training=True)
            hidden = F.max_pool2d(F.relu(hidden), 2)
        optimiser.zero_grad()
        F.cross_entropy(head(hidden.flatten(1)), y, label_smoothing=0.1).backward()
        optimiser.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close(result.learner.state_dict()[name], value.data, rtol=1e-3, atol=1e-4)


def test_meta_training_draws_the_first_episodes_and_ends_with_the_budget(dataset, monkeypatch):
    drawn, batch = [], EpisodeSampler.batch

    def noted(sampler, first, count):
        drawn.extend(range(first, first + count))
        return batch(sampler, first, count)

    monkeypatch.setattr(EpisodeSampler, "batch", noted)
    result = fit(spec(meta_batch=3), dataset, plan(episodes=13, validations=0))
    assert (result.pretrained, result.episodes) == (6, 13)
    assert drawn == list(range(7))


@pytest.mark.parametrize(
    ("share", "episodes", "pretrained"), [(0.29, 100, 29), (0.5, 1, 0), (0.99, 10, 9), (0.1, 5, 0)]
)
def test_pretraining_takes_no_more_than_its_share_of_the_episodes(dataset, share, episodes, pretrained):
    tiny = {"pretrain": share, "pretrain_batch_size": 2}
    result = fit(spec(**tiny), dataset, plan(episodes=episodes, validations=0, train_way=2, train_query=1))
    assert (result.pretrained, result.episodes) == (pretrained, episodes)


def test_a_run_by_the_clock_has_both_phases(dataset):
    result = fit(spec(), dataset, plan(episodes=None, seconds=2))
    assert 0 < result.pretrained < result.episodes
    assert result.seconds <= 3


def test_pretraining_alone_makes_a_better_backbone_than_none(dataset):
    still = {"learning_rate": 1e-30, "schedule": "constant"}
    gains = []
    for seed in range(4):
        once = {"validations": 1, "validation_episodes": 300, "episodes": 150, "seed": seed}
        pretrained = fit(spec(pretrain=0.99, pretrain_learning_rate=0.01, **still), dataset, plan(**once))
        untrained = fit(spec(pretrain=0.0, **still), dataset, plan(**{**once, "episodes": 1}))
        gains.append(pretrained.best_validation - untrained.best_validation)
    assert statistics.mean(gains) > 0.01, gains


def test_patience_counts_from_the_end_of_pretraining(dataset):
    still = {"learning_rate": 1e-30, "schedule": "constant", "pretrain_learning_rate": 1e-30}
    result = fit(spec(**still), dataset, plan(episodes=60, validations=30, patience=2))
    assert result.pretrained == 30
    assert 30 < result.episodes < 60


@pytest.mark.parametrize("name", PRETRAINABLE)
def test_the_classifiers_head_is_in_no_bundle(dataset, tmp_path, name):
    learner = spec(name)
    result = fit(learner, dataset, plan(episodes=4, validations=1))
    plain = make_learner(spec(name, pretrain=0.0), dataset.spec)
    assert result.learner.state_dict().keys() == plain.state_dict().keys()
    save_bundle(
        tmp_path / "bundle", result.learner, learner, episode=EpisodeShape(4, 1, 3), lineage={"dataset_digest": "0"}
    )
    loaded, description = load_bundle(tmp_path / "bundle")
    assert description.options["pretrain"] == 0.5
    for key, value in result.learner.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_metrics_and_progress_say_which_phase_they_are_of(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("METALEARN_EVENTS", str(tmp_path / "events.jsonl"))
    monkeypatch.setattr("metalearn_core.training.report.REPORT_SECONDS", 0.0)
    got = []
    fit(spec(), dataset, plan(), on_metrics=lambda metrics, episodes: got.append((episodes, set(metrics))))
    assert all(("pretrain/loss" in names) == (episodes <= 6) for episodes, names in got)
    assert all(("train/loss" in names) == (episodes > 6) for episodes, names in got)
    told = (tmp_path / "events.jsonl").read_text()
    assert "pretraining, batch 5" in told
    assert "protonet: pretrained on 6 batches of examples, meta-training begins" in told
    assert "episode 12" in told


def test_a_pretraining_that_diverges_names_its_own_learning_rate(dataset):
    with pytest.raises(MetalearnError, match=r"smaller protonet\.pretrain_learning_rate"):
        fit(spec(pretrain_learning_rate=1e30), dataset, plan())


def test_episodes_that_do_not_fit_are_refused_before_pretraining(dataset, tmp_path):
    with pytest.raises(UsageError, match="way 33"):
        fit(spec(), dataset, plan(train_way=33), checkpoint_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_real_targets_have_no_classes_to_pretrain_on():
    real = DatasetSpec(
        modality="vector",
        example_shape=(2,),
        dtype="float32",
        mean=(0.0,) * 2,
        std=(1.0,) * 2,
        train_classes=0,
        target_size=1,
    )
    learner = make_learner(LearnerSpec(learner="r2d2", options={"pretrain": 0.5}, backbone="mlp"), real)
    with pytest.raises(UsageError, match=r"r2d2\.pretrain: got 0\.5"):
        Phases(learner, 0)
