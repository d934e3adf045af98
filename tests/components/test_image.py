"""An image's name means one image."""

from pathlib import Path

import pytest

from components.image import IMAGE, PACKAGES, pinned
from metalearn_core.errors import UsageError
from metalearn_core.version import digest_of_sources, package_version

DIGEST = f"sha256:{'0a' * 32}"


def test_the_own_image_is_named_by_version_and_sources() -> None:
    root = Path(__file__).parent.parent.parent
    sources = digest_of_sources(*(root / name for name in PACKAGES))
    assert f"metalearn-python:{package_version()}-{sources}" == IMAGE == pinned(IMAGE)


def test_every_edit_of_any_package_is_another_image(tmp_path: Path) -> None:
    packages = [tmp_path / name for name in PACKAGES]
    seen = set()
    for package in packages:
        package.mkdir()
        (package / "module.py").write_text("")
        seen.add(digest_of_sources(*packages))
        (package / "module.py").write_text("# edited")
        seen.add(digest_of_sources(*packages))
    assert len(seen) == 2 * len(PACKAGES)


@pytest.mark.parametrize("place", ["metalearn", "registry.example/team/metalearn", "localhost:5000/metalearn"])
@pytest.mark.parametrize("rest", [":0.1.0", f"@{DIGEST}", f":latest@{DIGEST}"])
def test_a_tag_that_stays_or_a_digest_pins_an_image(place: str, rest: str) -> None:
    assert pinned(place + rest) == place + rest


@pytest.mark.parametrize("name", ["metalearn", "metalearn:latest", "localhost:5000/metalearn", "a/b:latest"])
def test_a_name_that_means_another_image_tomorrow_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="digest"):
        pinned(name)


@pytest.mark.parametrize("name", ["Metalearn:1", "a b:1", "metalearn:", ":1", f"metalearn@{DIGEST[:-1]}", "a//b:1"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="expected an image's name"):
        pinned(name)


def test_the_image_runs_as_the_user_that_the_cluster_gives_its_steps() -> None:
    from pipelines.cluster.placement import IMAGE_USER

    containerfile = Path(__file__).parents[2] / "infra/images/Containerfile"
    assert f"USER {IMAGE_USER}:{IMAGE_USER}" in containerfile.read_text()
