"""A training on several machines: the TrainJob that is asked for, what its machines make, and what goes wrong.

The machines are processes here, started as Kubeflow Trainer starts pods: by the command and the environment of the
TrainJob, and torchrun's variables. Each has a cache of its own, and S3 is all that they share.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from kfp.dsl import TaskConfig
from kubeflow_trainer_api import models

from metalearn_core.bundle import verify_bundle
from metalearn_core.data.dataset import EpisodeDataset
from metalearn_core.errors import MetalearnError
from metalearn_core.steps.job_request import ACCOUNT_VARIABLE, job_request, train_job
from metalearn_core.steps.requests import TrainingOrder, training_request, training_resources
from metalearn_core.steps.train_job import train_in_job
from metalearn_core.steps.train_nodes import ResultTakenError, _leave_reason, handover, leave_order, reason_left
from metalearn_core.steps.training import train_here
from metalearn_core.storage import write_json
from metalearn_core.storage.objects import Prefix
from metalearn_core.training.termination import TrainingStoppedError
from metalearn_core.training.world import PeerLostError

ROOT = Path(__file__).parents[3]
JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs"
ITEM = {
    "learner": "maml",
    "options": {"meta_batch": 4},
    "backbone": "mlp",
    "backbone_options": {"hidden": [8]},
}
RESOURCES = {"limits": {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "2"}, "requests": {"cpu": "4"}}
TOLERATIONS = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


@pytest.fixture
def order(small_dataset: EpisodeDataset, bucket: str, tmp_path: Path) -> TrainingOrder:
    prefix = Prefix.parse(f"{bucket}/dataset")
    files = [path for path in small_dataset.folder.rglob("*") if path.is_file()]
    prefix.upload({path.relative_to(small_dataset.folder).as_posix(): path for path in files})
    return TrainingOrder(
        dataset=str(prefix),
        item=ITEM,
        request=training_request(
            way=3, shot=1, query=3, train_way=3, train_shot=1, train_query=3, episodes=40, seconds=0, precision="fp32"
        ),
        resources=training_resources(processes=1, checkpoint_seconds=0.0),
        checkpoints=f"{bucket}/checkpoints/{'ab' * 16}",
        bundle=tmp_path / "result" / "bundle",
    )


@pytest.fixture
def request_(cluster, bucket: str, monkeypatch):
    cluster.secrets["metalearn-storage", "id"] = os.environ["AWS_ACCESS_KEY_ID"]
    cluster.secrets["metalearn-storage", "key"] = os.environ["AWS_SECRET_ACCESS_KEY"]
    monkeypatch.setenv("METALEARN_PIPELINE_RUN_ID", "kfp-run")

    monkeypatch.setenv(ACCOUNT_VARIABLE, "metalearn-pipeline")

    def of_the_pod(name: str, path: str) -> dict:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    def secret(name: str, key: str) -> dict:
        return {"name": name, "valueFrom": {"secretKeyRef": {"name": "metalearn-storage", "key": key}}}

    passed = TaskConfig(
        resources={"limits": {"cpu": "1"}},  # the step's own
        node_selector={"pool": "gpu"},
        tolerations=TOLERATIONS,
        env=[
            {"name": "AWS_ENDPOINT_URL", "value": os.environ["AWS_ENDPOINT_URL"]},
            {"name": "AWS_DEFAULT_REGION", "value": "us-east-1"},
            secret("AWS_ACCESS_KEY_ID", "id"),
            secret("AWS_SECRET_ACCESS_KEY", "key"),
            of_the_pod("METALEARN_PIPELINE_RUN_ID", "metadata.labels['pipeline/runid']"),
            of_the_pod(ACCOUNT_VARIABLE, "spec.serviceAccountName"),
        ],
    )
    return job_request(
        passed,
        resources=RESOURCES,
        nodes=2,
        image="registry.example/metalearn:1",
        runtime="torch-distributed",
        user=10001,
        timeout=3600,
        shm="2Gi",
        scratch="50Gi",
        image_pull_secrets=["registry"],
    )


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def end_job(cluster, kind: str) -> None:
    wait_for(lambda: cluster.jobs)
    time.sleep(0.5)
    cluster.end(next(iter(cluster.jobs.values())), kind)


def weights(bundle: Path) -> bytes:
    return (bundle / "weights.safetensors").read_bytes()


def checkpoints(prefix: Prefix) -> list[str]:
    return [found.name for found in prefix.objects() if "/" not in found.name and found.name.endswith(".json")]


def alone(order: TrainingOrder, tmp_path: Path) -> bytes:
    own = {"bundle": tmp_path / "alone", "checkpoints": str(tmp_path / "checkpoints of one")}
    train_here(order.model_copy(update=own))
    return weights(tmp_path / "alone")


@pytest.mark.slow
def test_two_machines_end_with_the_weights_of_one_process(cluster, order, request_, tmp_path) -> None:
    record = train_in_job(order, request_, poll_s=0.2)
    assert record["train_episodes"] == 40
    assert record["bundle_digest"] == verify_bundle(order.bundle)
    assert weights(order.bundle) == alone(order, tmp_path)
    assert len(cluster.machines) == 2
    assert cluster.jobs == {}, "a job that is done is of no use"


@pytest.mark.slow
def test_two_machines_of_two_processes_each_do_too(cluster, order, request_, tmp_path) -> None:
    resources = order.resources.model_copy(update={"processes": 2})
    train_in_job(order.model_copy(update={"resources": resources}), request_, poll_s=0.2)
    assert weights(order.bundle) == alone(order, tmp_path)


def test_the_job_is_one_that_the_sdk_knows_with_all_that_the_step_was_given(cluster, order, request_) -> None:
    cluster.runs_jobs = False
    threading.Thread(target=end_job, args=(cluster, "Complete"), daemon=True).start()
    with pytest.raises(MetalearnError, match=r"the nodes ended, and left no .*record\.json"):
        train_in_job(order, request_, poll_s=0.2)
    [sent] = cluster.posted
    job = models.TrainerV1alpha1TrainJob.from_dict(sent)
    assert job.to_dict() == sent, "the SDK's models leave something out"
    assert (job.api_version, job.kind) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert sent["metadata"]["name"] == "metalearn-" + "ab" * 8
    spec = sent["spec"]
    assert spec["runtimeRef"]["name"] == "torch-distributed"
    assert spec["activeDeadlineSeconds"] == 3600
    trainer = spec["trainer"]
    assert trainer["image"] == "registry.example/metalearn:1"
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 1)
    assert trainer["command"][:3] == ["python", "-m", "torch.distributed.run"]
    assert trainer["resourcesPerNode"] == RESOURCES
    variables = {entry["name"]: entry for entry in trainer["env"]}
    assert variables["OMP_NUM_THREADS"]["value"] == "4"
    assert variables["METALEARN_PIPELINE_RUN_ID"] == {"name": "METALEARN_PIPELINE_RUN_ID", "value": "kfp-run"}
    assert variables["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"] == {
        "name": "metalearn-storage",
        "key": "key",
    }
    assert not [name for name in variables if name.startswith("PET_")], "these are the runtime's"
    [patch] = spec["runtimePatches"]
    [job_patch] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = job_patch["template"]["spec"]["template"]
    assert template["metadata"]["labels"] == {"sidecar.istio.io/inject": "false"}
    pod = template["spec"]
    assert pod["terminationGracePeriodSeconds"] > 30, "torchrun gives its processes so long to write a checkpoint"
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert pod["tolerations"] == TOLERATIONS
    [container] = pod["containers"]
    assert container["name"] == "node"
    assert "env" not in container, "Kubeflow Trainer takes variables of this container from the trainer alone"
    context = container["securityContext"]
    assert (context["runAsUser"], context["runAsNonRoot"], context["allowPrivilegeEscalation"]) == (10001, True, False)
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", "/dev/shm"}
    assert {"name": "metalearn-scratch", "emptyDir": {"sizeLimit": "50Gi"}} in pod["volumes"]
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["serviceAccountName"] == "metalearn-pipeline", "the account's role on S3 is the nodes' too"
    assert {"name": "metalearn-shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}} in pod["volumes"]
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in json.dumps(sent)


@pytest.mark.slow
def test_a_machine_that_is_killed_ends_the_job_and_the_next_one_goes_on(cluster, order, request_, tmp_path) -> None:
    longer = order.request.model_copy(update={"episodes": 600})
    order = order.model_copy(update={"request": longer})
    prefix = Prefix.parse(order.checkpoints)

    def kill() -> None:
        wait_for(lambda: checkpoints(prefix))
        for process in psutil.Process(cluster.machines[1].pid).children(recursive=True):
            process.kill()
        cluster.machines[1].kill()
        time.sleep(1)
        cluster.machines[0].terminate()  # as the controller does with a job that has failed

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with pytest.raises(MetalearnError, match=r"TrainJob metalearn-\w+ failed: .*goes on from its checkpoint"):
        train_in_job(order, request_, poll_s=0.2)
    thread.join()
    assert checkpoints(prefix)
    assert "goes on from training episode" not in cluster.events.read_text()
    train_in_job(order, request_, poll_s=0.2)
    assert len(cluster.posted) == 2
    assert "goes on from training episode" in cluster.events.read_text()
    assert weights(order.bundle) == alone(order, tmp_path)


@pytest.mark.slow
def test_what_a_machine_cannot_do_is_the_steps_reason(cluster, order, request_, bucket) -> None:
    shard = next(found.name for found in Prefix.parse(order.dataset).objects() if found.name.endswith(".parquet"))
    Prefix.parse(order.dataset).remove([shard])
    with pytest.raises(MetalearnError, match=rf"TrainJob metalearn-\w+ failed: .*{Path(shard).name}") as caught:
        train_in_job(order, request_, poll_s=0.2)
    assert "\n" not in str(caught.value)


JOB = "metalearn-" + "ab" * 8


def start_job(cluster, order, request_, run: str = "kfp-run") -> None:
    """Start a job as a step of a pipeline run does, this one's or another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALEARN_PIPELINE_RUN_ID", run)
        sent = train_job(JOB, leave_order(order), 1, request_)
    cluster.answer("POST", JOBS, sent.to_dict())


