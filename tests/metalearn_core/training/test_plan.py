import pytest

from metalearn_core.data.episodes import EpisodeShape
from metalearn_core.data.manifest import ClassEntry, Manifest
from metalearn_core.errors import UsageError
from metalearn_core.learners import LEARNERS, LearnerSpec, resolve_spec
from metalearn_core.training.plan import TrainingPlan, fingerprint, shape_in, training_shape

PROTONET, MAML, PROTOMAML = (resolve_spec(LearnerSpec(learner=name)) for name in ("protonet", "maml", "protomaml"))


def plan(**values):
    return TrainingPlan(**{"way": 4, "shot": 1, "query": 3, "episodes": 10, **values})


def test_a_recipe_shrinks_to_the_classes_and_examples_that_there_are(dataset):
    assert training_shape(PROTONET, plan(), dataset) == EpisodeShape(32, 1, 5)
    assert training_shape(PROTONET, plan(shot=3), dataset) == EpisodeShape(32, 3, 3)
    assert training_shape(MAML, plan(way=40), dataset) == EpisodeShape(40, 1, 5)


def test_what_is_asked_for_does_not_shrink(dataset):
    assert training_shape(PROTONET, plan(train_way=60, train_query=9), dataset) == EpisodeShape(60, 1, 9)
    assert training_shape(PROTONET, plan(train_shot=2), dataset) == EpisodeShape(32, 2, 4)


def test_training_varies_as_evaluation_does_where_the_recipe_takes_that_over(dataset):
    asked = plan(way="2-4", shot="1-3")
    assert training_shape(PROTONET, asked, dataset) == EpisodeShape(32, 3, 5, min_shot=1)
    assert training_shape(MAML, plan(shot="1-3"), dataset) == EpisodeShape(4, 3, 5, min_shot=1)
    with_way = plan(way="2-4", shot=2, train_way="5-60", train_query=4)
    assert training_shape(PROTONET, with_way, dataset) == EpisodeShape(60, 2, 4, min_way=5)


def test_a_range_that_ends_at_the_number_of_the_recipe_is_like_any_other(dataset):
    assert training_shape(PROTONET, plan(way="2-60"), dataset) == training_shape(PROTONET, plan(way="2-59"), dataset)
    reptile, config = LEARNERS["reptile"], LEARNERS["reptile"].Config()
    assert reptile.train_shape(EpisodeShape.of(4, "1-10", 3), config) == EpisodeShape(4, 10, 1)
    assert reptile.train_shape(EpisodeShape.of(4, "1-9", 3), config) == EpisodeShape(4, 10, 1)


@pytest.mark.parametrize("name", [name for name, kind in sorted(LEARNERS.items()) if kind.info.variable_shape])
def test_what_a_recipe_takes_over_keeps_its_range(name):
    kind, asked = LEARNERS[name], EpisodeShape(way=4, shot=30, query=7, min_way=2, min_shot=3)
    shape = kind.train_shape(asked, kind.Config())
    assert (shape.shot, shape.min_shot) == (30, 3)
    assert (shape.way, shape.min_way) == (getattr(kind.Config(), "train_way", 4), 2 if shape.way == 4 else None)


def test_a_fixed_way_takes_no_range(dataset):
    with pytest.raises(UsageError, match="way 2-4: maml is built for one number of classes"):
        training_shape(MAML, plan(way="2-4"), dataset)


def test_within_a_domain_a_recipe_shrinks_to_the_smallest_one_that_serves(dataset):
    sizes = {}
    for entry in dataset.manifest.of_split("train"):
        sizes[entry.domain] = sizes.get(entry.domain, 0) + len(entry.rotations)
    fitting = min(size for size in sizes.values() if size >= 4)
    assert training_shape(PROTONET, plan(train_within_domain=True), dataset).way == min(60, fitting)


