"""Files that are hostile, cut short or of another kind are one clear line, and nothing is run."""

from __future__ import annotations

import collections
import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmidd.exchange import convert
from cmidd.options.exchange import ConvertOptions
from tests.support.dataset_files import Payload
from tests.support.peer_files import (
    CLASSES,
    IMAGES,
    LABELS,
    WRITERS,
    error_of,
    numbers,
    sre2l,
    write_idc,
    write_pair,
    write_pictures,
    write_res,
)

N, SHAPE = len(LABELS), (1, 28, 28)


# --- nothing is executed


@pytest.fixture(params=["system", "eval"])
def payload(request: pytest.FixtureRequest, elsewhere: Path) -> Any:
    """Unpickling it leaves a file `executed`."""
    if request.param == "eval":
        return Payload(eval, "open('executed', 'w')")
    return Payload(os.system, "touch executed")


def check_not_run(path: Path, payload: Any) -> None:
    text = error_of(path)
    name = payload.run.__name__
    assert text.startswith(f"{path}: the pickle asks for ")
    assert f"{name}, which a file of images has no use for, and which was not run" in text
    assert not Path("executed").exists()


@pytest.mark.parametrize("as_archive", [True, False])
@pytest.mark.parametrize("place", ["data", "accs_all_exps"])
def test_a_hostile_file_of_torch_runs_nothing(as_archive: bool, place: str, payload: Any) -> None:
    content = {"data": [[IMAGES, LABELS]], "accs_all_exps": {}, place: payload}
    torch.save(content, "res.pt", _use_new_zipfile_serialization=as_archive)
    check_not_run(Path("res.pt"), payload)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_runs_nothing(protocol: int, payload: Any) -> None:
    Path("acc.pkl").write_bytes(pickle.dumps((payload, payload), protocol))
    check_not_run(Path("acc.pkl"), payload)


def test_a_hostile_storage_in_a_pickle_runs_nothing(payload: Any) -> None:
    inner = io.BytesIO()
    torch.save(payload, inner, _use_new_zipfile_serialization=False)
    storage = Payload(torch.storage._load_from_bytes, inner.getvalue())
    tensor = Payload(
        torch._utils._rebuild_tensor_v2, storage, 0, (1,), (1,), False, collections.OrderedDict()
    )
    Path("acc.pkl").write_bytes(pickle.dumps((tensor, tensor), 4))
    check_not_run(Path("acc.pkl"), payload)


def test_hostile_labels_and_step_sizes_run_nothing(payload: Any) -> None:
    path = write_pair(Path(), IMAGES, LABELS, torch.tensor(0.1))
    for name in ("lr_best.pt", "labels_best.pt"):
        torch.save(payload, name)
        assert f"{name}: the pickle asks for " in error_of(path)
        assert not Path("executed").exists()


def test_arrays_of_objects_are_not_unpickled(payload: Any) -> None:
    np.savez("kip.npz", images=np.array([payload]), labels=np.zeros(1))
    assert error_of(Path("kip.npz")).startswith("kip.npz: Object arrays cannot be loaded")
    assert not Path("executed").exists()


def test_numpy_itself_is_not_run(elsewhere: Path) -> None:
    hostile = Payload(np.dtype, "no such type")
    torch.save({"data": [[IMAGES, LABELS]], "accs_all_exps": hostile}, "res.pt")
    convert(ConvertOptions(Path("res.pt"), Path("out"), "mnist", factor=1))


def test_hostile_names_stay_in_a_line_and_are_cut(elsewhere: Path) -> None:
    torch.save({f"a\n{'b' * 10**5}": 1, torch.zeros(9, 9): 2}, "file.pt")
    text = error_of(Path("file.pt"))
    assert r"got a dict of 'a\nbbb" in text
    assert len(text) < 300
    name = b"a\n" + b"b" * 200
    called = b"\x8c" + bytes([len(name)]) + name
    Path("acc.pkl").write_bytes(b"\x80\x04" + called + called + b"\x93.")  # STACK_GLOBAL
    text = error_of(Path("acc.pkl"))
    assert text.startswith(r"acc.pkl: the pickle asks for a\nbbb")
    assert len(text) < 300


# --- files that are not whole, or something else


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("part", [0, 0.3, 0.7, 0.999])
def test_a_file_that_is_cut_short_is_named(name: str, part: float, elsewhere: Path) -> None:
    path = WRITERS[name](Path())
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    assert error_of(path).startswith(f"{name}: ")