def test_a_job_that_an_earlier_attempt_left_running_is_awaited_not_started_again(cluster, order, request_) -> None:
    cluster.runs_jobs = False
    start_job(cluster, order, request_)
    place = handover(order)
    write_json(place.folder / "failure.json", {"reason": "the reason of that job"})
    place.replace([], "failure.json")
    threading.Thread(target=end_job, args=(cluster, "Failed"), daemon=True).start()
    with pytest.raises(MetalearnError, match="the reason of that job"):
        train_in_job(order, request_, poll_s=0.2)
    assert len(cluster.posted) == 1, "the step has started one of its own"


@pytest.mark.parametrize("earlier_attempt", [False, True])
def test_a_step_that_is_asked_to_end_takes_its_runs_job_with_it(cluster, order, request_, earlier_attempt) -> None:
    cluster.runs_jobs = False
    if earlier_attempt:
        start_job(cluster, order, request_)
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(MetalearnError, match="stopped: run it again"):
        train_in_job(order, request_, poll_s=0.2)
    assert len(cluster.posted) == 1
    assert cluster.jobs == {}


def test_a_step_that_is_asked_to_end_leaves_another_runs_job_alone(cluster, order, request_) -> None:
    cluster.runs_jobs = False
    start_job(cluster, order, request_, "another run")
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(MetalearnError, match="stopped: run it again"):
        train_in_job(order, request_, poll_s=0.2)
    assert list(cluster.jobs) == [JOB]
    assert len(cluster.posted) == 1


