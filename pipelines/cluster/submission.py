"""Put the pipeline on the cluster and start it: a version of it, an experiment, a run or a schedule."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metalearn_core.errors import UsageError
from pipelines.cluster.errors import ClusterError, ConflictError, UnavailableError
from pipelines.cluster.package import Package, digest_in
from pipelines.cluster.quiet import quiet
from pipelines.cluster.schedule import Schedule

if TYPE_CHECKING:
    from pipelines.cluster.client import ClusterClient

_EQUALS = 1


@dataclass(frozen=True)
class Version:
    """A version of the pipeline on the cluster.

    Attributes:
        pipeline_id, version_id: KFP's.
        name: of the version.
        uploaded: by this submission; otherwise it was there.
    """

    pipeline_id: str
    version_id: str
    name: str
    uploaded: bool


@dataclass(frozen=True)
class Order:
    """What a run or a schedule is made of, beside the version.

    Attributes:
        name: shown on KFP's page.
        experiment_id: KFP's.
        arguments: the pipeline's inputs.
        pipeline_root: where KFP keeps artifacts; None: where the cluster does by default.
        service_account: the pods'; None: the cluster's default.
    """

    name: str
    experiment_id: str
    arguments: dict[str, Any]
    pipeline_root: str | None = None
    service_account: str | None = None


def check_host(client: "ClusterClient") -> None:
    """Ask the host whether it is there.

    Raises:
        UsageError: it has many users, and no namespace is given.
        ClusterError: it does not answer as Kubeflow Pipelines.
    """
    health = client._healthz_api.healthz_service_get_healthz()
    if health.multi_user and not client.connection.namespace:
        raise UsageError(f"--namespace is wanted: {client.connection.host} has many users, each in a namespace")


def upload(client: "ClusterClient", package: Package, note: Callable[[str], None]) -> Version:
    """Return the version that holds the package: one that is there, or else a new one.

    A version's content never changes. Where one of the same name holds other content (uncommitted changes, another
    image or placement), this is said, and the name of the new one ends with a digest of its content.

    Raises:
        ClusterError: the cluster refuses, or does not answer.
    """
    pipeline_id = _pipeline(client, package)
    version = _version(client, pipeline_id, package, package.version)
    if version is None:
        note(
            f"version {package.version} of pipeline {package.pipeline} is there with other content: "
            f"this one is {package.exact_version}"
        )
        version = _version(client, pipeline_id, package, package.exact_version)
    if version is None:
        raise ClusterError(
            f"version {package.exact_version} of pipeline {package.pipeline} is there with other content: delete it"
        )
    return version


def _pipeline(client: "ClusterClient", package: Package) -> str:
    """Return the pipeline's id; the pipeline is made where it is missing."""
    found = _find_pipeline(client, package.pipeline)
    if found is None:
        import kfp_server_api

        made = kfp_server_api.V2beta1Pipeline(
            name=package.pipeline,
            display_name=package.pipeline,
            description="Few-shot meta-learning: from labelled data to a promoted model.",
            namespace=client.connection.namespace,
        )
        try:
            found = client.pipelines.pipeline_service_create_pipeline(made)
        except ConflictError:  # another submission was faster
            found = _find_pipeline(client, package.pipeline)
            if found is None:
                raise
    return str(found.pipeline_id)


def _find_pipeline(client: "ClusterClient", name: str) -> Any:
    answer = client.list_pipelines(filter=_named(name), namespace=client.connection.namespace)
    return answer.pipelines[0] if answer.pipelines else None


def _version(client: "ClusterClient", pipeline_id: str, package: Package, name: str) -> Version | None:
    """Return the version of that name, uploaded where it is missing; None where it holds other content."""
    found = _find_version(client, pipeline_id, name)
    if found is None:
        try:
            with quiet():
                made = client.upload_pipeline_version(
                    str(package.path), name, pipeline_id=pipeline_id, description=package.description
                )
            return Version(pipeline_id, str(made.pipeline_version_id), name, uploaded=True)
        except ConflictError:
            found = _find_version(client, pipeline_id, name)
            if found is None:
                raise
    if not _holds(found, package):
        return None
    return Version(pipeline_id, str(found.pipeline_version_id), name, uploaded=False)


