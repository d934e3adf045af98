from metalearn_core.report.data import describe


def test_splits_and_domains_are_counted_with_their_turned_classes(content, album):
    found = describe(content.manifest, album)
    assert [(part.split, part.classes, part.domains, part.examples) for part in found.splits] == [
        ("train", 6, 1, 72),
        ("validation", 5, 1, 60),
        ("test", 18 + 3 * 3, 3, 216),
    ]
    assert [(one.name, one.part.split, one.part.classes) for one in found.domains] == [
        ("old", "train", 6),
        ("old", "validation", 5),
        ("wide", "test", 9 + 3 * 3),
        ("broad", "test", 7),
        ("tiny", "test", 2),
    ]
    assert [len(one.pictures) for one in found.domains] == [6, 5, 9, 7, 2]
    assert found.hidden_domains == 0


def test_examples_a_class_are_given_as_a_range(content, album):
    first, *rest = content.manifest.classes
    uneven = content.manifest.model_copy(update={"classes": (first.model_copy(update={"count": 3}), *rest)})
    part = describe(uneven, album).splits[0]
    assert (part.fewest, part.median, part.most) == (3, 12, 12)


def test_of_very_many_domains_some_are_shown(content, album):
    classes = tuple(
        content.manifest.classes[0].model_copy(update={"domain": f"domain {number}"}) for number in range(100)
    )
    found = describe(content.manifest.model_copy(update={"classes": classes}), album)
    assert (len(found.domains), found.hidden_domains) == (60, 40)
