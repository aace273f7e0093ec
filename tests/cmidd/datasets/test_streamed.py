"""Images that are made of pixels when their rows are asked for are those of the whole tensor."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cmidd.datasets import streamed as module
from cmidd.datasets.pixels import normalised
from cmidd.datasets.streamed import Pixels, StreamedImages, all_of, one_after_another, rows_of
from cmidd.first_images import real_set
from cmidd.seeds import generator
from cmidd.storage.tensor_file import checksum, read_tensors, write_tensors
from tests.support.tiny import CPU, tiny_dataset

SHAPE = (2, 8, 6)
MEAN, STD = (0.1, 0.7), (0.3, 0.25)
MANY = 100_000  # more than a piece of these


def pixels_of(count: int) -> Tensor:
    draws = generator("streamed")
    return torch.randint(0, 256, (count, *SHAPE), generator=draws, dtype=torch.uint8)


def seen(pixels: Tensor) -> Tensor:
    return normalised(pixels, MEAN, STD)


def streamed(pixels: Tensor) -> StreamedImages:
    return StreamedImages.of(Pixels(pixels), len(pixels)).seen_by(seen)


def test_numbers_are_those_of_the_formula() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 1, 1)
    before, found = pixels.clone(), normalised(pixels, MEAN, STD)
    assert found.dtype == torch.float32
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        expected = (pixels[:, channel].double() / 255 - mean) / std
        torch.testing.assert_close(found[:, channel].double(), expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(pixels, before)
    exact = normalised(pixels, MEAN, STD, torch.float64)
    torch.testing.assert_close(exact, found.double(), atol=1e-6, rtol=1e-6)


def test_rows_are_those_of_the_tensor() -> None:
    pixels = pixels_of(9)
    images, expected = streamed(pixels), seen(pixels)
    assert (images.shape, images.dtype, len(images)) == (expected.shape, expected.dtype, 9)
    rows = torch.tensor([[3, 0, 3], [8, 7, -1]])
    for wanted in (rows, rows[0], slice(2, 5), slice(0, 0), slice(None)):
        assert torch.equal(images[wanted], expected[wanted])
    order = torch.tensor([5, 5, 1, 8])
    assert torch.equal(rows_of(images, order)[:], expected[order])
    batches = [rows[1], rows[0], rows[:, 1:]]
    for found, wanted in zip(one_after_another(images, batches), batches, strict=True):
        assert torch.equal(found, expected[wanted])
    as_they_are = StreamedImages.of(Pixels(pixels), 9)
    assert (as_they_are.dtype, as_they_are.nbytes) == (torch.uint8, pixels.nbytes)
    assert torch.equal(as_they_are[:], pixels)


@pytest.mark.parametrize("count", [0, 1, MANY])
def test_pieces_are_all_of_them_and_have_the_checksum_of_the_tensor(count: int) -> None:
    pixels = pixels_of(count)
    images, expected = streamed(pixels), seen(pixels)
    pieces = list(images.pieces())
    assert (len(pieces) > 1) == (count == MANY)
    assert torch.equal(torch.cat(pieces), expected)
    assert torch.equal(all_of(images), expected)
    assert all_of(expected) is expected
    labels = torch.arange(count)
    assert checksum({"images": images, "labels": labels}) == checksum(
        {"images": expected, "labels": labels}
    )


def test_pixels_of_a_file_are_not_read_before_they_are_asked_for(tmp_path: Path) -> None:
    pixels = pixels_of(5)
    write_tensors(tmp_path / "file", "pixels", {"pixels": pixels}, {})
    images = streamed(read_tensors(tmp_path / "file", "pixels")[0]["pixels"])
    content = bytearray((tmp_path / "file").read_bytes())
    content[-1] ^= 255
    with (tmp_path / "file").open("r+b") as file:
        file.write(content)
    assert torch.equal(images[:4], seen(pixels[:4]))
    changed = pixels[4:].clone()
    changed.view(-1)[-1] ^= 255
    assert torch.equal(images[4:], seen(changed))


def test_images_go_to_another_device_as_pixels_as_far_as_they_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a GPU, to a device that has shapes and no numbers."""
    images, meta = streamed(pixels_of(9)), torch.device("meta")
    few = images.to(meta)
    assert isinstance(few, Tensor)
    assert (few.device, few.dtype, few.shape) == (meta, torch.float32, images.shape)
    assert torch.equal(images.to(CPU)[:], seen(pixels_of(9)))
    monkeypatch.setattr(module, "SMALL", 4 * images.nbytes - 1)
    assert images.to(CPU)[:2].device == CPU
    for keep in (images.nbytes, images.nbytes - 1):
        images = StreamedImages.of(Pixels(pixels_of(9), keep), 9).seen_by(seen)
        there = images.to(meta)
        assert isinstance(there, StreamedImages)
        again = there.to(meta)
        assert isinstance(again, StreamedImages)
        assert (again._source is there._source) or keep < images.nbytes
        found = there[torch.tensor([[1], [2]])]
        assert (there.device, found.device, found.shape) == (meta, meta, (2, 1, *SHAPE))
        assert (found.dtype, there.shape) == (torch.float32, images.shape)
        before_it_is_seen = there.seen_by(lambda pixels: pixels)
        assert before_it_is_seen[:1].dtype == torch.uint8
    as_they_are = StreamedImages.of(Pixels(pixels_of(9)), 9).to(meta)
    assert isinstance(as_they_are, Tensor)
    assert as_they_are.dtype == torch.uint8


