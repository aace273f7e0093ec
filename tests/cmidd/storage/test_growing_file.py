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

from cmidd.storage.growing_file import GrowingFile, check_complete, partial_path
from cmidd.storage.tensor_file import in_words, opened, read_tensors

KIND = "sack of things"
ITEMS = {
    "a": torch.arange(6.0).view(2, 3),
    "steps": torch.tensor(7),
    "b": torch.tensor(0.5),
}
META = {name: torch.empty_like(tensor, device="meta") for name, tensor in ITEMS.items()}
COUNT = 3
# As the files of the first version began, to the byte: those that were begun then go on.
HEAD = (
    rb'{"__metadata__": {"cmidd": "{\"format\": 1, \"kind\": \"sack of things\", \"seed\": 0}"}, '
    b'"steps": {"dtype": "I64", "shape": [3], "data_offsets": [0, 24]}, '
    b'"a": {"dtype": "F32", "shape": [3, 2, 3], "data_offsets": [24, 96]}, '
    b'"b": {"dtype": "F32", "shape": [3], "data_offsets": [96, 108]}, '
    b'"trained": {"dtype": "U8", "shape": [3], "data_offsets": [108, 111]}}'
)


def grown(
    path: Path, *, resume: bool = False, count: int = COUNT, items: Any = META, seed: int = 0
) -> GrowingFile:
    return GrowingFile(
        path, KIND, {"seed": seed}, count, items, resume=resume, what="sack", lower="things"
    )


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


def test_the_first_bytes_are_those_of_the_first_version(path: Path) -> None:
    grown(path)
    content = partial_path(path).read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert content[8 : 8 + length].rstrip() == HEAD
    assert length % 8 == 0
    assert len(content) == 8 + length + 111


def test_an_item_counts_only_after_it_was_put(path: Path) -> None:
    file = grown(path)
    assert file.missing() == [0, 1, 2]
    file.write(1, of_item(1))
    assert file.missing() == [0, 1, 2]
    file.put(1, {})
    assert file.missing() == [0, 2]
    assert grown(path, resume=True).missing() == [0, 2]


def test_parts_are_written_into_their_places(path: Path) -> None:
    file = grown(path)
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


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"count": 4}, {"items": {**META, "a": torch.empty(3, 2)}}, {"items": {}}],
)
@pytest.mark.parametrize("complete", [False, True])
def test_a_file_with_another_header_is_refused_and_stays(
    path: Path, changes: dict[str, Any], complete: bool
) -> None:
    file = grown(path)
    if complete:
        file.complete()
    (there,) = path.parent.iterdir()
    before = there.read_bytes()
    with pytest.raises(ValueError, match=rf"resume: {there} is a sack with other settings; give"):
        grown(path, resume=True, **changes)
    assert there.read_bytes() == before


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
