"""Which images are made together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmidd.recovery.batches import Batches


def pairs(batches: Batches) -> list[list[tuple[int, int]]]:
    """Class and number of each image, batch by batch."""
    found = []
    for item in range(len(batches)):
        labels, numbers = batches[item]
        found.append(list(zip(labels.tolist(), numbers.tolist(), strict=True)))
    return found


@given(
    num_classes=st.integers(1, 9),
    ipc=st.integers(1, 9),
    size=st.integers(1, 20),
    order=st.sampled_from(["class", "image"]),
)
def test_every_image_is_in_one_batch_and_no_batch_is_too_large(
    num_classes: int, ipc: int, size: int, order: str
) -> None:
    batches = Batches(num_classes, ipc, size, order)
    found = pairs(batches)
    together = [pair for batch in found for pair in batch]
    assert sorted(together) == [(c, k) for c in range(num_classes) for k in range(ipc)]
    assert max(map(len, found)) == batches.largest <= size
    assert all(found)


@pytest.mark.parametrize(
    ("batches", "expected", "words"),
    [
        (
            Batches(3, 2, 5, "class"),
            [[(0, 0), (0, 1), (1, 0), (1, 1)], [(2, 0), (2, 1)]],
            "2 batches of up to 4 images: 2 classes with 2 of each",
        ),
        (
            Batches(2, 5, 3, "class"),
            [[(c, k) for k in part] for c in (0, 1) for part in (range(2), range(2, 5))],
            "4 batches of up to 3 images, 2 for each class of 5",
        ),
        (
            Batches(1, 1, 9, "class"),
            [[(0, 0)]],
            "1 batch of up to 1 image: 1 class with 1 of each",
        ),
        (
            Batches(3, 2, 2, "image"),
            [[(0, 0), (1, 0)], [(2, 0)], [(0, 1), (1, 1)], [(2, 1)]],
            "4 batches of up to 2 images: 2 classes with 1 of each",
        ),
    ],
)  # fmt: skip
def test_whole_classes_come_together_or_one_image_of_each(
    batches: Batches, expected: list[list[tuple[int, int]]], words: str
) -> None:
    assert pairs(batches) == expected
    assert batches.in_words() == words
