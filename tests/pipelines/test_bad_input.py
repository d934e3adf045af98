"""Bad input gets one clear line and an exit status, and leaves nothing half-written behind."""

import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Run = Callable[..., Any]


def refused(answer: Any, status: int, *words: str) -> None:
    assert answer.status == status, answer.errors
    assert answer.output == ""
    last = answer.errors.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in answer.errors
    for word in words:
        assert word in last, last


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--way", 1], ["way", "1"]),
        (["--shot", 0], ["shot", "0"]),
        (["--query", -3], ["query", "-3"]),
        (["--train-seconds", -1], ["train_seconds", "-1"]),
        (["--train-seconds", 1, "--train-episodes", 5], ["train_episodes", "train_seconds"]),
        (["--learner", "mamll"], ["mamll", "maml"]),
        (["--set", "maml.inner_step=5"], ["inner_step", "inner_steps"]),
        (["--set", "maml.inner_steps=many"], ["inner_steps", "many"]),
        (["--set", "inner_steps"], ["owner.option=value"]),
        (["--set", "gate.min_acuracy=1"], ["min_acuracy", "min_accuracy"]),
        (["--set", "gate.min_accuracy=7"], ["min_accuracy", "7"]),
        (["--backbone", "conv5"], ["conv5", "conv4"]),
        (["--split-by", "colour"], ["split_by", "colour"]),
        (["--ratios", "1,2"], ["ratios", "1,2"]),
        (["--rotations", "some"], ["rotations", "some"]),
        (["--image-size", "large"], ["--image-size", "integer"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--no-such-option"], ["--no-such-option"]),
        (["--seed", -1], ["seed", "-1"]),
        (["--seed", 2**64], ["seed", str(2**64)]),
        (["--train-seconds", "inf"], ["train_seconds", "finite"]),
        (["--ratios", "0.5,0.5,0.5"], ["ratios", "sum to 1", "0.5,0.5,0.5"]),
        (["--image-size", 50_000], ["image_size", "50000"]),
        (["--model-name", "team/parts"], ["model name", "team/parts"]),
        (["--precision", "fp8"], ["precision", "fp8"]),
        (["--set", "backbone.width=2026-99-99"], ["width", "2026-99-99"]),
        (["--patience", -1], ["patience", "-1"]),
        (["--learner", "protonet", "--learner", "snail", "--shot", 5], ["snail is built for one shot", "snail.shot=5"]),
        (["--learner", "protonet", "--learner", "maml", "--way", "5-20"], ["maml is built for one number of classes"]),
    ],
)
def test_wrong_use_is_told_before_any_work(
    metalearn: Run, tmp_path: Path, arguments: list[object], words: list[str]
) -> None:
    refused(metalearn("run", *arguments, "--workdir", tmp_path / "work"), 2, *words)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("option", ["--way", "--shot", "--query"])
def test_nought_is_not_the_default(metalearn: Run, images: Path, tmp_path: Path, option: str) -> None:
    metalearn("dataset", "build", images, tmp_path / "out", "--image-size", 16)
    refused(metalearn("dataset", "validate", tmp_path / "out", option, 0), 2, option[2:], "0")


@pytest.mark.parametrize("verb", [["run"], ["train"], ["dataset", "build"], ["predict"]])
def test_a_verb_without_what_it_needs_says_what(metalearn: Run, verb: list[str], tmp_path: Path) -> None:
    arguments = [*verb, "--no-such"] if verb == ["run"] else verb
    answer = metalearn(*arguments)
    assert answer.status == 2
    assert "Traceback" not in answer.errors


