"""Every command of README.md and docs/ that is not marked as not run is run: from the page's text, in its order.

A page has a folder of its own, which looks like a checkout with what the pages presuppose: images in `photos/`,
`labelled/` and `unlabelled/`, an episode dataset. All pages share a work directory with two versions of the model
`parts` and one of `few-shot`, which runs of the pages' own text have made.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import traceback
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import boto3
import numpy as np
import pandas
import pytest
from PIL import Image

from infra.local.stack import Stack
from tests.test_documented_commands import PYTHON, Command, documented

ROOT = Path(__file__).parents[1]
DOCUMENTED = documented()
PAGES = [page for page, commands in DOCUMENTED.items() if any(not command.not_run for command in commands)]

FIRST, SECOND, LETTERS = (
    "metalearn run photos --model-name parts --shot 5 --query 5",
    "metalearn run photos --model-name parts --set gate.min_accuracy=0.9 --set gate.max_ece=0.05",
    "make run",
)
FORCE = 'metalearn promote parts@candidate --force --reason "the champion fails on the new camera"'
BUILD = "metalearn dataset build photos episodes"
MADE_BEFORE = (FIRST, SECOND, LETTERS)
PRESUPPOSED = {"add-a-learner.md": (BUILD,)}

SMALL = "--train-episodes 2 --train-way 5 --eval-episodes 20 --set backbone.width=8"
LENIENT = "--set gate.mode=noninferiority --set gate.margin=0.99 --set gate.alpha=0.4"
BUDGETS = {
    "run": SMALL,
    "make run": f"ARGS='--learner protonet {SMALL}'",
    "make test": "PROCESSES=0 ARGS='tests/test_docs.py -k links'",
    "train": "--seconds 1 --set backbone.width=8",
    "evaluate": "--episodes 20",
    "compare": "--episodes 20",
    "promote": f"--episodes 20 {LENIENT}",
}
FILES = """
from pathlib import Path
support_files, query_files = sorted(Path("labelled").glob("*/*.png")), sorted(Path("unlabelled").glob("*.png"))
support_labels = [file.parent.name for file in support_files]
"""
BEFORE_PYTHON = {"first-steps.md": FILES}
ONE_LEARNER = "--learner protonet"
LINKED = ("Makefile", "README.md", "benchmarks", "components", "docs", "metalearn_core", "pipelines", "tests")
SERVERS = ("make ui", "metalearn serve")
PORT = {"make ui": ("", "ARGS='--port {port}'"), "metalearn serve": ("8080", "")}
PATIENCE_S = 300
_METALEARN = re.compile(r"(?:\.venv/bin/)?metalearn (.*)")
_LIBRARIES = ("torch", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "kfp.dsl", "kfp.compiler", "pyarrow.parquet")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def fork_commands() -> None:
    """Run each command that a line of standard input asks for as a fork of this process, and print its exit status.

    A Python for each would spend most of the time on importing torch and MLflow anew. This one has imported them and
    done nothing else.
    """
    for name in ("scipy.stats", "onnx", *_LIBRARIES):
        import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_become(**json.loads(line)))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _become(folder: str, output: str, environment: dict[str, str], arguments: list[str], code: str | None) -> int:
    """Be `metalearn` with its arguments, or a Python that runs a piece of code."""
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(written, stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = ["metalearn", *arguments]
    try:
        if code is None:
            from pipelines.command_line import main

            main()
        else:
            exec(compile(code, "<page>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


class Place:
    """Where the pages' commands are run: a work directory for all, and a folder for each page.

    Args:
        folder: an empty one.
        forks: the process of `fork_commands`.
    """

    def __init__(self, folder: Path, forks: "subprocess.Popen[str]") -> None:
        self.folder, self._forks = folder, forks
        self._done: set[str] = set()
        classes = draw_classes(folder / "photos")[-5:]
        (folder / "unlabelled").mkdir()
        for number, images in enumerate(classes):
            shutil.copytree(images, folder / "labelled" / images.name)
            shutil.copy(images / "0.png", folder / "unlabelled" / f"{number}.png")
        for name in "abcd":
            shutil.copy(classes["abcd".index(name)] / "1.png", folder / f"{name}.png")
        self.page = self._new_page("before")
        self.environment = self._environment()
        for line in MADE_BEFORE:
            self.run(_page_command(line))
        self._done = {_plain(line) for line in MADE_BEFORE}
        self.run(_page_command(FORCE))

    def open(self, page: str) -> None:
        """Begin a page: a fresh folder, and of `parts` a champion that has a predecessor, the candidate."""
        self.page = self._new_page(page.removesuffix(".md"))
        self.environment = self._environment()
        self.set_registry()
        for line in PRESUPPOSED.get(page, ()):
            self.run(_page_command(line))

    def run(self, command: Command) -> None:
        """Run a command and hold that its exit status is 0; one that the place was made with is not run again."""
        if _plain(command.text) in self._done:
            return
        text = with_budget(command)
        found = _METALEARN.fullmatch(text)
        started = time.monotonic()
        output = self.page / "output.txt"
        if command.language == PYTHON:
            status = self._fork([], text, output)
        elif found:
            status = self._fork(shlex.split(found[1]), None, output)
        else:
            with output.open("wb") as written:
                status = subprocess.run(
                    ["bash", "-c", text], cwd=self.page, env=self.environment, stdout=written, stderr=written,
                    check=False, timeout=PATIENCE_S,
                ).returncode  # fmt: skip
        print(f"{time.monotonic() - started:5.1f} s  {text}")  # noqa: T201
        assert status == 0, f"{command}\nran as: {text}\nexit status {status}:\n{output.read_text()[-4000:]}"

    @contextmanager
    def serving(self, command: Command, port: int) -> Iterator[None]:
        """Run a command that serves until it is ended: it answers meanwhile."""
        default, appended = PORT[_server(command)]
        text = command.text.replace(default, str(port)) if default else f"{command.text} {appended.format(port=port)}"
        started = time.monotonic()
        with (self.page / "server.txt").open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", text], cwd=self.page, env=self.environment, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        try:
            end = time.monotonic() + PATIENCE_S
            while not _answers(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None, (self.page / "server.txt").read_text()
                assert time.monotonic() < end
                time.sleep(0.1)
            print(f"{time.monotonic() - started:5.1f} s  {text}")  # noqa: T201
            yield
        finally:
            with suppress(ProcessLookupError):  # it ended early, and what it said is told above
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=PATIENCE_S)

    def set_registry(self) -> None:
        """Have the second version of `parts` be the champion and the first the candidate, whatever a page did before.

        So a champion can be compared with another model, be rolled back, and be replaced.
        """
        code = """
