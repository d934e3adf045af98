"""An image's name means one image."""

import subprocess
from pathlib import Path

import pytest

from components.image import ARGUMENTS, IMAGE, PACKAGES, RECIPE, build, default_image, pinned, repository_address
from metalearn_core.errors import UsageError
from metalearn_core.version import IMAGE_VARIABLE, git_commit, package_version

OTHERS = ("pipelines/recipes/one.yaml", "components/one/README.md", "metalearn_core/page.html.j2")
DIGEST = f"sha256:{'0a' * 32}"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one file where each part of an image has its own, all of them committed."""
    monkeypatch.delenv(IMAGE_VARIABLE, raising=False)
    monkeypatch.delenv("METALEARN_GIT_COMMIT", raising=False)
    for name in [*(f"{package}/module.py" for package in PACKAGES), *OTHERS, *RECIPE]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True)
    git_commit.cache_clear()


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", "x", "--allow-empty")


def test_the_own_image_is_named_by_version_and_content() -> None:
    assert f"metalearn-python:{package_version()}-" in IMAGE
    assert IMAGE == pinned(IMAGE) == default_image()


@pytest.mark.parametrize("name", [*(f"{package}/module.py" for package in PACKAGES), *OTHERS, *RECIPE])
def test_every_edit_of_a_package_or_of_the_recipe_is_another_image(checkout: Path, name: str) -> None:
    before = default_image(checkout)
    (checkout / name).write_text("# edited")
    assert default_image(checkout) != before


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_image_with_another_base_or_torch_is_another_image_under_either_name(checkout: Path, name: str) -> None:
    usual, other = build(checkout, {}), build(checkout, {name: "other"})
    assert len({*usual.names, *other.names, *build(checkout, {name: "third"}).names}) == 6
    assert all(pinned(one) for one in other.names)


def test_an_image_is_named_by_its_commit_only_where_that_says_what_is_in_it(checkout: Path) -> None:
    clean = build(checkout, {})
    assert clean.names == (default_image(checkout), f"metalearn-python:{clean.version}-{clean.commit}")
    (checkout / "components" / "new.py").write_text("")  # git does not know it, and the image would have it
    untracked = build(checkout, {})
    assert untracked.commit == f"{clean.commit}-dirty"
    assert untracked.names == (default_image(checkout),)
    commit(checkout)
    assert len(build(checkout, {}).names) == 2
    (checkout / "pyproject.toml").write_text("# edited")
    git_commit.cache_clear()
    assert build(checkout, {}).commit.endswith("-dirty")
    assert len(build(checkout, {}).names) == 1


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://me:secret@git.example/team/name.git", "https://git.example/team/name.git"),
        ("https://git.example:8443/team/name.git?token=secret", "https://git.example:8443/team/name.git"),
        ("ssh://me@git.example/team/name", "ssh://git.example/team/name"),
        ("git@github.com:team/name.git", "https://github.com/team/name.git"),
        ("/srv/git/name.git", "/srv/git/name.git"),
    ],
)
def test_the_source_of_an_image_is_its_git_remote_without_credentials(
    checkout: Path, remote: str, address: str
) -> None:
    assert build(checkout, {}).source == ""
    git(checkout, "remote", "add", "upstream", remote)
    assert repository_address(checkout) == build(checkout, {}).source == address
    assert build(checkout, {"SOURCE": "https://else.example"}).source == "https://else.example"


def test_inside_an_image_the_image_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IMAGE_VARIABLE, "registry.example/metalearn-python:1")
    assert default_image() == "registry.example/metalearn-python:1"


@pytest.mark.parametrize("place", ["metalearn", "registry.example/team/metalearn", "localhost:5000/metalearn"])
@pytest.mark.parametrize("rest", [":0.1.0", f"@{DIGEST}", f":latest@{DIGEST}"])
def test_a_tag_that_stays_or_a_digest_pins_an_image(place: str, rest: str) -> None:
    assert pinned(place + rest) == place + rest


@pytest.mark.parametrize(
    "name", ["metalearn", "metalearn:latest", "localhost:5000/metalearn", "a/b:latest", "a/b:0.1.0-4f2a-dirty"]
)
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
