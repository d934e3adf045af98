"""The pipeline as it is uploaded: compiled, with a name that tells the code and a digest that tells the content."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from metalearn_core.steps.placement import TrainingPod
from metalearn_core.version import git_commit, package_version, version_name
from pipelines.cluster.placement import Placement
from pipelines.cluster.quiet import quiet

_DIGEST = re.compile(r"content ([0-9a-f]{64})")


@dataclass(frozen=True)
class Package:
    """A compiled pipeline.

    Attributes:
        pipeline: the pipeline's name.
        version: the version's: the package's version and the commit.
        path: its YAML.
        digest: SHA-256 of the YAML.
    """

    pipeline: str
    version: str
    path: Path
    digest: str

    @property
    def exact_version(self) -> str:
        """A name that no other content has."""
        return f"{self.version}-{self.digest[:8]}"

    @property
    def description(self) -> str:
        """What stands beside the version on KFP's page, and tells later submissions what it holds."""
        return f"metalearn {package_version()}, commit {git_commit()}, content {self.digest}"


def package_at(path: Path, pipeline: str) -> Package:
    """Return the package of a pipeline that was compiled to a path."""
    return Package(pipeline, version_name(), path, hashlib.sha256(path.read_bytes()).hexdigest())


def digest_in(description: str | None) -> str | None:
    """Return the digest of the content that a version's description tells."""
    found = _DIGEST.search(description or "")
    return found[1] if found else None


@contextmanager
def compiled(
    *, tracking_uri: str, build_shards: int, image: str, placement: Placement | None = None
) -> Iterator[Package]:
    """Compile the pipeline, for steps in an image, into a folder that goes with the block."""
    from pipelines.few_shot import NAME, compile_pipeline

    with TemporaryDirectory(prefix="metalearn-") as folder:
        path = Path(folder) / f"{NAME}.yaml"
        with quiet():
            compile_pipeline(
                str(path),
                image=image,
                build_shards=build_shards,
                tracking_uri=tracking_uri,
                placement=_without_choice(placement),
            )
        yield package_at(path, NAME)


def _without_choice(placement: Placement | None) -> Placement:
    """Return a placement whose choice of the training's pod is the usual one: it goes with the run, not the version."""
    placement = placement or Placement()
    usual = TrainingPod().model_dump()
    return placement.model_copy(update={"train": placement.train.model_copy(update=usual)})