from metalearn_core.model_versions import set_alias, untag_version
for alias, version in (("champion", "2"), ("candidate", "1")):
    set_alias("parts", alias, version)
for version in "12":
    untag_version("parts", version, "rolled_back")
"""
        assert self._fork([], code, self.page / "registry.txt") == 0, (self.page / "registry.txt").read_text()

    def _fork(self, arguments: list[str], code: str | None, output: Path) -> int:
        environment = self.environment
        if code is not None:
            environment = {**environment, "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'work' / 'mlflow.db'}"}
        request = {"folder": str(self.page), "output": str(output), "environment": environment}
        assert self._forks.stdin
        assert self._forks.stdout
        self._forks.stdin.write(json.dumps({**request, "arguments": arguments, "code": code}) + "\n")
        self._forks.stdin.flush()
        return int(self._forks.stdout.readline())

    def _new_page(self, name: str) -> Path:
        """Make a folder like a fresh checkout; what commands write into is a copy, the rest are links."""
        page = self.folder / name
        (page / ".venv").mkdir(parents=True)
        for entry in Path(sys.prefix).iterdir():
            (page / ".venv" / entry.name).symlink_to(entry)
        shutil.copytree(ROOT / "infra", page / "infra", ignore=shutil.ignore_patterns("secrets", "__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", page)
        for linked in LINKED:
            (page / linked).symlink_to(ROOT / linked)
        for entry in (
            *self.folder.glob("*.png"),
            *(self.folder / name for name in ("photos", "labelled", "unlabelled")),
        ):
            (page / entry.name).symlink_to(entry)
        ready = page / ".venv" / ".ready"
        ready.unlink(missing_ok=True)
        ready.touch()
        return page

    def _environment(self) -> dict[str, str]:
        private = ("MLFLOW_", "METALEARN_", "AWS_", "PYTEST_", "COV_", "KUBERNETES_", "MAKE", "http", "HTTP")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(private)}
        own = {
            "METALEARN_HOME": str(self.folder / "work"),
            "METALEARN_CACHE": str(self.folder / "cache"),
            "MAKEFLAGS": "--old-file=.venv/.ready",  # the environment is the tests' own: it is not made anew
            "OMP_NUM_THREADS": "1",  # networks this small lose more by waiting for a second thread than it computes
        }
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {**clean, **own, "PATH": path, "COLUMNS": "80"}


def draw_classes(folder: Path, classes: int = 30, examples: int = 16, domains: int = 6) -> list[Path]:
    """Draw classes that are easy to tell apart; return their folders."""
    random = np.random.default_rng(0)
    places = [folder / f"domain{number % domains}" / f"class{number:02d}" for number in range(classes)]
    for place in places:
        pattern = np.kron(random.integers(0, 2, (4, 4)) * 200, np.ones((4, 4)))
        place.mkdir(parents=True)
        for example in range(examples):
            picture = pattern + random.normal(20, 10, pattern.shape)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(place / f"{example}.png")
    return places


def with_budget(command: Command) -> str:
    """Return the text that is run: the page's, with a budget behind it, and an image's digest for `sha256:…`."""
    text = command.text.replace("sha256:…", f"sha256:{'0' * 64}")
    words = _plain(text).split()
    verb = words[1] if words[0] == "metalearn" else " ".join(words[:2])
    budget = BUDGETS.get(verb, "") if command.language != PYTHON else ""
    if verb == "run" and "--learner" not in words:
        budget = f"{ONE_LEARNER} {budget}"
    return f"{text} {budget}".strip()


def _plain(text: str) -> str:
    return text.removeprefix(".venv/bin/")


def _page_command(line: str) -> Command:
    """Return the command of a page that says this."""
    return next(c for commands in DOCUMENTED.values() for c in commands if _plain(c.text) == line and not c.not_run)


def _server(command: Command) -> str:
    return next((name for name in SERVERS if _plain(command.text).startswith(name)), "")


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    start = [sys.executable, "-c", "from tests.test_documented_pages import fork_commands; fork_commands()"]
    forks = subprocess.Popen(
        start, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield Place(tmp_path_factory.mktemp("pages"), forks)
    finally:
        os.killpg(forks.pid, signal.SIGKILL)
        forks.communicate()


def install_the_page(place: Place) -> None:
    """Have the page's learner be known as if it were installed: its modules, and the entry points of its project."""
    for name, content in re.findall(
        r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", (ROOT / "docs" / "add-a-learner.md").read_text(), re.M | re.S
    ):
        (place.page / name).unlink(missing_ok=True)  # a link to the project's own
        (place.page / name).write_text(content)
    project = tomllib.loads((place.page / "pyproject.toml").read_text())["project"]
    described = place.page / f"{project['name']}-{project['version']}.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = [f"{name} = {value}" for name, value in project["entry-points"]["metalearn.learners"].items()]
    (described / "entry_points.txt").write_text("\n".join(["[metalearn.learners]", *lines, ""]))
    place.environment["PYTHONPATH"] = str(place.page)


