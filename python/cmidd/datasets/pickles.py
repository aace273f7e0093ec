"""The pickles of CIFAR, read with nothing in them executed.

A pickle is a program that names callables and calls them. Here three names that arrays need are
known, and stand for a class that only writes down what it is called with:

    _reconstruct(...) with state (1, shape, dtype(code, ...), is Fortran order, bytes)

Any other name is an error. Arrays are made from the bytes afterwards, and are uint8.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from cmidd.datasets.given import Array

_ARRAY_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),  # as numpy 2 writes it
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _Record:
    """What a pickle would have called, and the state it would have set."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Record]:
        if (module, name) not in _ARRAY_NAMES:
            raise pickle.UnpicklingError(
                f"the pickle asks for {module}.{name}, which a file of images has no use for, and "
                "which was not run; get the file again from a source that you trust"
            )
        return _Record


def read_pickle(path: Path) -> dict[str, object]:
    """The dictionary in a pickle of numbers, strings (as bytes) and uint8 arrays."""
    with path.open("rb") as file:
        content = _ArrayUnpickler(file, encoding="bytes").load()
    if not isinstance(content, dict):
        raise ValueError(f"expected a pickled dict, got {type(content).__name__}")
    return {
        key.decode() if isinstance(key, bytes) else str(key): (
            _array(value) if isinstance(value, _Record) else value
        )
        for key, value in content.items()
    }


def _array(record: _Record) -> Array:
    match record.state:
        case (_, tuple(shape), _Record(arguments=("u1" | b"u1", *_)), bool(fortran), bytes(data)):
            return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")
    raise ValueError("expected arrays of uint8")