def manifest_of(**sizes: int) -> Manifest:
    """A manifest of training classes of 30 examples: so many in each domain."""
    domains = [domain for domain, size in sizes.items() for _ in range(size)]
    classes = tuple(
        ClassEntry(
            id=number, name=str(number), domain=domain, split="train", count=30, shard=0, row_group=number,
            rotations=(0,), digest=str(number),
        )
        for number, domain in enumerate(domains)
    )  # fmt: skip
    return Manifest.model_construct(digest="domains", classes=classes)


def test_within_a_domain_a_range_of_ways_goes_up_to_the_largest_one():
    manifest = manifest_of(few=5, many=40, fewer=3)
    varied = shape_in(PROTOMAML, plan(way="5-50", train_within_domain=True), manifest)
    assert (varied.min_way, varied.way) == (5, 40)
    assert shape_in(PROTONET, plan(way="5-50", train_within_domain=True), manifest).way == 5, "one for all domains"


def test_within_a_domain_a_way_that_none_has_is_refused():
    manifest = manifest_of(few=5, fewer=3)
    asked = plan(way=6, train_within_domain=True)
    with pytest.raises(UsageError, match="way 6: no domain of the train split has so many classes, the largest has 5"):
        shape_in(MAML, asked, manifest)
    assert shape_in(PROTONET, asked, manifest).way == 5, "a recipe's way shrinks"


def test_plain_examples_have_no_shape(dataset):
    assert training_shape(resolve_spec(LearnerSpec(learner="transfer")), plan(), dataset) is None


def test_a_fixed_way_is_the_one_of_evaluation(dataset):
    with pytest.raises(UsageError, match="got train way 5, way 4"):
        training_shape(MAML, plan(train_way=5), dataset)


def test_a_fixed_shot_is_the_one_of_evaluation_and_of_the_learner(dataset):
    snail = resolve_spec(LearnerSpec(learner="snail", options={"shot": 2}))
    assert training_shape(snail, plan(shot=2), dataset) == EpisodeShape(4, 2, 4)
    with pytest.raises(UsageError, match="got train shot 3, shot 2"):
        training_shape(snail, plan(shot=2, train_shot=3), dataset)
    with pytest.raises(UsageError, match=r"set snail\.shot=1"):
        training_shape(snail, plan(shot=1), dataset)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seconds": 3}, "episodes or seconds, exactly one"),
        ({"episodes": None}, "episodes or seconds, exactly one"),
        ({"shot": 0}, "shot must be at least 1, got 0"),
        ({"query": -3}, "query must be at least 1, got -3"),
    ],
)
def test_bad_plans_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        plan(**values)


@pytest.mark.parametrize("values", [{"way": 1}, {"train_way": 1}])
def test_a_single_class_leaves_nothing_to_learn(values, dataset):
    with pytest.raises(UsageError, match="way must be at least 2, got 1"):
        training_shape(PROTONET, plan(**values), dataset)


def test_the_fingerprint_tells_runs_apart_but_not_how_often_they_are_saved():
    base = fingerprint(MAML, plan(), "a" * 32)
    assert fingerprint(MAML, plan(checkpoint_seconds=1), "a" * 32) == base
    others = [
        fingerprint(PROTONET, plan(), "a" * 32),
        fingerprint(MAML, plan(seed=1), "a" * 32),
        fingerprint(MAML, plan(), "b" * 32),
        fingerprint(resolve_spec(LearnerSpec(learner="maml", options={"inner_steps": 7})), plan(), "a" * 32),
    ]
    assert len({base, *others}) == 5


def test_the_shot_of_a_recipe_shrinks_to_the_examples_but_not_below_that_of_evaluation(dataset):
    reptile = resolve_spec(LearnerSpec(learner="reptile"))
    assert training_shape(reptile, plan(shot=1), dataset) == EpisodeShape(4, 5, 1)
    assert training_shape(reptile, plan(shot=6), dataset).shot == 6
    assert training_shape(reptile, plan(shot=1, train_shot=9), dataset).shot == 9