def fill_the_bucket(place: Place, store: Stack) -> None:
    """Have a store with the pictures in the bucket `data`, below the prefix `photos`."""
    key = store.settings.owner_key
    credentials = {"AWS_ACCESS_KEY_ID": key.access, "AWS_SECRET_ACCESS_KEY": key.secret}
    place.environment |= {**store.store.client_environment(key), **credentials}
    client = boto3.client(
        "s3", endpoint_url=store.store.endpoint, region_name="us-east-1",
        aws_access_key_id=key.access, aws_secret_access_key=key.secret,
    )  # fmt: skip
    client.create_bucket(Bucket="data")
    files = sorted((place.folder / "photos").glob("*/*/*.png"))
    rows = [(file.read_bytes(), file.parent.name, file.parent.parent.name) for file in files]
    pandas.DataFrame(rows, columns=["image", "label", "domain"]).to_parquet(place.page / "photos.parquet")
    client.upload_file(str(place.page / "photos.parquet"), "data", "photos/all.parquet")


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_end_well(page: str, place: Place, request: pytest.FixtureRequest) -> None:
    """Each ends with exit status 0; what serves, answers until the page ends.

    Appended is, by `BUDGETS`, a budget of two training episodes (or one second) and twenty evaluation episodes of a
    narrow network, and one learner where the page names none; for `make test`, a single test; for `promote`, rules
    that models which have learnt nothing can pass. Servers get a free port.
    """
    place.open(page)
    if page == "add-a-learner.md":
        install_the_page(place)
    if page == "cluster.md":
        fill_the_bucket(place, request.getfixturevalue("s3_store"))
    port, earlier = _free_port(), BEFORE_PYTHON.get(page, "")
    with ExitStack() as serving:
        for command in DOCUMENTED[page]:
            if command.not_run:
                continue
            if _server(command):
                serving.enter_context(place.serving(command, port))
            elif command.language == PYTHON:
                earlier += command.text.replace("127.0.0.1:8080", f"127.0.0.1:{port}") + "\n"
                place.run(replace(command, text=earlier))
            else:
                place.run(command)
