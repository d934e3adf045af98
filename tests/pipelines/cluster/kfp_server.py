"""An HTTP server that answers as Kubeflow Pipelines' API does, as far as a submission needs it.

Every request is held against KFP's OpenAPI document before it is answered, and every answer before it is sent. What
does not keep to it is kept in `violations`, and a wrong request is refused. So what is shown here is the contract: no
cluster runs behind it.
"""

import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from tests.pipelines.cluster.contract import Contract, ContractError, Request

PREFIX = "/pipeline"
"""Where Kubeflow's gateway puts Kubeflow Pipelines."""
API = "/apis/v2beta1"
CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 429: 8, 500: 13, 503: 14}
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
TYPES: dict[str, tuple[type, ...]] = {
    "STRING": (str,),
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (int, float),
    "LIST": (list,),
    "STRUCT": (dict,),
    "BOOLEAN": (bool,),
}


class RefusalError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


Fault = Callable[["Handler"], None]


@dataclass
class Cluster:
    """What the server knows, and how it behaves.

    Attributes:
        contract: judges every request and answer.
        token, cookie: wanted of every request; None: nobody is asked.
        namespaces: that may be used; None: there is one user.
        moments: how runs look, one at each look; the last one stays.
        faults: one is used up by each request that it fits: method, part of the path, what happens instead.
    """

    contract: Contract
    token: str | None = None
    cookie: str | None = None
    namespaces: set[str] | None = None
    moments: list[dict[str, Any]] = field(default_factory=lambda: [{"state": "SUCCEEDED"}])
    faults: list[tuple[str, str, Fault]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recurring_runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    packages: list[bytes] = field(default_factory=list)
    looks: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, method: str, path: str, what: Fault, times: int = 1) -> None:
        self.faults += [(method, path, what)] * times

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for entry in self.faults:
                if entry[0] == method and entry[1] in path:
                    self.faults.remove(entry)
                    return entry[2]
        return None

    def asked(self) -> list[str]:
        return [f"{request.method} {request.path.removeprefix(API)}" for request in self.requests]

    # -- what the API does

    def get_healthz(self, request: Request) -> Any:
        return {"multi_user": self.namespaces is not None}

    def get_pipelines(self, request: Request) -> Any:
        self._permit(request.query.get("namespace"))
        return _listed("pipelines", self.pipelines, request)

    def post_pipelines(self, request: Request) -> Any:
        body = request.json
        self._permit(body.get("namespace"))
        if any(entry["name"] == body["name"] for entry in self.pipelines.values()):
            raise RefusalError(409, f"the name {body['name']} exists already")
        return _kept(self.pipelines, "pipeline_id", body)

    def get_pipelines_versions(self, request: Request) -> Any:
        mine = {
            key: entry
            for key, entry in self.versions.items()
            if entry["pipeline_id"] == request.parameters["pipeline_id"]
        }
        return _listed("pipeline_versions", mine, request)

    def post_pipelines_upload_version(self, request: Request) -> Any:
        query = request.query
        if query.get("pipelineid") not in self.pipelines:
            raise RefusalError(404, f"pipeline {query.get('pipelineid')} not found")
        content = request.upload()
        self.packages.append(content)
        if any(entry["name"] == query["name"] for entry in self.versions.values()):
            raise RefusalError(409, f"the name {query['name']} exists already")
        spec, *platform = yaml.safe_load_all(content)
        json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
        json_format.ParseDict(platform[0] if platform else {}, pipeline_spec_pb2.PlatformSpec())
        entry = {
            "pipeline_id": query["pipelineid"],
            "name": query["name"],
            "display_name": query["name"],
            "description": query.get("description", ""),
            "pipeline_spec": {"pipeline_spec": spec, "platform_spec": platform[0]} if platform else spec,
        }
        return _kept(self.versions, "pipeline_version_id", entry)

    def get_experiments(self, request: Request) -> Any:
        self._permit(request.query.get("namespace"))
        return _listed("experiments", self.experiments, request)

    def post_experiments(self, request: Request) -> Any:
        body = request.json
        self._permit(body.get("namespace"))
        return _kept(self.experiments, "experiment_id", {"storage_state": "AVAILABLE", **body})

    def post_runs(self, request: Request) -> Any:
        body = request.json
        self._check_order(body)
        return _kept(self.runs, "run_id", {"state": "PENDING", **body})

    def get_runs_one(self, request: Request) -> Any:
        run = self.runs.get(request.parameters["run_id"])
        if run is None:
            raise RefusalError(404, f"run {request.parameters['run_id']} not found")
        moment = self.moments[min(self.looks, len(self.moments) - 1)]
        self.looks += 1
        return {**run, **moment}

    def get_recurringruns(self, request: Request) -> Any:
        self._permit(request.query.get("namespace"))
        return _listed("recurringRuns", self.recurring_runs, request)

    def post_recurringruns(self, request: Request) -> Any:
        body = request.json
        self._check_order(body)
        if not 1 <= int(body["max_concurrency"]) <= 10:
            raise RefusalError(400, "max_concurrency must be between 1 and 10")
        return _kept(self.recurring_runs, "recurring_run_id", {"status": "ENABLED", **body})

    def _permit(self, namespace: str | None) -> None:
        if self.namespaces is None:
            return
        if not namespace:
            raise RefusalError(400, "namespace is empty")
        if namespace not in self.namespaces:
            raise RefusalError(403, f"user is not authorized in namespace {namespace}")

    def _check_order(self, body: dict[str, Any]) -> None:
        """Refuse parameters that the version does not have, or of another type."""
        if body["experiment_id"] not in self.experiments:
            raise RefusalError(404, f"experiment {body['experiment_id']} not found")
        version = self.versions.get(body["pipeline_version_reference"]["pipeline_version_id"])
        if version is None:
            raise RefusalError(404, "pipeline version not found")
        spec = version["pipeline_spec"]
        declared = spec.get("pipeline_spec", spec)["root"]["inputDefinitions"]["parameters"]
        for name, value in body["runtime_config"]["parameters"].items():
            if name not in declared:
                raise RefusalError(400, f"the pipeline has no parameter {name}")
            kind = declared[name]["parameterType"]
            if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
                raise RefusalError(400, f"parameter {name}: {value!r} is no {kind}")