@pytest.mark.parametrize("name", ["images_best.pt", "res.pt", "acc.pkl"])
def test_a_damaged_byte_never_gives_another_error(name: str, elsewhere: Path) -> None:
    path = WRITERS[name](Path())
    content = bytearray(path.read_bytes())
    said: list[str] = []
    places = [*range(0, 400, 7), *range(len(content) - 300, len(content), 7)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            convert(ConvertOptions(path, Path("out"), "mnist", factor=1, space="pixels"))
        except ValueError as error:
            said.append(str(error))
    assert len(said) > len(places) / 2  # another byte of a number, or of padding, is no error
    assert [text for text in said if name not in text or "\n" in text] == []


def write_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "b")


def write_arrays(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=np.zeros(2))


def write_nested(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of a prototype
        torch.save([torch.nested.nested_tensor([*IMAGES]), LABELS], path)


ANOTHER_KIND: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("<html>404"), "it is of another kind"),
    "archive": (write_archive, "expected a file that torch.save has written"),
    "number": (lambda path: torch.save(3, path), "expected what one of res, pair, idc, .* a int"),
    "state": (
        lambda path: torch.save({"conv.weight": numbers(2), "conv.bias": numbers(2)}, path),
        "expected what one of .*, got a dict of 'conv.weight', 'conv.bias'",
    ),
    "list": (lambda path: torch.save([numbers(2)], path), "expected what one of .*, got a list"),
    "no experiment": (lambda path: torch.save({"data": []}, path), "with data, a list of exper"),
    "no labels": (lambda path: torch.save({"data": [[IMAGES]]}, path), "a list of images and lab"),
    "no tensor": (
        lambda path: torch.save({"data": [["a", "b"]]}, path),
        "expected images to be a tensor, got str",
    ),
    "sparse": (
        lambda path: torch.save([IMAGES.to_sparse(), LABELS], path),
        "expected images to be a plain tensor of numbers, got torch.float32, torch.sparse_coo",
    ),
    "nested": (
        write_nested,
        "expected images to be a plain tensor of numbers, got torch.float32, .*, nested",
    ),
    "complex": (
        lambda path: torch.save([IMAGES.to(torch.complex64), LABELS], path),
        "expected images to be a plain tensor of numbers, got torch.complex64",
    ),
    "stretched": (
        lambda path: torch.save([torch.zeros(1).expand(10**6, 1, 28, 28), LABELS], path),
        r"expected images of \(1000000, 1, 28, 28\) numbers, and the file is too short for them",
    ),
    "pickled list": (lambda path: path.write_bytes(pickle.dumps([1, 2])), "got a list"),
    "other arrays": (write_arrays, "got a dict of 'x'"),
}


@pytest.mark.parametrize("kind", ANOTHER_KIND)
def test_a_file_of_another_kind_is_named(kind: str, elsewhere: Path) -> None:
    write, message = ANOTHER_KIND[kind]
    write(Path("file"))
    with pytest.raises(ValueError, match=f"^file: .*{message}"):
        convert(ConvertOptions(Path("file"), Path("out"), "mnist", factor=1, space="pixels"))


BAD = torch.full_like(LABELS, CLASSES)
CONTENT = {
    "of another dataset": (IMAGES[:, :, 1:], LABELS, "floating-point images .* as mnist has them"),
    "whole numbers": (
        IMAGES.long(),
        LABELS,
        r"floating-point images .*, got whole numbers of \(20",
    ),
    "NaN": (IMAGES / 0, LABELS, "expected finite images, got NaN or Inf"),
    "none": (IMAGES[:0], LABELS[:0], "expected images, and a label .* got 0 images"),
    "fewer labels": (IMAGES, LABELS[1:], r"got 20 images and labels of \(19,\)"),
    "no such class": (IMAGES, BAD, "labels must be from 0 to 9, got 10 at row 0"),
    "float8 of another shape": (
        IMAGES[:, :, 1:].to(torch.float8_e4m3fn),
        LABELS,
        r"got floating-point numbers of \(20, 1, 27",
    ),
    "fractions": (IMAGES, LABELS.float(), "labels must be integers, got torch.float32"),
    "a class without": (IMAGES[2:], LABELS[2:], r"all 10 classes of mnist, got none of class 0 \("),
    "other classes": (
        IMAGES,
        numbers(N, 7),
        r"soft labels of 10 floating.* got floating-point ones of \(20, 7\)",
    ),
    "soft whole": (IMAGES, LABELS[:, None].expand(N, CLASSES).clone(), "got whole ones of"),
    "soft NaN": (IMAGES, numbers(N, CLASSES) / 0, "expected finite labels"),
    "labels too deep": (IMAGES, numbers(N, 1, 1), "a label or a row of them for each"),
    "too large to be normalised": (IMAGES + 3e38, LABELS, "expected finite images"),
    "too large": (IMAGES.double() * 1e300, LABELS, "expected finite images"),
}


