"""Equal-classes problems to measure: what published runs have, and what fills a GPU."""

from __future__ import annotations

from typing import NamedTuple

TILE_ELEMENTS = 8192  # a number for each of 16 registers of 512 threads


class Shape(NamedTuple):
    """An equal-classes problem: C classes of n rows with M channels."""

    classes: int
    rows: int
    channels: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read the form that tables and files use."""
        return cls(*map(int, text.split("x")))

    def __str__(self) -> str:
        """Give the form used in tables and files."""
        return f"{self.classes}x{self.rows}x{self.channels}"

    @property
    def fits_a_tile(self) -> bool:
        """Whether the registers of a block can hold a whole class, whatever a backend does."""
        return self.rows * self.channels <= TILE_ELEMENTS

    @property
    def elements(self) -> int:
        """Entries of the feature matrix."""
        return self.classes * self.rows * self.channels


HEADLINE = Shape(10, 10, 512)  # CIFAR-10 at ipc 10, what most published runs have
FIVE = (
    Shape(10, 30, 512),
    Shape(43, 31, 640),
    Shape(200, 50, 1024),
    Shape(9, 700, 2048),
    Shape(1000, 10, 2048),
)
THREE_LARGEST = tuple(sorted(FIVE, key=lambda shape: shape.elements)[-3:])
SETS = {
    "headline": (HEADLINE, *FIVE),
    "small": (Shape(100, 10, 512), Shape(10, 50, 512)),  # launches and Python dominate
    # A hundred million entries each, in ever larger classes: of 4, 20, 40, 200 and 400 KB in
    # float32 (the first ones fit a tile in registers), of 2 and 40 MB.
    "large": (
        Shape(100_000, 4, 256),
        Shape(20_000, 10, 512),
        Shape(10_000, 10, 1024),
        Shape(2000, 50, 1024),
        Shape(1000, 50, 2048),
        Shape(200, 500, 1024),
        Shape(10, 10_000, 1024),
    ),
}
SWEEPS = {
    "ipc": tuple(Shape(10, n, 512) for n in (1, 10, 50, 200, 500)),
    "channels": tuple(Shape(10, 50, m) for m in (64, 256, 1024, 4096, 16384, 32768)),
    "classes": tuple(Shape(c, 10, 512) for c in (1, 3, 10, 30, 100, 300, 1000)),
}


def shapes_of(names: list[str]) -> list[Shape]:
    """Shapes of sets and of single ones such as 10x10x512, each once."""
    found = [shape for name in names for shape in SETS.get(name) or [Shape.parse(name)]]
    return list(dict.fromkeys(found))
