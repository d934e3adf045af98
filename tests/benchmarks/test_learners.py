"""The benchmark of all learners: a cell is made once, and the table says what the cells say."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from benchmarks.learners import MARK, Cell, able, main, read_cells, tables
from metalearn_core.learners import LEARNERS

ACCURACIES = (("transfer", 0.8), ("r2d2", 0.9))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for domain in range(5):
        for number in range(6):
            random = np.random.default_rng([domain, number])
            pattern = random.integers(0, 2, (4, 4)) * 200
            place = folder / f"domain{domain}" / f"class{number}"
            place.mkdir(parents=True)
            for example in range(17):
                pixels = np.kron(pattern, np.ones((4, 4))) + random.normal(20, 30, (16, 16))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{example}.png")
    return folder


def cell(
    name: str, accuracy: float, *, seed: int = 0, failure: str | None = None, batch_norm: str = "inductive"
) -> Cell:
    random = np.random.default_rng([seed, *name.encode()])
    request = {"way": 5, "shot": 1, "seconds": 60.0, "seed": seed}
    ended = {
        "train_shape": "60-way 1-shot",
        "train_episodes": 600,
        "train_seconds": 60.0,
        "parameters": 1234,
        "peak_memory_bytes": 5e8,
        "peak_gpu_memory_bytes": 0,
    }
    return Cell(
        key={"request": request},
        name=name,
        failure=failure,
        machine="m",
        commit="c",
        ended=ended,
        accuracies=tuple(random.normal(accuracy + 0.01 * seed, 0.05, 50)),
        ci95_classes=0.02,
        ece=0.015,
        adaptation_ms=2.0,
        batch_norm=batch_norm,
    )


def test_a_cell_is_made_once_and_the_benchmark_goes_on(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [str(images), "-o", str(tmp_path), "--seconds", "0.5", "--episodes", "20", "--image-size", "16"]
    assert main([*line, "--learners", "protonet"]) == 0
    [first] = tmp_path.glob("*.json")
    before = first.stat().st_mtime_ns
    assert main([*line, "--learners", "protonet,transfer"]) == 0
    assert first.stat().st_mtime_ns == before
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1].startswith("2 of 2: transfer-5x1")
    cells = {one.name: one for one in read_cells(tmp_path)}
    assert cells.keys() == {"protonet", "transfer"}
    for name, one in cells.items():
        assert f"{100 * np.mean(one.accuracies):.2f} ±" in shown.out
        assert len(one.accuracies) == 20
        assert one.ended["train_seconds"] >= 0.25, name  # of the rest, the last validation's time is kept in reserve
        assert one.ended["peak_memory_bytes"] > 1e8


def test_a_further_seed_makes_as_many_episodes_and_stands_in_the_same_table(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [str(images), "-o", str(tmp_path), "--seconds", "0.5", "--episodes", "20", "--image-size", "16"]
    line += ["--learners", "protonet"]
    with pytest.raises(SystemExit, match="no cell of protonet"):
        main([*line, "--seeds", "1", "--as-seed", "0"])
    assert main(line) == 0
    assert main([*line, "--seeds", "1,2", "--as-seed", "0"]) == 0
    cells = read_cells(tmp_path)
    assert len({one.ended["train_episodes"] for one in cells}) == 1
    assert {one.key["request"]["seed"] for one in cells} == {0, 1, 2}
    assert "| protonet | 3 |" in capsys.readouterr().out


def test_a_benchmark_that_is_terminated_ends_without_a_cell_and_goes_on(images: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "benchmarks.learners", str(images), "-o", str(tmp_path), "--seconds", "600"]
    line += ["--image-size", "16", "--learners", "protonet,transfer"]
    process = subprocess.Popen(line, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("training/*/kept/*/*.lock")):
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stopped by SIGTERM" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert "transfer" not in said, "the next one is not begun"
    assert list(tmp_path.glob("*.json")) == []


def test_a_learner_that_cannot_be_trained_is_told_below_the_table(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [str(images), "-o", str(tmp_path), "--seconds", "0.5", "--image-size", "16", "--learners", "protonet"]
    assert main([*line, "--shapes", "50x1"]) == 1
    assert "protonet, seed 0: way 50" in capsys.readouterr().out


def test_transductive_models_are_trained_and_tested_so_and_stand_in_a_table_of_their_own(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [str(images), "-o", str(tmp_path), "--seconds", "0.5", "--episodes", "20", "--image-size", "16"]
    line += ["--learners", "protonet"]
    assert main(line) == 0
    assert main([*line, "--batch-norm", "transductive"]) == 0
    titles = [text for text in capsys.readouterr().out.splitlines() if text.startswith("**")]
    assert titles[-2:] == [
        "**5-way 1-shot, 0.5 s of training each**",
        "**5-way 1-shot, 0.5 s of training each, transductive**",
    ]
    modes = {one.batch_norm: one.key for one in read_cells(tmp_path)}
    assert modes["transductive"]["item"]["options"] == {"batch_norm": "transductive"}
    assert {mode: key["protocol"]["batch_norm"] for mode, key in modes.items()} == {mode: mode for mode in modes}


def test_a_learner_trained_with_another_number_of_classes_is_a_row_of_its_own(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [str(images), "-o", str(tmp_path), "--seconds", "0.5", "--episodes", "20", "--image-size", "16"]
    line += ["--learners", "relationnet"]
    assert main(line) == 0
    assert main([*line, "--train-way", "7"]) == 0
    shapes = {one.name: one.ended["train_shape"] for one in read_cells(tmp_path)}
    assert [shape.split("-way")[0] for _, shape in sorted(shapes.items())] == ["5", "7"]
    assert "| relationnet train_way=7 | 1 |" in capsys.readouterr().out


def test_all_learners_are_those_that_have_the_mode() -> None:
    assert set(able("inductive")) == set(LEARNERS)
    assert set(LEARNERS) - set(able("transductive")) == {"transfer", "finetune", "centroid", "cnp", "snail", "mann"}


def test_a_transductive_model_is_not_compared_with_an_inductive_baseline() -> None:
    inductive = [cell("transfer", 0.8), cell("maml", 0.7)]
    text = tables([*inductive, cell("maml batch_norm=transductive", 0.9, batch_norm="transductive")])
    assert text.startswith(tables(inductive).partition("\n\nCode:")[0])


def test_every_learner_below_the_baseline_is_marked() -> None:
    text = tables([cell("transfer", 0.8), cell("better", 0.9), cell("worse", 0.7)])
    rows = [line for line in text.splitlines() if line.startswith("| ") and "%" not in line and "---" not in line]
    assert [row.split("|")[1].strip() for row in rows] == ["better", "transfer", f"worse {MARK}"]


def test_differences_are_paired_over_episodes_and_by_welch_over_seeds() -> None:
    one = {name: cell(name, accuracy).accuracies for name, accuracy in (("transfer", 0.8), ("maml", 0.7))}
    low, high = stats.ttest_rel(one["maml"], one["transfer"]).confidence_interval(0.95)
    text = tables([cell("transfer", 0.8), cell("maml", 0.7)])
    assert f"({100 * low:+.2f} to {100 * high:+.2f})".replace("-", "−") in text
    several = {n: [cell(n, a, seed=s) for s in range(3)] for n, a in (("transfer", 0.8), ("maml", 0.7))}
    means = {name: [np.mean(c.accuracies) for c in cells] for name, cells in several.items()}
    low, high = stats.ttest_ind(means["maml"], means["transfer"], equal_var=False).confidence_interval(0.95)
    text = tables([c for cells in several.values() for c in cells])
    assert f"({100 * low:+.2f} to {100 * high:+.2f})".replace("-", "−") in text
    half_width = stats.sem(means["maml"]) * stats.t.ppf(0.975, 2)
    assert f"{100 * np.mean(means['maml']):.2f} ± {100 * half_width:.2f}" in text


def test_learners_of_fewer_seeds_meet_the_baseline_of_the_same_seeds_and_all_intervals_hold_together() -> None:
    several = [cell(name, accuracy, seed=seed) for name, accuracy in ACCURACIES for seed in (0, 1)]
    text = tables([*several, cell("maml", 0.7)])
    test = stats.ttest_rel(cell("maml", 0.7).accuracies, cell("transfer", 0.8).accuracies)
    low, high = test.confidence_interval(1 - 0.05 / 2)
    assert f"({100 * low:+.2f} to {100 * high:+.2f})".replace("-", "−") in text
    assert "| r2d2 | 2 |" in text
    means = {name: [np.mean(cell(name, a, seed=s).accuracies) for s in (0, 1)] for name, a in ACCURACIES}
    low, high = stats.ttest_ind(means["r2d2"], means["transfer"], equal_var=False).confidence_interval(1 - 0.05 / 2)
    assert f"({100 * low:+.2f} to {100 * high:+.2f})".replace("-", "−") in text
    assert "over 2 training seeds each" in text
    assert "; the others: t intervals over" in text


def test_a_table_without_the_baseline_has_no_column_of_differences() -> None:
    text = tables([cell("r2d2", 0.9), cell("versa", 0.8)])
    header, rule, *rows = (line for line in text.splitlines() if line.startswith("|"))
    assert "transfer" not in text
    assert len({line.count("|") for line in (header, rule, *rows)}) == 1
    assert len(rows) == 2


def test_shapes_and_budgets_have_a_table_each() -> None:
    other = cell("transfer", 0.8)
    other = other.model_copy(update={"key": {"request": {**other.key["request"], "way": 20}}})
    text = tables([cell("transfer", 0.8), other])
    assert text.count("| learner |") == 2
    assert text.index("5-way 1-shot, 60 s") < text.index("20-way 1-shot, 60 s")


def test_the_table_in_the_documentation_is_that_of_the_kept_cells() -> None:
    root = Path(__file__).parents[2]
    folder = root / "benchmarks" / "results"
    made = [tables(read_cells(place)).splitlines() for place in (folder, folder / "ablations")]
    assert all(len(lines) > 10 for lines in made)
    rows = [line for lines in made for line in lines if line.startswith("|")]
    written = (root / "docs" / "benchmarks.md").read_text().splitlines()
    assert [line for line in rows if line not in written] == []
