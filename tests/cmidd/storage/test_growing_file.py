from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from cmidd.storage import growing_file
from cmidd.storage.growing_file import (
    GrowingFile,
    check_complete,
    check_piece,
    partial_path,
)
from cmidd.storage.output import in_words
from cmidd.storage.tensor_file import opened, read_tensors

KIND = "sack of things"
ITEMS = {
    "a": torch.arange(6.0).view(2, 3),
    "steps": torch.tensor(7),
    "b": torch.tensor(0.5),
}
META = {name: torch.empty_like(tensor, device="meta") for name, tensor in ITEMS.items()}
COUNT = 3


def grown(
    path: Path,
    *,
    resume: bool = False,
    count: int = COUNT,
    items: Any = META,
    seed: int = 0,
    **more: Any,
) -> GrowingFile:
    words = {"what": "sack", "lower": "things", "grows": "things", **more}
    return GrowingFile(path, KIND, {"seed": seed}, count, items, resume=resume, **words)


def of_item(k: int) -> dict[str, Tensor]:
    return {name: tensor + k for name, tensor in ITEMS.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sack"


def test_items_come_back_stacked_and_the_file_gets_its_name_in_the_end(path: Path) -> None:
    file = grown(path)
    for k in (1, 0, 2):
        file.put(k, of_item(k))
    assert not path.exists()
    assert partial_path(path).stat().st_size == file.size
    file.complete()
    assert [p.name for p in path.parent.iterdir()] == ["sack"]
    tensors, record = read_tensors(path, KIND)
    for name in ITEMS:
        assert torch.equal(tensors[name], torch.stack([of_item(k)[name] for k in range(COUNT)]))
    assert tensors["trained"].tolist() == [1, 1, 1]
    assert record["seed"] == 0


def test_its_tensors_are_aligned(path: Path) -> None:
    grown(path)
    content = partial_path(path).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    widths = {"I64": 8, "F32": 4, "U8": 1}
    for name, entry in header.items():
        if name != "__metadata__":
            assert (8 + length + entry["data_offsets"][0]) % widths[entry["dtype"]] == 0


def test_pieces_have_their_checksums(path: Path) -> None:
    file = grown(path, parts={"a": 2})
    for part in range(2):
        file.write(1, {"a": of_item(1)["a"][part]}, part)
    file.put(1, {name: tensor for name, tensor in of_item(1).items() if name != "a"})
    found = load_file(file.path)
    for part in range(2):
        check_piece(path, "a", found["a"][1, part], found["crc32 of a"][1, part])
    check_piece(path, "b", found["b"][1], found["crc32 of b"][1])
    with pytest.raises(ValueError, match=rf"{path}: a piece of a: expected the checksum \d+, got"):
        check_piece(path, "a", found["a"][1, 0], found["crc32 of a"][1, 1])


def test_an_item_counts_only_after_it_was_put(path: Path) -> None:
    file = grown(path)
    assert file.missing() == [0, 1, 2]
    file.write(1, of_item(1))
    assert file.missing() == [0, 1, 2]
    file.put(1, {})
    assert file.missing() == [0, 2]
    assert grown(path, resume=True).missing() == [0, 2]


def test_parts_are_written_into_their_places(path: Path) -> None:
    file = grown(path, parts={"a": 2})
    for k in range(COUNT):
        for part in (1, 0):
            file.write(k, {"a": of_item(k)["a"][part]}, part)
        file.put(k, {name: tensor for name, tensor in of_item(k).items() if name != "a"})
    file.complete()
    expected = torch.stack([of_item(k)["a"] for k in range(COUNT)])
    assert torch.equal(load_file(path)["a"], expected)


def test_what_is_written_may_be_a_view_with_a_gradient(path: Path) -> None:
    file = grown(path, count=1)
    turned = torch.arange(6.0).view(3, 2).requires_grad_().T
    file.put(0, {**ITEMS, "a": turned})
    file.complete()
    assert torch.equal(load_file(path)["a"][0], turned)


@given(
    count=st.integers(1, 5),
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=4),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_any_items_in_any_order_come_back(
    tmp_path_factory: pytest.TempPathFactory, count: int, shapes: list[list[int]], data: Any
) -> None:
    path = tmp_path_factory.mktemp("any") / "sack"
    dtypes = st.sampled_from([torch.float32, torch.int64, torch.uint8])
    items = {f"{n}": torch.empty(s, dtype=data.draw(dtypes)) for n, s in enumerate(shapes)}
    values = {
        name: torch.randint(0, 99, (count, *t.shape)).to(t.dtype) for name, t in items.items()
    }
    for k in data.draw(st.permutations(range(count))):
        growing = grown(path, resume=True, count=count, items=items)  # a run of its own for each
        assert k in growing.missing()
        growing.put(k, {name: tensor[k] for name, tensor in values.items()})
    growing.complete()
    found = load_file(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in values.items())


OTHER = "that another version of cmidd began, with other tensors"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, r"with other settings \(seed: 0 there, 1 now\); give the same ones"),
        ({"count": 2}, r"with other settings \(things: 3 there, 2 now, which is fewer\)"),
        ({"count": 4, "grows": ""}, r"with other settings \(.*items: 3 there, 4 now"),
        ({"items": {**META, "a": torch.empty(3, 2)}}, OTHER),
        ({"items": {}}, OTHER),
        ({"count": 4, "items": {"a": META["a"]}}, OTHER),
    ],
)
@pytest.mark.parametrize("complete", [False, True])
def test_a_file_with_other_settings_is_refused_and_stays(
    path: Path, changes: dict[str, Any], words: str, complete: bool
) -> None:
    file = grown(path)
    if complete:
        file.complete()
    (there,) = path.parent.iterdir()
    before = there.read_bytes()
    with pytest.raises(ValueError, match=rf"resume: {there} is a sack {words}"):
        grown(path, resume=True, **changes)
    assert there.read_bytes() == before