def test_of_two_runs_that_start_at_once_the_slower_awaits_the_others_job_and_its_order_stays(
    cluster, order, request_
) -> None:
    cluster.runs_jobs = False
    theirs = order.model_copy(update={"run_id": "theirs"})
    answer, seen = cluster.answer, []

    def faster(method: str, path: str, body) -> tuple[int, object]:
        """Another run's step starts its job after this one has looked for one."""
        if method == "POST" and not seen:
            seen.append(path)
            start_job(cluster, theirs, request_, "another run")
        return answer(method, path, body)

    cluster.answer = faster
    threading.Thread(target=end_job, args=(cluster, "Complete"), daemon=True).start()
    with pytest.raises(ResultTakenError):
        train_in_job(order, request_, poll_s=0.2)
    [sent] = cluster.posted
    address = Prefix.parse(sent["spec"]["trainer"]["command"][-1])
    assert json.loads(address.parent.read(address.name))["run_id"] == "theirs"
    assert list(cluster.jobs) == [JOB], "the job is another run's, which will look at it"


@pytest.mark.slow
def test_a_result_that_a_job_has_left_is_taken_and_no_job_is_started(cluster, order, request_, tmp_path) -> None:
    [*_, machine] = train_job(JOB, leave_order(order), 1, request_).to_dict()["spec"]["trainer"]["command"]
    done = [sys.executable, "-m", "metalearn_core.steps.train_nodes", machine]
    subprocess.run(
        done, env={**os.environ, "PYTHONPATH": str(ROOT), "METALEARN_CACHE": str(tmp_path / "c")}, check=True
    )
    assert train_in_job(order, request_, poll_s=0.2)["train_episodes"] == 40
    assert cluster.posted == []
    assert weights(order.bundle) == alone(order, tmp_path)


