"""FashionMNIST: each method beside what is published about it."""

from bench.fashion.drawing import pictures
from bench.fashion.report import report

__all__ = ["pictures", "report"]
