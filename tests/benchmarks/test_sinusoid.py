"""The comparison on sinusoids: a row for each learner and number of points, and learning lowers the error."""

import re

import pytest

from benchmarks.sinusoid import CONTESTANTS, main, trained_learner
from metalearn_core.data.sinusoid import SinusoidTasks
from metalearn_core.evaluation.evaluate import Protocol, evaluate

FIGURE = r"\d+\.\d{3} \(\d+\.\d{3} to \d+\.\d{3}\)"


def rows(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]


def test_every_learner_has_a_row_for_ten_points_and_one_for_five(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--iterations", "200", "--seeds", "0,1", "--learners", "maml,cnp"]) == 0
    found = rows(capsys)
    assert [(row[0], row[1]) for row in found] == [(name, points) for name in ("maml", "cnp") for points in ("10", "5")]
    for row in found:
        figures = [cell for cell in row[2:5] if cell]
        assert len(figures) == (1 if row[0] == "cnp" else 3)
        assert all(re.fullmatch(FIGURE, cell) for cell in figures), row
    assert found[0][5] == "0.67, 0.38, 0.35"


def test_a_learner_that_there_is_none_of_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--learners", "maml,mamml"])
    assert ended.value.code == 2
    assert "there is no 'mamml'" in capsys.readouterr().err


def test_training_lowers_the_error_after_an_inner_step() -> None:
    protocol = Protocol(way=1, shot=10, query=20, episodes=200, seed=1)
    few, many = (trained_learner(CONTESTANTS["maml"], iterations, seed=0)[0] for iterations in (1, 400))
    assert evaluate(many, SinusoidTasks(), protocol).mse < evaluate(few, SinusoidTasks(), protocol).mse
