"""The step that judges an episode dataset before anything is trained on it."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def validate_episodes(
    dataset: Input[Dataset],
    learners: list[str],
    way: str,
    shot: str,
    query: int,
    train_way: str,
    train_shot: str,
    train_query: int,
    train_within_domain: bool,
    verdict: Output[Artifact],
    page: Output[HTML],
) -> None:
    """Check with Great Expectations that a dataset is fit for the episodes asked of it; fail where it is not.

    It fails too where a learner cannot take the examples, with its backbone, or the episodes.

    Args:
        dataset: the pointer that `build_episodes` wrote.
        learners: JSON of each learner.
        way: classes an evaluation episode, or a range, as 5-20.
        shot: support examples per class, or a range.
        query: query examples per class.
        train_way: classes per training episode, or a range; 0: as the learner's recipe wants.
        train_shot: likewise, support examples per class.
        train_query: likewise, query examples per class.
        train_within_domain: the classes of a training episode come from one domain.
        verdict: `quality.json` and the suite `suite.json`.
        page: the verdict as a page.
    """
    import shutil

    from metalearn_core.steps.data import read_pointer, validate_dataset
    from metalearn_core.steps.frame import step
    from metalearn_core.steps.requests import TrainingRequest, learner_items

    with step("validate_episodes"):
        request = TrainingRequest(
            way=way,
            shot=shot,
            query=query,
            train_way=train_way,
            train_shot=train_shot,
            train_query=train_query,
            train_within_domain=train_within_domain,
        )
        folder = validate_dataset(*read_pointer(dataset.path), request, learner_items(learners))
        shutil.copytree(folder, verdict.path, dirs_exist_ok=True)
        shutil.copyfile(folder / "quality.html", page.path)
