"""Pickles, read with nothing in them executed, and those of CIFAR.

A pickle is a program that names callables and calls them. Here some names are known, and stand for
a class that only writes down what it is called with. Any other name is an error. CIFAR's arrays

    _reconstruct(...) with state (1, shape, dtype(code, ...), is Fortran order, bytes)

are made from the bytes afterwards, and are uint8.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cmidd.datasets.given import Array

_ARRAY_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),  # as numpy 2 writes it
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class Record:
    """What a pickle would have called, and the state it would have set."""

    arguments: tuple[object, ...] = ()
    state: object = None

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, names: Collection[tuple[str, str]], encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self.names = names

    def find_class(self, module: str, name: str) -> type[Record]:
        if (module, name) not in self.names:
            raise pickle.UnpicklingError(asks_for(f"{module}.{name}"))
        return Record


def asks_for(name: str, of: str = "images") -> str:
    """What an error says of a pickle, in a file `of` this, that names an unknown callable."""
    in_a_line = name.encode("unicode_escape").decode()[:100]
    cure = "save its state_dict() alone, or " if of == "weights" else ""
    return (
        f"the pickle asks for {in_a_line}, which a file of {of} has no use for, and which was "
        f"not run; {cure}get the file again from a source that you trust"
    )


def unpickled(
    file: BinaryIO, names: Collection[tuple[str, str]], *, encoding: str = "ASCII"
) -> object:
    """What a pickle holds, with records in the place of calls of these names (module, name)."""
    return _Unpickler(file, names, encoding).load()


def read_pickle(path: Path) -> dict[str, object]:
    """The dictionary in a pickle of numbers, strings (as bytes) and uint8 arrays."""
    with path.open("rb") as file:
        content = unpickled(file, _ARRAY_NAMES, encoding="bytes")
    if not isinstance(content, dict):
        raise ValueError(f"expected a pickled dict, got {type(content).__name__}")
    return {
        key.decode() if isinstance(key, bytes) else str(key): (
            _array(value) if isinstance(value, Record) else value
        )
        for key, value in content.items()
    }


def _array(record: Record) -> Array:
    match record.state:
        case (_, tuple(shape), Record(arguments=("u1" | b"u1", *_)), bool(fortran), bytes(data)):
            return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")
    raise ValueError("expected arrays of uint8")
