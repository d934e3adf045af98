"""What the objects of an overlay must be beyond their schemas; each rule says which object breaks it, and how."""

import re
from collections.abc import Iterator
from typing import Any

from infra.kubernetes.build import Object

MADE_BY_HAND = frozenset(
    {
        ("Secret", "metalearn", "mlflow-database"),
        ("Secret", "metalearn", "mlflow-artifacts"),
        ("Secret", "metalearn", "mlflow-admin"),
    }
)
"""Secrets that whoever runs the production overlay makes: kind, namespace, name. The README says how."""
_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
_URI_PASSWORD = re.compile(r"://[^/\s:@]+:[^/\s@]+@")
_CLUSTER_WIDE = ("Namespace", "ClusterRole", "ClusterRoleBinding")


def complaints(objects: list[Object]) -> list[str]:
    """Return what is wrong with the objects of an overlay, a line each; nothing where all is well."""
    found: list[str] = []
    for entry in objects:
        name = f"{entry['kind']} {entry['metadata']['name']}"
        rules = [_namespace(entry), _clear_text(entry), _rights(entry)]
        if entry["kind"] in _WORKLOADS:
            pod = entry["spec"]["template"]["spec"]
            rules += [
                _pod(pod),
                *(_container(container) for container in _containers(pod)),
                *(_probes(container) for container in _containers(pod) if entry["kind"] != "Job"),
                _references(entry, objects),
            ]
        found += [f"{name}: {text}" for rule in rules for text in rule]
    return [*found, *_unguarded(objects)]


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def _namespace(entry: Object) -> Iterator[str]:
    if entry["kind"] not in _CLUSTER_WIDE and not entry["metadata"].get("namespace"):
        yield "has no namespace"


def _pod(pod: dict[str, Any]) -> Iterator[str]:
    context = pod.get("securityContext", {})
    if not context.get("runAsNonRoot") or not context.get("runAsUser"):
        yield "its pod may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "its pod has no seccomp profile"
    if pod.get("automountServiceAccountToken", True):
        yield "its pod gets a token that it has no use for"
    if any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield "its pod shares the node's own"
    if any("hostPath" in volume for volume in pod.get("volumes", [])):
        yield "its pod mounts a folder of the node"


def _container(container: dict[str, Any]) -> Iterator[str]:
    name, context = container["name"], container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield f"container {name} may gain rights"
    if context.get("capabilities", {}).get("drop") != ["ALL"]:
        yield f"container {name} keeps capabilities"
    if not context.get("readOnlyRootFilesystem"):
        yield f"container {name} may write to its root file system"
    resources = container.get("resources", {})
    for kind in ("requests", "limits"):
        if not {"cpu", "memory"} <= resources.get(kind, {}).keys():
            yield f"container {name} has no {kind} of cpu and memory"
    tag = container["image"].rpartition("/")[2].partition(":")[2]
    if "@sha256:" not in container["image"] and tag in {"", "latest"}:
        yield f"container {name} takes whatever image is the latest: {container['image']}"


def _probes(container: dict[str, Any]) -> Iterator[str]:
    for probe in _PROBES:
        if probe not in container:
            yield f"container {container['name']} has no {probe}"


def _clear_text(entry: Object) -> Iterator[str]:
    """A password belongs into a secret, not into a variable, an argument or a config map."""
    if entry["kind"] == "Secret":
        return
    values = dict(entry.get("data", {})) if entry["kind"] == "ConfigMap" else {}
    texts = list(values.values())
    if entry["kind"] in _WORKLOADS:
        for container in _containers(entry["spec"]["template"]["spec"]):
            texts += [*container.get("command", []), *container.get("args", [])]
            values |= {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}
    for name in values:
        if _SECRET_NAME.search(name):
            yield f"{name} stands in clear text"
    for text in [*texts, *values.values()]:
        if _URI_PASSWORD.search(text):
            yield "a password stands in an address"


def _rights(entry: Object) -> Iterator[str]:
    for rule in entry.get("rules", []) or [] if entry["kind"] in {"Role", "ClusterRole"} else []:
        if "*" in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]:
            yield "gives rights to everything (*)"
        if "secrets" in rule["resources"] and not rule.get("resourceNames"):
            yield "gives rights to all secrets"
    for subject in entry.get("subjects", []):
        if not subject.get("namespace"):
            yield f"binds {subject['name']} of no namespace"


def _references(entry: Object, objects: list[Object]) -> Iterator[str]:
    namespace, pod = entry["metadata"].get("namespace"), entry["spec"]["template"]["spec"]
    present = {(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in objects}
    wanted = {("ServiceAccount", pod.get("serviceAccountName", "default"))}
    for volume in pod.get("volumes", []):
        if "secret" in volume:
            wanted.add(("Secret", volume["secret"]["secretName"]))
        if "configMap" in volume:
            wanted.add(("ConfigMap", volume["configMap"]["name"]))
    for container in _containers(pod):
        sources = [*container.get("envFrom", []), *(one.get("valueFrom", {}) for one in container.get("env", []))]
        for source in sources:
            for field, reference in source.items():
                if field.startswith(("secret", "configMap")):
                    wanted.add(("Secret" if field.startswith("secret") else "ConfigMap", reference["name"]))
    for kind, name in sorted(wanted):
        if (kind, namespace, name) not in present | MADE_BY_HAND:
            yield f"refers to {kind} {name}, which nobody makes"


def _unguarded(objects: list[Object]) -> Iterator[str]:
    """Each namespace with pods of ours denies what no policy allows, and each workload's clients are named."""
    policies = [one for one in objects if one["kind"] == "NetworkPolicy"]
    for namespace in {one["metadata"].get("namespace") for one in objects if one["kind"] in _WORKLOADS}:
        denies = [
            one
            for one in policies
            if one["metadata"].get("namespace") == namespace
            and one["spec"]["podSelector"] == {}
            and set(one["spec"]["policyTypes"]) == {"Ingress", "Egress"}
            and not {"ingress", "egress"} & one["spec"].keys()
        ]
        if not denies:
            yield f"namespace {namespace}: no network policy denies what none allows"
    selected = [one["spec"]["podSelector"].get("matchLabels", {}) for one in policies if "ingress" in one["spec"]]
    for one in objects:
        if one["kind"] in _WORKLOADS:
            labels = one["spec"]["template"]["metadata"]["labels"]
            if not any(chosen and chosen.items() <= labels.items() for chosen in selected):
                yield f"{one['kind']} {one['metadata']['name']}: no network policy says who may talk to it"