def test_a_path_that_is_not_there(metalearn: Run, tmp_path: Path) -> None:
    refused(metalearn("run", tmp_path / "nowhere", "--workdir", tmp_path / "work"), 1, "nowhere")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("classes", "examples", "options", "words"),
    [
        (1, 20, [], ["one class only", "class00"]),
        (40, 4, [], ["found", "16"]),
        (12, 20, ["--way", 9], ["enough classes", "9"]),
    ],
)
def test_data_that_cannot_give_the_episodes_asked_for_is_told_before_training(
    metalearn: Run,
    draw_classes: Callable[..., Path],
    tmp_path: Path,
    classes: int,
    examples: int,
    options: list[object],
    words: list[str],
) -> None:
    source = draw_classes(tmp_path / "images", classes=classes, examples=examples)
    answer = metalearn("run", source, *options, "--workdir", tmp_path / "work", "--train-episodes", 1)
    refused(answer, 1, *words)
    assert not list((tmp_path / "work").glob("results/training/*"))


def test_a_learner_that_cannot_take_the_images_is_told_before_another_is_trained(
    metalearn: Run, images: Path, tmp_path: Path
) -> None:
    learners = ("--learner", "protonet", "--learner", "matchingnet", "--set", "matchingnet.backbone.blocks=6")
    small = ("--way", 3, "--query", 3, "--split-by", "class", "--ratios", "0.5,0.25,0.25", "--image-size", 16)
    answer = metalearn("run", images, *learners, *small, "--workdir", tmp_path / "work", "--train-episodes", 1)
    refused(answer, 1, "validate_episodes: matchingnet: conv4.blocks", "16×16")
    assert not list((tmp_path / "work").glob("**/results/training/*"))


