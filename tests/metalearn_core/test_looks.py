from mlflow import MlflowClient

from metalearn_core.looks import count_look

LETTERS = [f"digest of {letter}" for letter in "abcdefgh"]


def test_looks_at_overlapping_classes_are_looks_at_the_same_data(client: MlflowClient) -> None:
    client.create_registered_model("overlap")
    assert count_look("overlap", LETTERS[:4], ["one"]) == 1
    assert count_look("overlap", LETTERS[:5], ["a class more"]) == 2
    assert count_look("overlap", LETTERS[4:7], ["only the new class is shared"]) == 2
    assert count_look("overlap", LETTERS[7:], ["none is shared"]) == 1
    assert count_look("overlap", LETTERS, ["all"]) == 5


def test_the_same_comparison_again_is_the_same_look(client: MlflowClient) -> None:
    client.create_registered_model("again")
    assert [count_look("again", LETTERS, [text]) for text in ("one", "two", "one", "three")] == [1, 2, 1, 3]
    assert count_look("again", reversed(LETTERS), ["two"]) == 2


def test_models_are_counted_apart(client: MlflowClient) -> None:
    for name in ("mine", "yours"):
        client.create_registered_model(name)
        assert count_look(name, LETTERS, ["one"]) == 1


def test_hundreds_of_looks_are_remembered_in_tags_that_every_database_holds(client: MlflowClient) -> None:
    client.create_registered_model("many")
    numbers = [count_look("many", LETTERS, [number]) for number in range(300)]
    assert numbers == list(range(1, 301))
    assert [count_look("many", LETTERS, [number]) for number in (0, 299)] == [1, 300]
    tags = client.get_registered_model("many").tags
    assert max(map(len, tags.values())) <= 5000
    assert len(tags) == 3


def test_thousands_of_classes_are_remembered_in_tags_that_every_database_holds(client: MlflowClient) -> None:
    client.create_registered_model("wide")
    classes = [f"class {number}" for number in range(3000)]
    assert count_look("wide", classes, ["one"]) == 1
    tags = client.get_registered_model("wide").tags
    assert max(map(len, tags.values())) <= 5000
    assert count_look("wide", classes[-1:], ["the last of them"]) == 2
    assert count_look("wide", [*classes, "another"], ["all"]) == 3


def test_a_look_that_was_cut_off_while_its_classes_were_written_is_completed(client: MlflowClient) -> None:
    client.create_registered_model("cut")
    classes = [f"class {number}" for number in range(1000)]
    assert count_look("cut", classes, ["one"]) == 1
    for tag in client.get_registered_model("cut").tags:
        if tag.startswith("gate_looks") or tag.endswith(".2"):
            client.delete_registered_model_tag("cut", tag)
    assert count_look("cut", classes, ["one"]) == 1
    assert [count_look("cut", [one], [one]) for one in classes[::250]] == [2, 2, 2, 2]
