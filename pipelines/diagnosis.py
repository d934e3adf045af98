"""What `metalearn doctor` looks at: each check apart, each telling what it found."""

import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from metalearn_core.errors import MetalearnError, one_line
from metalearn_core.resources import available_cores
from pipelines.workdir import Workdir

_PACKAGES = ("torch", "kfp", "mlflow", "great-expectations", "pyarrow", "pillow", "numpy")
_LEAST_FREE_GB = 2


@dataclass(frozen=True)
class Finding:
    """One check: whether all is well, what was looked at, and what was found."""

    ok: bool
    check: str
    found: str


def diagnose(workdir: Workdir) -> list[Finding]:
    """Run all checks; none raises."""
    checks: dict[str, Callable[[], str]] = {
        "python": _python,
        **{name: lambda name=name: version(name) for name in _PACKAGES},  # type: ignore[misc]
        "compute": _compute,
        "work directory": lambda: _workdir(workdir),
        "tracking": lambda: _tracking(workdir),
    }
    findings = []
    for name, check in checks.items():
        try:
            findings.append(Finding(True, name, check()))
        except (MetalearnError, OSError, PackageNotFoundError, ImportError) as error:
            findings.append(Finding(False, name, one_line(error)))
    return findings


def _python() -> str:
    return ".".join(str(part) for part in sys.version_info[:3])


def _compute() -> str:
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count()))
    return f"CPU, {available_cores()} cores"


def _workdir(workdir: Workdir) -> str:
    workdir.path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir.path):
        pass
    free = shutil.disk_usage(workdir.path).free / 1e9
    if free < _LEAST_FREE_GB:
        raise MetalearnError(f"{workdir.path}: {free:.1f} GB free, wanted {_LEAST_FREE_GB} or more")
    return f"{workdir.path}, {free:.0f} GB free"


def _tracking(workdir: Workdir) -> str:
    from metalearn_core import tracking_server

    uri = workdir.tracking_uri
    database = tracking_server.sqlite_path(uri)
    if database is not None and not database.exists():
        return f"{uri}, made by the first run"
    workdir.open_tracking()
    return tracking_server.shown(uri)