ROUTES = {
    ("GET", "/healthz"): Cluster.get_healthz,
    ("GET", "/pipelines"): Cluster.get_pipelines,
    ("POST", "/pipelines"): Cluster.post_pipelines,
    ("GET", r"/pipelines/[^/]+/versions"): Cluster.get_pipelines_versions,
    ("POST", "/pipelines/upload_version"): Cluster.post_pipelines_upload_version,
    ("GET", "/experiments"): Cluster.get_experiments,
    ("POST", "/experiments"): Cluster.post_experiments,
    ("POST", "/runs"): Cluster.post_runs,
    ("GET", r"/runs/[^/]+"): Cluster.get_runs_one,
    ("GET", "/recurringruns"): Cluster.get_recurringruns,
    ("POST", "/recurringruns"): Cluster.post_recurringruns,
}


def task(name: str, state: str, start: int = 0, seconds: int | None = None, **more: Any) -> dict[str, Any]:
    """A task of a run, begun some seconds after the run."""
    begun = EPOCH + timedelta(seconds=start)
    end = {} if seconds is None else {"end_time": (begun + timedelta(seconds=seconds)).isoformat()}
    return {
        "task_id": more.pop("task_id", f"{name}-{start}"),
        "display_name": name,
        "state": state,
        "start_time": begun.isoformat(),
        **end,
        **more,
    }


def moment(state: str, *tasks: dict[str, Any], **more: Any) -> dict[str, Any]:
    """How a run looks at one time."""
    return {"state": state, "run_details": {"task_details": list(tasks)}, **more}


def _kept(where: dict[str, dict[str, Any]], key: str, entry: dict[str, Any]) -> dict[str, Any]:
    identifier = str(uuid.uuid4())
    where[identifier] = {**entry, key: identifier, "created_at": EPOCH.isoformat()}
    return where[identifier]


def _listed(name: str, entries: dict[str, dict[str, Any]], request: Request) -> dict[str, Any]:
    """List what a filter lets through, as KFP does: without the field where there is nothing."""
    found = list(entries.values())
    if "filter" in request.query:
        for predicate in json.loads(request.query["filter"])["predicates"]:
            assert predicate["operation"] in {1, "EQUALS"}
            found = [entry for entry in found if entry.get(predicate["key"]) == predicate["stringValue"]]
    return {name: found, "total_size": len(found)} if found else {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: Cluster
    request_: Request

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        cluster = self.cluster
        target = self.path.removeprefix(PREFIX)
        fault = cluster.take_fault(self.command, target)
        try:
            self.request_ = request = cluster.contract.request(self.command, target, self.headers, body)
        except ContractError as error:
            cluster.violations.append(str(error))
            self.send(400, {"code": CODES[400], "message": str(error), "details": []})
            return
        if fault is not None:
            fault(self)
            return
        cluster.requests.append(request)
        try:
            self._authenticate()
            path = request.path.removeprefix(API)
            route = next(
                what for (method, known), what in ROUTES.items() if method == self.command and re.fullmatch(known, path)
            )
            with cluster.lock:
                status, content = 200, route(cluster, request)
        except RefusalError as refusal:
            status, content = refusal.status, {"code": CODES[refusal.status], "message": str(refusal), "details": []}
        self.answer(status, content)

    def answer(self, status: int, content: Any) -> None:
        """Send what the document lets the server say."""
        try:
            self.cluster.contract.check_answer(self.request_, status, content)
        except ContractError as error:
            self.cluster.violations.append(str(error))
        self.send(status, content)

    def _authenticate(self) -> None:
        cluster = self.cluster
        if cluster.token and self.headers["authorization"] != f"Bearer {cluster.token}":
            raise RefusalError(401, "the token is not valid")
        if cluster.cookie and self.headers["cookie"] != cluster.cookie:
            raise RefusalError(401, "the session is not known")

    def send(self, status: int, content: Any, kind: str = "application/json", **headers: str) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def refuse(status: int, message: str = "it went wrong") -> Fault:
    return lambda handler: handler.answer(status, {"code": CODES[status], "message": message, "details": []})


def web_page(handler: Handler) -> None:
    handler.send(200, "<!doctype html><title>Log in</title>", "text/html")


def log_in(handler: Handler) -> None:
    handler.send(302, "", "text/html", Location="/dex/auth?client_id=kubeflow&state=secret-state")


def drop(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def stall(seconds: float) -> Fault:
    def wait(handler: Handler) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return wait


class KfpServer(ThreadingHTTPServer):
    """The server on a free port of this machine."""

    daemon_threads = True

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"cluster": cluster}))
        self.cluster = cluster
        self.host = f"http://127.0.0.1:{self.server_address[1]}{PREFIX}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass
