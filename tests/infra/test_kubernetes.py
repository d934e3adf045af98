"""The manifests, built by the kustomize that people use, and the rules that they keep."""

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed: pip install '.[dev]'")

from infra.kubernetes.__main__ import schema_complaints
from infra.kubernetes.build import FOLDER, OVERLAYS, UPGRADES, build, kustomize_version
from infra.kubernetes.rules import MADE_BY_HAND, complaints
from metalearn_core.errors import MetalearnError

Objects = list[dict[str, Any]]
ROOT = FOLDER.parent.parent


@pytest.fixture(scope="module")
def built() -> dict[str, Objects]:
    return built_from(OVERLAYS)


@pytest.fixture(scope="module")
def upgrading() -> dict[str, Objects]:
    return built_from(UPGRADES)


def built_from(overlays: tuple[str, ...]) -> dict[str, Objects]:
    try:
        return {overlay: build(overlay) for overlay in overlays}
    except MetalearnError as error:
        if "no such program" in str(error):
            pytest.skip(str(error))
        raise


def find(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    return next(one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name))


def container(objects: Objects, kind: str = "Deployment", name: str = "mlflow") -> dict[str, Any]:
    return find(objects, kind, name)["spec"]["template"]["spec"]["containers"][0]


def test_kustomize_is_a_recent_one() -> None:
    assert tuple(map(int, re.findall(r"\d+", kustomize_version())[:2])) >= (5, 7)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_knows_every_field_and_no_rule_is_broken(built: dict[str, Objects], overlay: str) -> None:
    assert schema_complaints(built[overlay]) == []
    assert complaints(built[overlay]) == []


@pytest.mark.parametrize("overlay", UPGRADES)
def test_an_upgrade_is_a_job_with_the_servers_image_database_and_ways_and_no_server(
    upgrading: dict[str, Objects], built: dict[str, Objects], overlay: str
) -> None:
    objects = upgrading[overlay]
    assert schema_complaints(objects) == []
    assert complaints(objects) == []
    assert find(objects, "Deployment", "mlflow")["spec"]["replicas"] == 0
    server, upgrade = container(objects), container(objects, "Job", "mlflow-upgrade")
    assert upgrade["image"] == server["image"]
    assert upgrade["command"][:3] == ["mlflow", "db", "upgrade"]
    [source] = upgrade["envFrom"]
    assert source in server["envFrom"]
    assert source["secretRef"]["name"].startswith("mlflow-database")
    assert not upgrade.get("ports"), "a service would find them"
    labels = find(objects, "Job", "mlflow-upgrade")["spec"]["template"]["metadata"]["labels"]
    ways = find(objects, "NetworkPolicy", "mlflow-to-its-stores")["spec"]["podSelector"]["matchLabels"]
    assert ways.items() <= labels.items()
    assert not [one for one in built[overlay.partition("/")[0]] if one["kind"] == "Job"]


def test_a_job_needs_no_probes_and_every_other_rule_is_its_too(upgrading: dict[str, Objects]) -> None:
    objects = copy.deepcopy(upgrading["laptop/upgrade"])
    container(objects, "Job", "mlflow-upgrade")["securityContext"].pop("capabilities")
    [line] = complaints(objects)
    assert line.startswith("Job mlflow-upgrade: container upgrade keeps capabilities")


def test_names_are_resolved_on_nodes_that_keep_a_cache_of_their_own(built: dict[str, Objects]) -> None:
    for objects in built.values():
        [rule] = find(objects, "NetworkPolicy", "allow-dns")["spec"]["egress"]
        assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in rule["to"]
        assert {entry["port"] for entry in rule["ports"]} == {53}


def test_the_binding_to_the_clusters_runtimes_is_of_one_namespace(built: dict[str, Objects]) -> None:
    [binding] = [one for one in built["production"] if one["kind"] == "ClusterRoleBinding"]
    [subject] = binding["subjects"]
    assert binding["metadata"]["name"] == f"metalearn-read-training-runtimes.{subject['namespace']}"
    assert find(built["production"], "ClusterRole", binding["roleRef"]["name"])


def test_an_unknown_field_and_an_unknown_kind_are_refused(built: dict[str, Objects]) -> None:
    objects = copy.deepcopy(built["laptop"])
    find(objects, "Deployment", "mlflow")["spec"]["replica"] = 2
    find(objects, "Service", "mlflow")["kind"] = "Servize"
    assert len(schema_complaints(objects)) == 2


BREAK: list[tuple[str, Callable[[Objects], Any]]] = [
    ("may run as root", lambda o: _pod(o)["securityContext"].pop("runAsNonRoot")),
    ("no seccomp profile", lambda o: _pod(o)["securityContext"].pop("seccompProfile")),
    ("gets a token", lambda o: _pod(o).pop("automountServiceAccountToken")),
    ("may gain rights", lambda o: container(o)["securityContext"].update(allowPrivilegeEscalation=True)),
    ("keeps capabilities", lambda o: container(o)["securityContext"].pop("capabilities")),
    ("root file system", lambda o: container(o)["securityContext"].update(readOnlyRootFilesystem=False)),
    ("no limits", lambda o: container(o)["resources"]["limits"].pop("memory")),
    ("no livenessProbe", lambda o: container(o).pop("livenessProbe")),
    ("the latest", lambda o: container(o).update(image="registry.example.com:5000/mlflow:latest")),
    ("the latest", lambda o: container(o).update(image="registry.example.com:5000/mlflow")),
    ("clear text", lambda o: container(o).update(env=[{"name": "PGPASSWORD", "value": "x"}])),
    ("in an address", lambda o: container(o).update(args=["--backend-store-uri=postgresql://me:pass@host/db"])),
    ("nobody makes", lambda o: container(o)["envFrom"].append({"secretRef": {"name": "other"}})),
    ("nobody makes", lambda o: _pod(o).update(serviceAccountName="other")),
    ("everything", lambda o: find(o, "Role", "metalearn-pipeline")["rules"][0].update(verbs=["*"])),
    ("all secrets", lambda o: find(o, "Role", "metalearn-pipeline")["rules"][2].pop("resourceNames")),
    ("none allows", lambda o: o.remove(find(o, "NetworkPolicy", "default-deny"))),
    ("who may talk", lambda o: o.remove(find(o, "NetworkPolicy", "postgres-clients"))),
    ("no namespace", lambda o: find(o, "Service", "mlflow")["metadata"].pop("namespace")),
]


def _pod(objects: Objects) -> dict[str, Any]:
    return find(objects, "Deployment", "mlflow")["spec"]["template"]["spec"]


@pytest.mark.parametrize(("expected", "damage"), BREAK)
def test_each_rule_sees_what_breaks_it(
    built: dict[str, Objects], expected: str, damage: Callable[[Objects], Any]
) -> None:
    objects = copy.deepcopy(built["laptop"])
    damage(objects)
    assert expected in "\n".join(complaints(objects))


def test_the_readme_names_every_secret_that_is_made_by_hand() -> None:
    text = (FOLDER / "README.md").read_text()
    for _, namespace, name in MADE_BY_HAND:
        assert f"-n {namespace} create secret generic {name}" in text
    for name in ("metalearn-storage", "metalearn-tracking"):
        assert f"create secret generic {name}" in text


def test_trainjobs_are_allowed_only_where_they_are_used(built: dict[str, Objects]) -> None:
    allowed = {
        overlay: [
            one["metadata"]["name"]
            for one in objects
            for rule in one.get("rules", [])
            if "trainjobs" in rule["resources"]
        ]
        for overlay, objects in built.items()
    }
    assert allowed == {"laptop": [], "production": ["metalearn-trainjobs"]}


def test_the_pipelines_find_their_settings_by_the_names_in_the_compiled_pipeline(built: dict[str, Objects]) -> None:
    for objects in built.values():
        settings = find(objects, "ConfigMap", "metalearn")
        assert settings["data"]["MLFLOW_TRACKING_URI"].startswith("http://mlflow.metalearn.svc")
    secrets = [find(built["laptop"], "Secret", name) for name in ("metalearn-storage", "metalearn-tracking")]
    assert [sorted(one["data"]) for one in secrets] == [
        ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
        ["MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_USERNAME"],
    ]


def test_the_servers_own_names_are_allowed_hosts(built: dict[str, Objects]) -> None:
    for objects in built.values():
        data = next(
            one["data"] for one in objects if one["kind"] == "ConfigMap" and "MLFLOW_HOST" in one.get("data", {})
        )
        hosts = data["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
        uri = find(objects, "ConfigMap", "metalearn")["data"]["MLFLOW_TRACKING_URI"]
        assert uri.removeprefix("http://") in hosts
        assert not any("*" in host for host in hosts)


def test_secrets_are_made_once_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infra.kubernetes.make_secrets", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 7
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)
    content = {path: path.read_bytes() for path in files}
    again = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert again.returncode == 1
    assert len(again.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in files} == content


def test_git_keeps_no_secret_files() -> None:
    for overlay in ("laptop/server", "laptop/pipelines"):
        file = FOLDER / "overlays" / overlay / "secrets" / "x.env"
        asked = subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", str(file)], check=False)
        if asked.returncode == 128:
            pytest.skip("this is no git checkout")
        assert asked.returncode == 0