@pytest.mark.parametrize("complete", [False, True])
def test_a_file_of_fewer_items_is_taken_over(path: Path, complete: bool) -> None:
    file = grown(path, noted={"command": "the first"})
    done = range(COUNT) if complete else [1]
    for k in done:
        file.put(k, of_item(k))
    if complete:
        file.complete()
    more = grown(path, count=5, resume=True, noted={"command": "the second"})
    assert more.path == partial_path(path)
    assert path.exists() == complete  # it serves until the larger one is complete
    assert more.missing() == [k for k in range(5) if k not in done]
    for k in more.missing():
        more.put(k, of_item(k))
    more.complete()
    fresh = grown(path.with_name("fresh"), count=5, noted={"command": "the second"})
    for k in range(5):
        fresh.put(k, of_item(k))
    assert path.read_bytes() == fresh.path.read_bytes()
    with pytest.raises(ValueError, match=rf"{path} is a sack .*things: 5 there, 3 now"):
        grown(path, resume=True)


def test_the_complete_file_serves_while_a_larger_one_is_not_done(path: Path) -> None:
    file = grown(path)
    for k in range(COUNT):
        file.put(k, of_item(k))
    file.complete()
    grown(path, count=5, resume=True).put(3, of_item(3))
    assert grown(path, resume=True).path == path
    assert grown(path, count=5, resume=True).missing() == [4]
    assert grown(path, count=6, resume=True).missing() == [4, 5]


def test_a_file_of_something_else_is_refused(path: Path) -> None:
    path.write_bytes(b"12345678 and so on")
    with pytest.raises(ValueError, match=rf"resume: {path} is no sack that cmidd began; name"):
        grown(path, resume=True)


@pytest.mark.parametrize("complete", [False, True])
def test_a_file_that_is_there_is_gone_on_with_only_where_that_was_asked(
    path: Path, complete: bool
) -> None:
    file = grown(path)
    if complete:
        file.complete()
    (there,) = path.parent.iterdir()
    with pytest.raises(FileExistsError, match=rf"out: {there} exists already; add --resume"):
        grown(path)
    assert grown(path, resume=True).path == there


def test_items_that_a_damaged_file_lost_are_missing(path: Path) -> None:
    file = grown(path)
    for k in range(COUNT):
        file.put(k, of_item(k))
    whole = file.path.read_bytes()
    for length in range(len(whole) - 20, len(whole)):
        file.path.write_bytes(whole[:length])
        again = grown(path, resume=True)
        assert COUNT - 1 in again.missing()
        for k in again.missing():
            again.put(k, of_item(k))
        assert file.path.read_bytes() == whole


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_copy_that_ends_early_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    grown(path)

    def end(*_: Any) -> None:
        raise error

    monkeypatch.setattr(growing_file, "_copy", end)
    with pytest.raises(type(error)):
        grown(path, count=5, resume=True)
    assert list(path.parent.iterdir()) == [partial_path(path)]


def test_a_damaged_file_of_fewer_items_is_taken_over_as_far_as_it_goes(path: Path) -> None:
    file = grown(path)
    for k in range(COUNT):
        file.put(k, of_item(k))
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-2])
    assert grown(path, count=5, resume=True).missing() == [1, 2, 3, 4]


def test_a_file_that_is_not_complete_says_how_to_go_on(path: Path) -> None:
    check_complete(path, "sack")  # nothing there: whoever opens it says so
    file = grown(path)
    with pytest.raises(FileNotFoundError, match=rf"{path}: the sack is not complete; .* --resume"):
        check_complete(path, "sack")
    file.complete()
    check_complete(path, "sack")
    with opened(path, KIND) as (_, record):
        assert json.loads(json.dumps(record)) == {"format": 1, "kind": KIND, "seed": 0}


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))


def test_a_disk_that_is_too_small_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = grown(tmp_path / "fits").size
    path = tmp_path / "new" / "folders" / "sack"
    with_free(monkeypatch, size - 1)
    message = (
        rf"out: {path} takes {in_words(size)}, and {tmp_path} has {in_words(size - 1)} free; "
        "lower things, or name a file on another disk"
    )
    with pytest.raises(ValueError, match=message):
        grown(path)
    assert not (tmp_path / "new").exists()
    with_free(monkeypatch, size)
    assert grown(path).free == size


def test_what_is_on_the_disk_already_needs_no_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = {"large": torch.zeros(2**18)}
    file = grown(path, items=items)
    file.put(0, items)
    file.put(1, items)
    with_free(monkeypatch, 2**20 + 2**16)  # bytes of one item and a little
    assert grown(path, items=items, resume=True).missing() == [2]
    with_free(monkeypatch, 2**20 - 2**16)
    with pytest.raises(ValueError, match=r"out: .* lower things"):
        grown(path, items=items, resume=True)


def test_bytes_in_words() -> None:
    assert in_words(6_528_204_000) == "6.53GB"
