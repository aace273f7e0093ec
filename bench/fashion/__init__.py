"""FashionMNIST: each method beside what is published about it."""

from bench.fashion.report import pictures, report

__all__ = ["pictures", "report"]
