from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from cmidd.report.class_dots import Dots, class_dots
from cmidd.report.pictures import LINE_COLORS

PAPER = (255, 255, 255)


def drawn(*sets: Dots, names: tuple[str, ...] = ("all", "ant", "bee")) -> npt.NDArray[np.uint8]:
    """The picture, (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(class_dots(sets, names, "title"))).convert("RGB"))


def places(picture: npt.NDArray[np.uint8], number: int) -> npt.NDArray[np.int64]:
    """Rows and columns of the pixels of a set's colour, (N, 2)."""
    color = tuple(int(LINE_COLORS[number][at : at + 2], 16) for at in (1, 3, 5))
    return np.argwhere((picture == color).all(2))


def body(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The picture without the legend, where the sets have their colours too."""
    return picture[: picture.shape[0] * 6 // 10]


def test_each_set_is_seen_in_its_colour_on_paper() -> None:
    picture = drawn(*(Dots(name, (1, 2, 3), (0.1, 0.1, 0.1)) for name in "ab"))
    assert tuple(picture[0, 0]) == PAPER
    for number in range(2):
        assert len(places(picture, number)) > 100
    assert not len(places(picture, 2))


def test_sets_stand_side_by_side_and_larger_values_higher() -> None:
    picture = drawn(Dots("low", (1, 1, 1), (0, 0, 0)), Dots("high", (3, 3, 3), (0, 0, 0)))
    low, high = (places(body(picture), number) for number in range(2))
    assert high[:, 0].max() < low[:, 0].min()
    assert low[:, 1].min() < high[:, 1].min()
    assert low[:, 1].max() < high[:, 1].max()


def test_a_larger_spread_is_drawn_longer() -> None:
    pictures = [drawn(Dots("", (1.0,), (spread,)), names=("all",)) for spread in (0.05, 0.5)]
    small, large = (np.ptp(places(body(picture), 0)[:, 0]) for picture in pictures)
    assert large > 2 * small


@pytest.mark.parametrize(
    "name", ["$a_{", "$x$", "\\frac", "\u540d", "a\nb", "x" * 500, "", "_hidden", "%&#{}"]
)
def test_names_are_text_whatever_they_are(name: str) -> None:
    picture = drawn(Dots(name, (1, 2), (0, 0)), names=("all", name))
    assert len(places(picture, 0)) > 100


@pytest.mark.parametrize("count", [2, 60, 1001])
def test_few_and_many_classes_are_drawn(count: int) -> None:
    names = tuple(map(str, range(count)))
    picture = drawn(Dots("a", [1.0] * count, [0.1] * count), names=names)
    assert picture.shape[1] <= 3200
    assert len(places(picture, 0)) > 100
