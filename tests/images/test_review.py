"""Notes and faults of images that were read."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from ovr_ray.errors import BadInput
from ovr_ray.images import LabelTable, reviewed
from ovr_ray.images.decoding import Facts
from tests.support import GRAY

UNKNOWN = float("nan")


def table_of(count: int, **labels: list[float]) -> LabelTable:
    """Return ``count`` images in train, then as many in val; each split has both classes of every task."""
    known = {"crack": [0.0, 1.0] * count} | labels
    splits = ["train"] * count + ["val"] * count
    files = pd.Series([f"{number}.png" for number in range(2 * count)])
    return LabelTable(files, pd.DataFrame(known, dtype="float32"), pd.Series(splits, name="part"))


def notes(table: LabelTable, facts: list[Facts], **data: Any) -> list[str]:
    return [str(note) for note in reviewed(table, pd.DataFrame(facts), GRAY.model_copy(update=data)).notes]


def holding(contents: str) -> list[Facts]:
    """Return the facts of files with these contents; of ``-`` none can be decoded."""
    return [Facts(error="damaged") if content == "-" else Facts(digest=content.encode()) for content in contents]


def test_images_that_occur_once_have_no_note() -> None:
    assert notes(table_of(2), holding("abcd")) == []


def test_images_that_occur_more_than_once_are_named_with_their_splits_and_contrary_labels() -> None:
    table = table_of(4, inactive=[0, 1, 1, UNKNOWN, 0, 0, 1, 1])
    (note,) = notes(table, holding("aaabbxcc"))
    assert note == (
        "data.images: 3 images occur more than once, 1 of them in different splits, 3 with contrary labels:\n"
        "    '3.png' = '4.png': in train and val, contrary labels of 'crack'\n"
        "    '0.png' = '1.png' = '2.png': in train, contrary labels of 'crack', contrary labels of 'inactive'\n"
        "    '6.png' = '7.png': in val, contrary labels of 'crack'\n"
        "    -> keep one file of each, with the right labels;"
        " or set data.duplicates: together, which keeps them in one split"
    )


def test_of_very_many_the_worst_are_named_and_the_others_counted() -> None:
    every_second_twice = "".join(c + c for c in "abcdefghijkl")
    labels = [0.0, 0.0, 1.0, 1.0] * 6
    labels[23] = 0.0
    (note,) = notes(table_of(12, crack=labels), holding(every_second_twice))
    assert "12 images occur more than once, 0 of them in different splits, 1 with contrary labels" in note
    assert note.splitlines()[1] == "    '22.png' = '23.png': in val, contrary labels of 'crack'"
    assert note.splitlines()[10:12] == ["    '16.png' = '17.png': in val", "    and 2 more"]


def test_an_image_that_occurs_more_than_once_is_a_fault_if_the_recipe_says_so() -> None:
    with pytest.raises(BadInput) as caught:
        notes(table_of(3), holding("ab-acd"), duplicates="error")
    assert len(caught.value.faults) == 2  # with the damaged one
    assert "    '0.png' = '3.png': in train and val, contrary labels of 'crack'" in str(caught.value)


def test_where_duplicates_stay_together_only_what_that_does_not_mend_is_told() -> None:
    labels = [0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0]
    assert notes(table_of(4, crack=labels), holding("aabcdefg"), duplicates="together") == []
    (note,) = notes(table_of(4, crack=labels), holding("aabbcdef"), duplicates="together")
    assert "1 image occurs more than once" in note
    assert "'2.png' = '3.png': in train, contrary labels of 'crack'" in note
    assert note.endswith("    -> keep one file of each, with the right labels")


def test_files_that_cannot_be_decoded_are_no_duplicates() -> None:
    assert notes(table_of(3), holding("ab--cd"), on_bad_image="skip") == []


def deep(*peaks: int, white: int = 65535) -> list[Facts]:
    return [Facts(digest=bytes([number]), peak=peak, white=white) for number, peak in enumerate(peaks)]


@pytest.mark.parametrize(
    ("facts", "largest", "white"),
    [
        (deep(4000, 3000, 10, 900), "4000, where 65535", "4095 (12 bits)"),
        (deep(3, 200, 199, 7), "200, where 65535", "255 (8 bits)"),
        (deep(8191, 4, 5, 6), "8191, where 65535", "8191 (13 bits)"),
        (deep(200, 300, 511, 4, white=4095), "511, where 4095", "511 (9 bits)"),
    ],
)
def test_if_all_deep_images_are_dark_a_white_is_suggested(facts: list[Facts], largest: str, white: str) -> None:
    (note,) = notes(table_of(2), facts)
    assert note == (
        f"data.white: the largest value of 4 gray images of more than 8 bits is {largest} is white\n"
        f"    -> say what is white, such as data.white: {white}"
    )
    assert notes(table_of(2), facts, white=4095) == []


@pytest.mark.parametrize("facts", [deep(8192, 3, 2, 1), holding("abcd")])
def test_no_white_is_suggested_if_one_deep_image_is_bright_or_none_is_deep(facts: list[Facts]) -> None:
    assert notes(table_of(2), facts) == []
