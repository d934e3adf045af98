"""`metalearn submit` against a server that holds every request against KFP's OpenAPI document."""

from collections.abc import Callable

from tests.pipelines.cluster.conftest import TRACKING
from tests.pipelines.cluster.kfp_server import Cluster, KfpServer
from tests.pipelines.conftest import Answer

Submit = Callable[..., Answer]


def test_the_first_submission_makes_pipeline_version_experiment_and_run(
    submit: Submit, cluster: Cluster, server: KfpServer
) -> None:
    answer = submit("--json")
    assert answer.status == 0, answer.errors
    assert cluster.asked() == [
        "GET /healthz",
        "GET /pipelines",
        "POST /pipelines",
        f"GET /pipelines/{next(iter(cluster.pipelines))}/versions",
        "POST /pipelines/upload_version",
        "GET /experiments",
        "POST /experiments",
        "POST /runs",
    ]
    (run_id,) = cluster.runs
    assert answer.json["run_id"] == run_id
    assert answer.json["page"] == f"{server.host}/#/runs/details/{run_id}"
    assert answer.json["mlflow_page"] == TRACKING
    assert answer.json["pipeline"]["uploaded"] is True