def _find_version(client: "ClusterClient", pipeline_id: str, name: str) -> Any:
    answer = client.list_pipeline_versions(pipeline_id, filter=_named(name))
    return answer.pipeline_versions[0] if answer.pipeline_versions else None


def _holds(version: Any, package: Package) -> bool:
    """Return whether a version holds the package: by the digest in its description, or else by what it does."""
    digest = digest_in(version.description)
    if digest is not None:
        return digest == package.digest
    return version.pipeline_spec is not None and _parsed(version.pipeline_spec) == _parsed(_documents(package))


def _documents(package: Package) -> dict[str, Any]:
    import yaml

    spec, *platform = yaml.safe_load_all(package.path.read_text())
    return {"pipeline_spec": spec, "platform_spec": platform[0]} if platform else dict(spec)


def _parsed(content: dict[str, Any]) -> tuple[Any, Any]:
    """Return a version's content as KFP's own messages, which compare whatever way their JSON was written."""
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    spec, platform = content.get("pipeline_spec", content), content.get("platform_spec", {})
    try:
        return (
            json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec()),
            json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec()),
        )
    except json_format.ParseError:
        return (content, None)


def _named(name: str, key: str = "name") -> str:
    """Return KFP's filter for one name."""
    return json.dumps({"predicates": [{"operation": _EQUALS, "key": key, "stringValue": name}]})


def experiment(client: "ClusterClient", name: str) -> str:
    """Return the id of the experiment, which is made where it is missing.

    Raises:
        ClusterError: the cluster refuses, or the experiment is in the archive.
    """
    namespace = client.connection.namespace
    try:
        with quiet():
            found = client.create_experiment(name, namespace=namespace)
    except ConflictError:
        found = client.get_experiment(experiment_name=name, namespace=namespace)
    except ValueError as error:
        raise ClusterError(f"{client.connection.host}: {error}") from None
    if found.storage_state == "ARCHIVED":
        raise ClusterError(f"experiment {name!r} is in KFP's archive: restore it there, or give another --experiment")
    return str(found.experiment_id)


def start_run(client: "ClusterClient", version: Version, order: Order) -> str:
    """Start a run, and return its id.

    Raises:
        ClusterError: the cluster refuses; or its answer is lost, and with it whether the run was started.
    """
    with _told("the run may have been started all the same", client), quiet():
        run = client.run_pipeline(
            order.experiment_id,
            order.name,
            params=order.arguments,
            pipeline_id=version.pipeline_id,
            version_id=version.version_id,
            pipeline_root=order.pipeline_root,
            service_account=order.service_account,
        )
    return str(run.run_id)


def same_schedules(client: "ClusterClient", order: Order) -> list[str]:
    """Return the ids of schedules of the same name that start runs already."""
    answer = client.list_recurring_runs(
        experiment_id=order.experiment_id,
        namespace=client.connection.namespace,
        filter=_named(order.name, "display_name"),
    )
    return [str(entry.recurring_run_id) for entry in answer.recurring_runs or [] if entry.status == "ENABLED"]


def start_schedule(client: "ClusterClient", version: Version, order: Order, schedule: Schedule) -> str:
    """Start recurring runs, and return their id.

    Raises:
        ClusterError: the cluster refuses; or its answer is lost, and with it whether the schedule was made.
    """
    with _told("the schedule may have been made all the same", client), quiet():
        recurring = client.create_recurring_run(
            order.experiment_id,
            order.name,
            cron_expression=schedule.cron,
            max_concurrency=str(schedule.max_concurrency),  # the API's 64-bit integers are strings
            no_catchup=not schedule.catchup,
            params=order.arguments,
            pipeline_id=version.pipeline_id,
            version_id=version.version_id,
            pipeline_root=order.pipeline_root,
            service_account=order.service_account,
        )
    return str(recurring.recurring_run_id)


@contextmanager
def _told(doubt: str, client: "ClusterClient") -> Iterator[None]:
    """Say where an answer is lost that it may have been a good one."""
    try:
        yield
    except UnavailableError as error:
        raise ClusterError(f"{error}; {doubt}: look at {client.connection.page('runs')} first") from None
