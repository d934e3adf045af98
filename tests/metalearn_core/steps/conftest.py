"""A cluster with Kubeflow Trainer, as far as a training sees it: Kubernetes' API over HTTP, and processes as pods."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalearn_core.events import EVENTS_VARIABLE

ROOT = Path(__file__).parents[3]
JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs"
RUNTIME = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {"numProcPerNode": "auto"}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                            "spec": {"template": {"spec": {"containers": [{"name": "node", "image": "pytorch"}]}}},
                        },
                    }
                ]
            }
        },
    },
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Cluster:
    """Its objects, and what it does with a TrainJob: what the controller of Kubeflow Trainer does, on this machine.

    Attributes:
        folder: for what its machines keep.
        secrets: by name and key.
        refused: the status that every request gets instead of an answer.
        has_trainer: whether Kubeflow Trainer is installed.
        runs_jobs: whether machines are there for a job.
    """

    folder: Path
    secrets: dict[tuple[str, str], str] = field(default_factory=dict)
    refused: int | None = None
    refusal: str = (
        'trainjobs.trainer.kubeflow.org is forbidden: User "x" cannot create resource "trainjobs" in API group'
    )
    has_trainer: bool = True
    runs_jobs: bool = True
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    posted: list[dict[str, Any]] = field(default_factory=list)
    machines: list[subprocess.Popen] = field(default_factory=list)

    @property
    def events(self) -> Path:
        """What its machines tell of their work."""
        return self.folder / "events.jsonl"

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if self.refused:
            return self.refused, {"kind": "Status", "message": self.refusal}
        if path == "/api/v1/namespaces/team/pods":
            return 200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": []}
        if self.has_trainer and path.endswith("/clustertrainingruntimes/torch-distributed"):
            return 200, RUNTIME
        if self.has_trainer and path.startswith(JOBS):
            return self._jobs(method, body, path.removeprefix(JOBS).strip("/"))
        return 404, {"kind": "Status"}

    def _jobs(self, method: str, body: Any, name: str) -> tuple[int, Any]:
        if method == "POST":
            name = body["metadata"]["name"]
            if name in self.jobs:
                return 409, {"kind": "Status"}
            self.posted.append(body)
            metadata = {**body["metadata"], **CREATED, "uid": f"uid-{len(self.posted)}"}
            self.jobs[name] = {**body, "metadata": metadata, "status": {}}
            if self.runs_jobs:
                threading.Thread(target=self._run, args=(self.jobs[name],), daemon=True).start()
            return 201, self.jobs[name]
        if name not in self.jobs:
            return 404, {"kind": "Status"}
        if method == "DELETE":
            wanted = ((body or {}).get("preconditions") or {}).get("uid")
            if wanted not in {None, self.jobs[name]["metadata"]["uid"]}:
                return 409, {"kind": "Status"}
            self.end_machines()
            return 200, self.jobs.pop(name)
        return 200, self.jobs[name]

    def _run(self, job: dict[str, Any]) -> None:
        trainer = job["spec"]["trainer"]
        variables = {entry["name"]: self._value(entry) for entry in trainer["env"]}
        port = str(free_port())
        for rank in range(trainer["numNodes"]):
            # what Kubeflow Trainer's Torch plugin sets for torchrun; of the step's own variables there are none
            torchrun = {
                "PET_NNODES": str(trainer["numNodes"]),
                "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
                "PET_NODE_RANK": str(rank),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": port,
            }
            machine = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "PYTHONPATH": str(ROOT)}
            own = {
                "METALEARN_CACHE": str(self.folder / f"machine-{len(self.machines)}"),
                EVENTS_VARIABLE: str(self.events),
            }
            command = [sys.executable, *trainer["command"][1:]]
            self.machines.append(
                subprocess.Popen(command, env={**machine, **own, **variables, **torchrun}, cwd=self.folder)
            )
        codes = [machine.wait() for machine in self.machines[-trainer["numNodes"] :]]
        kind = "Failed" if any(codes) else "Complete"
        self.end(job, kind)

    def end(self, job: dict[str, Any], kind: str) -> None:
        condition = {"type": kind, "status": "True", "reason": kind, "message": "", **TRANSITION}
        job["status"] = {"conditions": [condition]}

    def _value(self, entry: dict[str, Any]) -> str:
        if "value" in entry:
            return str(entry["value"])
        reference = entry["valueFrom"]["secretKeyRef"]
        return self.secrets[reference["name"], reference["key"]]

    def end_machines(self) -> None:
        for machine in self.machines:
            machine.terminate()
        for machine in self.machines:
            machine.wait(60)


CREATED = {"namespace": "team", "creationTimestamp": "2026-01-01T00:00:00Z"}
TRANSITION = {"lastTransitionTime": "2026-01-01T00:00:00Z"}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster that this process reaches by its kubeconfig."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    state = Cluster(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, content = state.answer(self.command, re.sub(r"\?.*", "", self.path), body)
            encoded = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def do_POST(self) -> None:
            self.do_GET()

        def do_DELETE(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "team"}}],
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "me", "user": {}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    from kubernetes.config import kube_config

    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    yield state
    state.end_machines()
    server.shutdown()
    server.server_close()
