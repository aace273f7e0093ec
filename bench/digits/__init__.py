"""Accuracies on scikit-learn's digits: each method with and without CMI, and real images."""

from bench.digits.report import report

__all__ = ["report"]
