from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalearn_core.data.manifest import SPLITS, BuildOptions
from metalearn_core.data.splits import assign_from_file, assign_splits, read_split_file, resolve_split_by
from metalearn_core.errors import MetalearnError, UsageError

NAMES = [f"class {i}" for i in range(100)]


def by_class(names: list[str], **options: object) -> dict[str, str]:
    return dict(assign_splits(dict.fromkeys(names, "d"), BuildOptions(**options), "class"))


def test_ratios_are_met_exactly() -> None:
    assert Counter(by_class(NAMES).values()) == {"train": 70, "validation": 15, "test": 15}
    assert Counter(by_class(NAMES, ratios=(0.5, 0.0, 0.5)).values()) == {"train": 50, "test": 50}


def test_splits_do_not_depend_on_the_order_of_classes() -> None:
    assert by_class(NAMES) == by_class(NAMES[::-1])


def test_seeds_give_different_splits() -> None:
    assert by_class(NAMES) != by_class(NAMES, split_seed=1)


@given(st.integers(3, 60), st.integers(0, 5))
def test_every_split_gets_a_class_where_there_are_three(classes: int, seed: int) -> None:
    assert set(by_class(NAMES[:classes], split_seed=seed).values()) == set(SPLITS)


@given(st.lists(st.integers(1, 40), min_size=3, max_size=12), st.integers(0, 5))
def test_domains_are_never_divided_and_every_split_has_one(sizes: list[int], seed: int) -> None:
    domain_of = {f"{d}/{c}": str(d) for d, size in enumerate(sizes) for c in range(size)}
    assigned = assign_splits(domain_of, BuildOptions(split_seed=seed), "domain")
    splits_of_domain = {d: {assigned[name] for name in domain_of if domain_of[name] == d} for d in domain_of.values()}
    assert all(len(splits) == 1 for splits in splits_of_domain.values())
    assert set(assigned.values()) == set(SPLITS)


def test_domains_come_near_the_ratios() -> None:
    domain_of = {f"{d}/{c}": str(d) for d in range(20) for c in range(5 + d % 7)}
    counts = Counter(assign_splits(domain_of, BuildOptions(), "domain").values())
    assert abs(counts["train"] / len(domain_of) - 0.7) < 0.04
    assert abs(counts["test"] / len(domain_of) - 0.15) < 0.04


def test_too_few_domains_is_said() -> None:
    with pytest.raises(UsageError, match=r"2 domains .*expected at least 3"):
        assign_splits({"a/1": "a", "b/1": "b"}, BuildOptions(), "domain")


@pytest.mark.parametrize("split_by", ["class", "domain"])
def test_old_classes_keep_their_splits_when_classes_are_added(split_by: str) -> None:
    old = {f"{d}/{c}": str(d) for d in range(8) for c in range(6)}
    new = {f"{d}/{c}": str(d) for d in range(12) for c in range(8)}
    before = assign_splits(old, BuildOptions(), split_by)
    after = assign_splits(new, BuildOptions(), split_by, before)
    assert {name: after[name] for name in old} == before
    assert set(after) == set(new)


def test_a_new_class_of_an_old_domain_goes_with_its_domain() -> None:
    old = {f"{d}/{c}": str(d) for d in range(8) for c in range(6)}
    before = assign_splits(old, BuildOptions(), "domain")
    after = assign_splits({**old, "3/new": "3"}, BuildOptions(), "domain", before)
    assert after["3/new"] == before["3/0"]


def test_a_new_domain_is_placed_by_the_classes_that_are_settled_not_by_most_of_their_domains() -> None:
    """Every old domain has most classes in training, and yet validation and test are not empty."""
    old = {f"{d}/{c}": str(d) for d in range(4) for c in range(10)}
    before = assign_splits(old, BuildOptions(), "class")
    after = assign_splits({**old, **{f"4/{c}": "4" for c in range(10)}}, BuildOptions(), "domain", before)
    assert {name: after[name] for name in old} == before
    assert len({after[f"4/{c}"] for c in range(10)}) == 1


def test_auto_means_domains_where_there_are_five() -> None:
    assert resolve_split_by("auto", "auto", 5) == "domain"
    assert resolve_split_by("auto", "auto", 4) == "class"
    assert resolve_split_by("auto", "domain", 2) == "domain"
    assert resolve_split_by("class", "domain", 9) == "class"


def test_split_file_is_read_sorted(tmp_path: Path) -> None:
    file = tmp_path / "splits.csv"
    file.write_text('split,class,note\ntest,"b, with comma",x\ntrain,a,y\n')
    assert read_split_file(file) == (("a", "train"), ("b, with comma", "test"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,split\na,train\n", "no column 'class': found name, split"),
        ("", "no column 'class': found nothing"),
        ("class,split\na,training\n", "line 2: split 'training': expected train, validation, test"),
        ("class,split\na,train\na,test\n", "line 3: class 'a' stands there twice"),
        ("class,split\na\n", "line 2: no split: the row ends before that column"),
        ("class,split\na,train,extra\n", "line 2: more cells than columns"),
        ("split,class\ntrain\ntest,a\n", "line 2: no class: the row ends before that column"),
        pytest.param(f"class,split\n{'a' * 131_073},train\n", "line 2: is no CSV: field larger", id="long name"),
        pytest.param(f"{'a' * 131_073},split\na,train\n", "line 1: is no CSV: field larger", id="long column"),
    ],
)
def test_wrong_split_file_is_one_clear_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "splits.csv"
    file.write_text(content)
    with pytest.raises(UsageError, match=message):
        read_split_file(file)


def test_missing_split_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(MetalearnError, match="there is no such file"):
        read_split_file(tmp_path / "none.csv")


def test_split_file_must_name_each_class_and_no_other() -> None:
    with pytest.raises(UsageError, match="the source has no class 'c'"):
        assign_from_file(["a", "b"], [("a", "train"), ("b", "test"), ("c", "test")])
    with pytest.raises(UsageError, match="no row for class 'b'"):
        assign_from_file(["a", "b"], [("a", "train")])