def test_pixels_are_bytes() -> None:
    with pytest.raises(TypeError, match=r"^pixels: expected uint8, got torch.float32"):
        Pixels(torch.zeros(2, 3, 4, 4))


def test_a_dataset_gives_what_networks_see_at_once_or_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = tiny_dataset()
    source = dataset.train.images
    at_once, expected = dataset.inputs(source), dataset.to_input(source)
    assert isinstance(at_once, Tensor)  # as there is room for them
    assert torch.equal(at_once, expected)
    monkeypatch.setattr(module, "SMALL", 4 * source.nbytes - 1)
    images = dataset.inputs(source)
    assert isinstance(images, StreamedImages)
    assert torch.equal(images[:], expected)
    assert real_set(dataset).source.shape == expected.shape
    whitened = dataset.whitened()
    for there in (whitened.inputs(source), real_set(whitened).source):
        assert isinstance(there, Tensor)  # which rounds as all of it together
        assert torch.equal(there, whitened.to_input(source))
    read_later = StreamedImages.of(Pixels(source), len(source))
    for images in (dataset.inputs(read_later), whitened.inputs(read_later)):
        assert isinstance(images, StreamedImages)
    whole = real_set(replace(whitened, train=replace(whitened.train, source=read_later))).source
    assert isinstance(whole, Tensor)
    assert torch.equal(whole, whitened.to_input(source))


def test_pixels_in_memory_are_not_copied_to_go_to_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, moved = pixels_of(9), list[Tensor]()
    to = Tensor.to

    def told(tensor: Tensor, *arguments: object, **settings: object) -> Tensor:
        moved.append(tensor)
        return to(tensor, *arguments, **settings)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(module, "SMALL", 0)
    images = StreamedImages.of_pixels(pixels).seen_by(seen)
    monkeypatch.setattr(Tensor, "to", told)
    there = images.to(torch.device("meta"))
    assert isinstance(there, StreamedImages)
    assert any(each is pixels for each in moved)
    some = images.of_rows(slice(1, 4)).to(torch.device("meta"))
    assert some.shape == (3, *SHAPE)


def test_only_what_is_read_or_decoded_is_made_ahead_of_its_use() -> None:
    """In memory a batch is a copy, for which a thread would need cores of its own."""
    pixels, rows = pixels_of(9), torch.split(torch.arange(9), 3)
    of_thread: list[bool] = []

    def noted(images: Tensor) -> Tensor:
        of_thread.append(threading.current_thread() is not threading.main_thread())
        return seen(images)

    in_memory, of_file = StreamedImages.of_pixels(pixels), StreamedImages.of(Pixels(pixels), 9)
    for images, is_ahead in ((in_memory, False), (of_file, True)):
        of_thread.clear()
        found = list(one_after_another(images.seen_by(noted), rows))
        assert torch.equal(torch.cat(found), seen(pixels))
        assert of_thread == [is_ahead] * 3