def test_an_empty_folder(metalearn: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(metalearn("dataset", "build", tmp_path / "empty", tmp_path / "out"), 1, "no images")
    assert not (tmp_path / "out").exists()


def test_unreadable_files_among_good_ones_are_counted_and_named(metalearn: Run, images: Path, tmp_path: Path) -> None:
    place = next(images.rglob("class00"))
    (place / "empty.png").write_bytes(b"")
    (place / "text.jpg").write_text("this is no picture")
    (place / "notes.txt").write_text("nor is this, but it does not claim to be")
    whole = (place / "0.png").read_bytes()
    (place / "half.png").write_bytes(whole[: len(whole) // 2])
    answer = metalearn("dataset", "build", images, tmp_path / "out", "--image-size", 16, "--json")
    assert answer.status == 0, answer.errors
    assert answer.json["unreadable"] == 3
    shown = metalearn("dataset", "show", tmp_path / "out")
    assert "empty.png" in shown.output
    refused(
        metalearn("dataset", "build", images, tmp_path / "strict", "--max-unreadable", 0.001),
        1,
        "3 of",
        "max_unreadable",
    )
    assert not (tmp_path / "strict").exists()


def test_a_huge_picture_costs_nothing(metalearn: Run, images: Path, tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(next(images.rglob("class00")) / "huge.png")
    answer = metalearn("dataset", "build", images, tmp_path / "out", "--image-size", 16, "--json")
    assert answer.status == 0, answer.errors
    assert answer.json["unreadable"] == 1


def test_names_that_no_one_expects(metalearn: Run, images: Path, tmp_path: Path) -> None:
    source = next(images.rglob("class00"))
    source.rename(source.with_name("a 'quoted' \"class\"\nof ünïcödé 文字"))
    (source.parent / "circle").symlink_to(images)
    answer = metalearn("dataset", "build", images, tmp_path / "out", "--image-size", 16, "--json")
    assert answer.status == 0, answer.errors
    assert answer.json["classes"] == 24


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("class,split\ndomain0/class00,train\n", ["no row for class", "22 more"]),
        ("class,split\ndomain0/class00,training\n", ["'training'", "validation"]),
        ("class,split\nx,train\nx,test\n", ["'x'", "twice"]),
        ("name,split\nx,train\n", ["no column 'class'", "name"]),
        ("", ["no column 'class'", "nothing"]),
    ],
)
def test_a_split_file_that_does_not_fit(
    metalearn: Run, images: Path, tmp_path: Path, content: str, words: list[str]
) -> None:
    file = tmp_path / "split.csv"
    file.write_text(content)
    answer = metalearn("dataset", "build", images, tmp_path / "out", "--split-file", file)
    refused(answer, 2, *words)
    assert not (tmp_path / "out").exists()


def test_a_damaged_bundle_and_an_unknown_alias(metalearn: Run, images: Path, tmp_path: Path) -> None:
    here = ("--workdir", tmp_path / "work")
    small = ("--way", 3, "--query", 3)
    metalearn("dataset", "build", images, tmp_path / "out", "--image-size", 16, "--split-by", "class")
    made = metalearn(
        "train", tmp_path / "out", "--learner", "protonet", "-o", tmp_path / "model", *small, "--episodes", 1, *here
    )
    assert made.status == 0, made.errors
    weights = tmp_path / "model" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 4
    weights.write_bytes(content)
    refused(metalearn("evaluate", tmp_path / "model", tmp_path / "out"), 1, "weights.safetensors", "damaged")
    refused(metalearn("evaluate", "few-shot@champion", tmp_path / "out", *here), 1, "few-shot")
    refused(metalearn("promote", "few-shot@nobody", *here), 1, "few-shot")
    refused(metalearn("rollback", "few-shot", *here), 1, "few-shot")


def test_a_manifest_of_a_newer_schema(metalearn: Run, images: Path, tmp_path: Path) -> None:
    metalearn("dataset", "build", images, tmp_path / "out", "--image-size", 16)
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    refused(metalearn("dataset", "show", tmp_path / "out"), 1, "99")
    refused(metalearn("dataset", "validate", tmp_path / "out"), 1, "99")


def test_a_tracking_server_that_does_not_answer(metalearn: Run, images: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    answer = metalearn(
        "run", images, "--workdir", tmp_path / "work", "--way", 3, "--query", 3, MLFLOW_TRACKING_URI=address
    )
    refused(answer, 1, address)
    refused(metalearn("models", "--workdir", tmp_path / "work", MLFLOW_TRACKING_URI=address), 1, address)


def test_a_file_that_never_ends_is_not_waited_for(metalearn: Run, images: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    refused(metalearn("dataset", "build", images, tmp_path / "out", "--split-file", tmp_path / "fifo"), 1, "fifo")
    (tmp_path / "episodes").mkdir()
    os.mkfifo(tmp_path / "episodes" / "manifest.json")
    refused(metalearn("dataset", "show", tmp_path / "episodes"), 1, "manifest.json")
    refused(metalearn("run", images, "--config", tmp_path / "fifo"), 1, "fifo")


def test_a_configuration_that_goes_on_for_ever(metalearn: Run, tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text("[" * 5000)
    refused(metalearn("run", "--config", tmp_path / "deep.yaml"), 2, "deep.yaml", "not YAML")


def test_a_dataset_within_its_own_source(metalearn: Run, images: Path) -> None:
    refused(metalearn("dataset", "build", images, images / "inside"), 2, "inside", "within the source")
    assert not (images / "inside").exists()


def test_a_directory_that_was_deleted_around_the_command(command: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    line = shlex.join(command("learners"))
    root = str(Path(__file__).parent.parent.parent)
    done = subprocess.run(
        f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && {line}",
        shell=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: the current directory was deleted: change to another one\n"


def test_a_command_that_is_terminated_says_so_and_cleans_up(command: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "parent").mkdir()
    process = subprocess.Popen(
        command("dataset", "build", "glyphs", tmp_path / "parent" / "out"), stderr=subprocess.PIPE, text=True
    )
    while not list((tmp_path / "parent").glob(".out.*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert errors.splitlines()[-1].startswith("error: terminated")
    assert not list((tmp_path / "parent").iterdir())


def test_a_work_directory_that_cannot_be_made(metalearn: Run, images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(metalearn("run", images, "--workdir", tmp_path / "file" / "work"), 1, "file")