def test_a_result_that_is_damaged_is_not_taken(cluster, order, request_) -> None:
    cluster.runs_jobs = False
    place = handover(order)
    write_json(place.folder / "record.json", {"record": {"bundle_digest": "0" * 64}, "files": []})
    place.replace([], "record.json")
    (place.folder / "bundle").mkdir()
    threading.Thread(target=end_job, args=(cluster, "Complete"), daemon=True).start()
    with pytest.raises(ResultTakenError, match=r"left no .*record\.json"):
        train_in_job(order, request_, poll_s=0.2)
    assert len(cluster.posted) == 1
    assert not order.bundle.exists()


def test_an_api_that_does_not_answer_for_a_while_costs_nothing(cluster, order, request_) -> None:
    cluster.runs_jobs = False

    def away() -> None:
        wait_for(lambda: cluster.posted)
        cluster.refused = 503
        time.sleep(1)
        cluster.refused = None
        end_job(cluster, "Complete")

    threading.Thread(target=away, daemon=True).start()
    with pytest.raises(MetalearnError, match="the nodes ended, and left no"):  # so it saw the end
        train_in_job(order, request_, poll_s=0.2)


def test_the_reason_that_is_left_is_that_of_a_process_that_knows(order) -> None:
    reasons = []
    for error in (
        PeerLostError("another one has ended"),
        TrainingStoppedError("maml: stopped by SIGTERM"),
        MetalearnError("the disk is full"),
        TrainingStoppedError("maml: stopped by SIGTERM"),
        PeerLostError("another one has ended"),
    ):
        _leave_reason(handover(order), error)
        reasons.append(reason_left(order))
    assert reasons == ["another one has ended"] * 2 + ["the disk is full"] * 3


@pytest.mark.parametrize(
    ("refused", "has_trainer", "line"),
    [
        (403, True, r"service account may not use trainjobs\.trainer\.kubeflow\.org here \(403\): give it the role"),
        (401, True, r"does not know this step's service account \(401\)"),
        (None, False, r"install Kubeflow Trainer"),
    ],
)
def test_a_cluster_that_refuses_is_one_line(cluster, order, request_, refused, has_trainer, line) -> None:
    cluster.refused, cluster.has_trainer = refused, has_trainer
    with pytest.raises(MetalearnError, match=line) as caught:
        train_in_job(order, request_, poll_s=0.2)
    assert "\n" not in str(caught.value)


def test_without_the_sdk_the_extra_is_named(order, request_, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "kubeflow.trainer", None)
    with pytest.raises(MetalearnError, match=r"kubeflow SDK, which is not installed.*metalearn-pipelines\[trainer\]"):
        train_in_job(order, request_)


def test_without_a_cluster_it_says_so(order, request_, monkeypatch, tmp_path) -> None:
    from kubernetes.config import kube_config

    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(MetalearnError, match="several nodes need a Kubernetes cluster"):
        train_in_job(order, request_)


def test_a_job_that_a_quota_forbids_is_refused_in_kubernetes_own_words(cluster, order, request_) -> None:
    cluster.refused, cluster.refusal = 403, "admission webhook denied: exceeded quota: gpus, used: 4, limited: 4"
    with pytest.raises(MetalearnError, match=r"TrainJob: Kubernetes refuses it \(403\): .*exceeded quota: gpus"):
        train_in_job(order, request_, poll_s=0.2)


def test_storage_that_only_one_machine_has_is_refused(cluster, order, request_, tmp_path) -> None:
    local = order.model_copy(update={"checkpoints": str(tmp_path / "checkpoints" / ("cd" * 16))})
    with pytest.raises(MetalearnError, match="several nodes need storage that all of them reach"):
        train_in_job(local, request_, poll_s=0.2)
    assert cluster.posted == []


def test_nothing_of_the_sdk_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, metalearn_core.steps.train_job\n"
        "print([n for n in sys.modules if n.startswith(('kubeflow', 'kubernetes', 'kfp', 'torch.'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