@pytest.mark.parametrize("case", CONTENT)
def test_images_and_labels_that_do_not_fit_are_named(case: str, elsewhere: Path) -> None:
    images, labels, message = CONTENT[case]
    path = write_idc(Path("data.pt"), images, labels)
    with pytest.raises(ValueError, match=f"^data.pt: .*{message}"):
        convert(ConvertOptions(path, Path("out"), "mnist", factor=1, space="pixels"))


# --- what a file does not say


def test_what_a_file_does_not_say_is_asked_for_by_name(elsewhere: Path) -> None:
    def asked(path: Path, **told: Any) -> str:
        return error_of(path, **{"factor": None, "space": None, **told})

    for name in ("res.pt", "data.pt", "acc.pkl"):
        assert asked(WRITERS[name](Path())).startswith(f"factor: {name} does not say how many ")
    for name in ("images_best.pt", "kip.npz"):
        assert asked(WRITERS[name](Path())).startswith(f"space: {name} does not say what its num")
    write_res(Path("res.pt"), IMAGES, IMAGES)
    for told in (None, 2):
        text = asked(Path("res.pt"), experiment=told)
        assert text.startswith("experiment: expected one from 0 to 1, which res.pt holds")
    write_idc(Path("data.pt"), 3 * numbers(N, *SHAPE))
    assert asked(Path("data.pt")).startswith("space: data.pt looks like idc, whose pixels are from")
    Path("labels_best.pt").unlink()
    assert asked(Path("images_best.pt")).startswith(
        "labels: expected a file with those of images_best.pt, found none beside it"
    )
    assert asked(Path("images_best.pt"), labels=Path("nowhere")).endswith("found none at nowhere")


@pytest.mark.parametrize("lr", ["0", "-1", "nan", "inf", "nowhere"])
def test_a_step_size_is_a_number_above_0_or_a_file(lr: str, elsewhere: Path) -> None:
    path = write_pair(Path(), IMAGES, LABELS)
    assert error_of(path, lr=lr) == f"lr: expected a number above 0 or a file of one, got {lr}"


@pytest.mark.parametrize("content", [torch.zeros(2), "a", True, torch.tensor(-1.0), torch.zeros(0)])
def test_a_file_of_a_step_size_holds_one_number_above_0(content: object, elsewhere: Path) -> None:
    path = write_pair(Path(), IMAGES, LABELS)
    torch.save(content, "lr_best.pt")
    assert error_of(path).startswith("lr_best.pt: ")


def test_what_a_format_has_no_use_for_is_refused(elsewhere: Path) -> None:
    path = WRITERS["data.pt"](Path())
    for name, value, of in (
        ("labels", Path("a"), "pair"),
        ("lr", "1", "pair"),
        ("experiment", 0, "res"),
    ):
        told: dict[str, Any] = {name: value}
        expected = f"{name}: expected it with format {of} alone, got format idc"
        assert error_of(path, **told) == expected
    assert error_of(path, soft_labels="logits").startswith("soft_labels: expected it with soft la")
    divides = "factor: expected one that divides 28, 28, got "
    assert error_of(path, factor=29) == f"{divides}29"
    assert error_of(WRITERS["acc.pkl"](Path()), factor=3) == f"{divides}3"
    text = error_of(WRITERS["kip.npz"](Path()), space="whitened")
    assert text.startswith("space: expected standardised where nozca is in the name; whitened imag")


def test_soft_labels_that_are_told_wrongly_are_named(elsewhere: Path) -> None:
    path = write_pair(Path(), IMAGES, numbers(N, CLASSES))
    assert "expected soft_labels from 0 on that add up to 1" in error_of(
        path, soft_labels="probabilities"
    )


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (sre2l, 27, "expected 28 x 28 pixels as mnist has them, got 27 x 27"),
        (lambda c, k: f"other{c}/{k}.png", 28, "expected a folder named by a class of mnist or"),
        (lambda c, k: f"{c + 1:05d}/{k}.png", 28, "expected a folder named by a class of mnist or"),
        (lambda *row: "{}-{}.png".format(*row), 28, "expected a folder of pictures for each class"),
        (lambda c, k: f"{min(c, 8)}/{c}{k}.png", 28, "got none of class 9"),
    ],
)
def test_folders_of_other_pictures_are_named(
    name: Callable[[int, int], str], size: int, message: str, elsewhere: Path
) -> None:
    write_pictures(Path("syn"), torch.zeros(N, 1, size, size, dtype=torch.uint8), name)
    assert message in error_of(Path("syn"))
