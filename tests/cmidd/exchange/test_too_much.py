"""Files that ask for endless time or memory, or for numbers that they lack, are one clear line."""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmidd.exchange import convert
from cmidd.options.exchange import ConvertOptions
from tests.support.dataset_files import Payload
from tests.support.peer_files import ACCURACIES, IMAGES, LABELS, WRITERS, error_of, numbers


def storage_of(images: torch.Tensor) -> torch.storage.TypedStorage:
    """What a pickle of a tensor has its numbers in."""
    untyped = images.untyped_storage()
    return torch.storage.TypedStorage(  # type: ignore[no-untyped-call]
        wrap_storage=untyped, dtype=images.dtype, _internal=True
    )


def lists_of_lists(depth: int) -> bytes:
    """A pickle of [x, x], where x is such a list too: few bytes, and 2**depth lists to a walker."""
    each = (b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(depth))
    return b"\x80\x02]q\x00" + b"".join(each) + b"."


DEEP: dict[str, tuple[bytes, str]] = {
    "each twice": (lists_of_lists(60), "expected what one of res, .* got a list"),
    "itself": (b"\x80\x02]q\x00(h\x00h\x00e.", "expected what one of res, .* got a list"),
    "one in another": (
        b"\x80\x02" + 200_000 * b"]" + 199_999 * b"a" + b".",
        "expected what one of res, .* got a list",
    ),
    "a pair with one in another": (
        b"\x80\x02" + 2 * (200_000 * b"]" + 199_999 * b"a") + b"\x86.",
        "expected what one of res, .* got a tuple",
    ),
}


@pytest.mark.parametrize("case", DEEP)
def test_lists_in_lists_are_not_walked(case: str, elsewhere: Path) -> None:
    content, message = DEEP[case]
    Path("acc.pkl").write_bytes(content)
    for told in (None, "idm"):
        text = error_of(Path("acc.pkl"), format=told)
        assert re.match(f"acc.pkl: {message if told is None else 'expected '}", text)
        assert len(text) < 300


@pytest.mark.parametrize("shape", [("a",), ((1,),), (-1,), (2**70,), (True,)])
def test_a_shape_in_a_pickle_is_of_whole_numbers(shape: Any, elsewhere: Path) -> None:
    inner = io.BytesIO()
    torch.save(storage_of(IMAGES), inner, _use_new_zipfile_serialization=False)
    storage = Payload(torch.storage._load_from_bytes, inner.getvalue())
    tensor = Payload(torch._utils._rebuild_tensor_v2, storage, 0, shape, (1,), False, {})
    Path("acc.pkl").write_bytes(pickle.dumps((tensor, tensor), 4))
    assert error_of(Path("acc.pkl")).startswith("acc.pkl: ")


def test_arrays_that_unpack_to_far_more_than_the_file_are_not_unpacked(elsewhere: Path) -> None:
    np.savez_compressed("kip.npz", images=np.zeros((10_000, 28, 28, 1), np.float32))
    text = error_of(Path("kip.npz"), space="standardised")
    assert re.match(r"kip.npz: expected arrays of at most [\d,]+ bytes, .* got 31,360,128$", text)


def test_arrays_that_are_not_used_are_not_read(elsewhere: Path) -> None:
    path = WRITERS["kip.npz"](Path())
    with np.load(path) as found:
        np.savez(path, **found, more=np.array([{}]))  # of objects, which are refused
    made = convert(ConvertOptions(path, Path("out"), "mnist", space="pixels"))
    torch.testing.assert_close(made.pixels(), IMAGES)


def test_an_array_that_no_memory_holds_is_a_line(elsewhere: Path) -> None:
    header = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": (10**15,)}
    np.lib.format.write_array_header_1_0(header, about)
    with zipfile.ZipFile("kip.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue())
    text = error_of(Path("kip.npz"))
    assert text == "kip.npz: needs more memory than there is"


def without_numbers(content: object) -> bytes:
    """What torch.save writes that is no archive, with an empty list of storages and no numbers."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    file.seek(0)
    for _ in range(3):
        pickle.load(file)
    for _ in pickletools.genops(file):
        pass
    return file.getvalue()[: file.tell()] + pickle.dumps([], 2)


def test_numbers_that_a_file_lacks_are_not_taken_from_memory(elsewhere: Path) -> None:
    damaged = "expected a file that torch.save has written; it is cut short, damaged"
    padding = bytes(8 * IMAGES.nbytes)
    for content in ([IMAGES, LABELS], {"data": [[IMAGES, LABELS]]}):
        Path("file").write_bytes(without_numbers(content) + padding)
        assert error_of(Path("file")).startswith(f"file: {damaged}")
    bare = without_numbers(storage_of(IMAGES)) + padding
    storage = Payload(torch.storage._load_from_bytes, bare)
    tensor = Payload(
        torch._utils._rebuild_tensor_v2, storage, 0, (1,), (1,), False, collections.OrderedDict()
    )
    Path("acc.pkl").write_bytes(pickle.dumps((tensor, tensor), 4))
    assert error_of(Path("acc.pkl")).startswith(f"acc.pkl: {damaged}")


def test_files_of_before_torch_1_6_are_read(elsewhere: Path) -> None:
    state = collections.OrderedDict(weight=numbers(2))
    content = {"data": [[IMAGES, LABELS]], "accs_all_exps": ACCURACIES, "network": state}
    torch.save(content, "res.pt", _use_new_zipfile_serialization=False)
    made = convert(ConvertOptions(Path("res.pt"), Path("out"), "mnist", factor=1))
    assert torch.equal(made.images, IMAGES)
