"""What the loop does for methods that need more than most: each hook in a small method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidd.cli import main
from cmidd.cli.costs import estimate
from cmidd.evaluate import evaluate_set, train_on
from cmidd.exchange import export_png, export_pt
from cmidd.first_images import first_images
from cmidd.loop import distill
from cmidd.methods import METHODS, Method, MethodEntry, Published
from cmidd.options.cmi import CMIOptions
from cmidd.options.distill import DistillOptions
from cmidd.options.fields import Options
from cmidd.options.methods import METHOD_OPTIONS
from cmidd.options.recipe import Recipe
from cmidd.pretrained.bank import Bank
from cmidd.report.runs import read_runs
from cmidd.run import Run, prepare
from cmidd.storage.run_folder import RunFolder, read_log
from cmidd.storage.tensor_file import FileError, read_tensors
from cmidd.synthetic import SyntheticSet
from cmidd.view import VIEWS, View, register_view
from cmikernels import CMIRegularizer
from tests.support.tiny import CONFIG, CPU, NETWORK, quiet, tiny_dataset

DATASET = tiny_dataset()


OPTIONS = DistillOptions(
    ipc=1, init="real", iterations=6, lr_images=0.1, report_every=1, checkpoint_every=2
)


@dataclass(frozen=True)
class NoOptions(Options):
    """Of the methods below."""


class Pull(Method):
    """Pulls images to the number of the iteration."""

    network_spec = NETWORK

    def __init__(self, *_: Any) -> None:
        """Need nothing."""

    def loss_and_gradient(self, images: Tensor, draws: tuple[int, int]) -> tuple[Tensor, Tensor]:
        away = images.detach() - draws[0]
        return away.square().sum() / 2, away


def halves(images: Tensor, labels: Tensor, *, copies: int) -> tuple[Tensor, Tensor]:
    """Two images of each stored one: its upper and its lower half, every row twice."""
    assert copies == 2
    half = images.shape[2] // 2
    seen = torch.stack([images[:, :, :half], images[:, :, half:]], dim=1)  # (N, 2, ch, H / 2, W)
    rows = seen.repeat_interleave(2, dim=3).flatten(0, 1)
    return rows, labels.repeat_interleave(2, dim=0)


class Packed(Pull):
    """Two network inputs in a stored image."""

    view = View("halves", {"copies": 2})


class Remembering(Pull):
    """Pulls images to a running mean of what they were."""

    def __init__(self, *_: Any) -> None:
        self.mean = torch.zeros(3, 1, 8, 8)

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.mean = state["mean"].reshape(3, 1, 8, 8).clone()

    def loss_and_gradient(self, images: Tensor, _draws: Any) -> tuple[Tensor, Tensor]:
        self.mean = 0.5 * self.mean + images.detach()
        away = images.detach() - self.mean
        return away.square().sum() / 2, away


class WithAdam(Pull):
    """Moves images by Adam."""

    def optimizer(self, groups: list[dict[str, Any]], momentum: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(groups, betas=(momentum, 0.9))


class Drawing(Pull):
    """Draws networks of the bank for every update."""

    updates = 2
    bank_draw = "update"


class Scaled(Pull):
    """Moves classes by steps of their own."""

    class_scale: Tensor | None = torch.tensor([1.0, 0.5, 0.0])


MADE: dict[str, Callable[..., Method]] = {
    "packed": Packed,
    "remembering": Remembering,
    "adam": WithAdam,
    "drawing": Drawing,
    "scaled": Scaled,
}


@pytest.fixture(autouse=True)
def _methods(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    loop = {"init": "real", "iterations": 2, "lr_images": 0.1, "report_every": 1,
            "checkpoint_every": 1}  # fmt: skip
    for name, make in MADE.items():
        monkeypatch.setitem(METHODS, name, MethodEntry(make, NoOptions, lambda *_: Published(loop)))
        monkeypatch.setitem(METHOD_OPTIONS, name, NoOptions)
    register_view("halves", halves)
    yield
    del VIEWS["halves"]


def prepared(name: str, options: DistillOptions = OPTIONS, cmi: CMIOptions | None = None) -> Run:
    return prepare(name, DATASET, options, NoOptions(), cmi, device=CPU, say=quiet)


def run(path: Path, name: str, *arguments: Any, resume: bool = False) -> SyntheticSet:
    folder = RunFolder(path, CONFIG, resume=resume)
    return distill(prepared(name, *arguments), folder, say=quiet)


@pytest.mark.parametrize("name", MADE)
def test_a_stopped_run_goes_on_to_the_bit(
    name: str, tmp_path: Path, cmi: CMIOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, ipc=2) if name != "remembering" else OPTIONS
    whole = run(tmp_path / "whole", name, options, cmi)
    made = METHODS[name].make
    matched = made.loss_and_gradient  # type: ignore[attr-defined]

    def stopping(self: Any, images: Tensor, draws: tuple[int, int]) -> Any:
        if draws[0] == 5:
            raise KeyboardInterrupt
        return matched(self, images, draws)

    with monkeypatch.context() as patch:
        patch.setattr(made, "loss_and_gradient", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", name, options, cmi)
    again = run(tmp_path / "cut", name, options, cmi, resume=True)
    assert torch.equal(again.images, whole.images)
    logs = [(tmp_path / part / "log.jsonl").read_bytes() for part in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_cmi_is_of_what_networks_see(tmp_path: Path, bank_file: Path, cmi: CMIOptions) -> None:
    run(tmp_path, "packed", OPTIONS, cmi)
    images, labels = first_images(DATASET, 1, "real", 0)
    regularizer = CMIRegularizer(Bank.load(bank_file, CPU), 5.0, seed=0)
    leaf = images.requires_grad_()
    value = regularizer(*halves(leaf, labels, copies=2), step=0)
    line = read_log(tmp_path / "log.jsonl")[0]
    assert line["weighted_cmi"] == pytest.approx(value.item(), rel=1e-4)
    assert line["cmi"] > 0  # with one stored image per class
    (gradient,) = torch.autograd.grad(value, leaf)
    found = prepared("packed", OPTIONS, cmi)
    added = torch.zeros_like(images)
    found.cmi.add(found.images, added, 0, logged=False)
    torch.testing.assert_close(added, gradient)


def test_a_set_is_used_through_its_view(tmp_path: Path) -> None:
    run(tmp_path / "run", "packed")
    loaded = SyntheticSet.load(tmp_path / "run" / "result.safetensors")
    images, labels = halves(loaded.images, loaded.labels, copies=2)
    assert loaded.record["view"] == {"name": "halves", "settings": {"copies": 2}}
    assert len(loaded.labels) == 3
    seen = loaded.seen()
    assert torch.equal(seen.images, images)
    assert torch.equal(seen.labels, labels)
    assert torch.equal(loaded.pixels(), DATASET.to_pixels(images))
    export_pt(loaded, tmp_path / "pt")
    assert torch.equal(torch.load(tmp_path / "pt" / "images_best.pt", weights_only=True), images)
    export_png(loaded, tmp_path / "png")
    assert len(list((tmp_path / "png").rglob("*.png"))) == 6


def test_soft_labels_are_seen_too() -> None:
    images, labels = first_images(DATASET, 1, "real", 0)
    soft = torch.eye(3).float()
    record = {"view": Packed.view.as_record() if Packed.view else None}
    plain = SyntheticSet.of(DATASET, images, labels, record)
    assert torch.equal(
        replace(plain, soft_labels=soft).seen().targets, soft.repeat_interleave(2, dim=0)
    )


def test_networks_learn_from_what_they_see(tmp_path: Path) -> None:
    result = run(tmp_path, "packed")
    recipe = Recipe(epochs=3, lr=0.05)
    options: dict[str, Any] = {"recipe": recipe, "device": CPU}
    found = evaluate_set(result, DATASET, repeats=1, say=quiet, **options)
    expected = evaluate_set(result.seen(), DATASET, repeats=1, say=quiet, **options)
    assert found == expected
    assert found[0].network == NETWORK
    network = train_on(result, DATASET, **options)
    right = network(DATASET.to_input(DATASET.test.images)).argmax(1) == DATASET.test.labels
    assert right.double().mean() == found[0].accuracies[0]


def test_a_report_shows_what_networks_see(tmp_path: Path) -> None:
    main(["distill", "packed", "--ipc=1", "--device=cpu", f"--out={tmp_path}"])
    (tmp_path / "result.safetensors").unlink()  # what is left is a run that is not finished
    (unfinished,), _ = read_runs([tmp_path], with_dataset=False)
    assert unfinished.images_per_class == 1
    assert len(unfinished.seen.labels) == 20
    assert "seen as 2 images each" in unfinished.about()


def test_a_view_that_nobody_registered_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, "packed")
    monkeypatch.delitem(VIEWS, "halves")
    with pytest.raises(FileError, match="got 'halves'; import the module of the method"):
        SyntheticSet.load(tmp_path / "result.safetensors")
    register_view("halves", halves)
    with pytest.raises(ValueError, match="name: a view halves exists already"):
        register_view("halves", lambda images, labels: (images, labels))


def test_a_checkpoint_has_the_methods_state_and_that_of_the_optimizer(tmp_path: Path) -> None:
    run(tmp_path / "a", "remembering")
    tensors, _ = read_tensors(tmp_path / "a" / "checkpoint.safetensors", "checkpoint")
    assert tensors.keys() == {"images", "momentum of images", "state of mean"}
    run(tmp_path / "b", "adam")
    tensors, _ = read_tensors(tmp_path / "b" / "checkpoint.safetensors", "checkpoint")
    words = ("step of ", "exp_avg of ", "exp_avg_sq of ", "")
    assert tensors.keys() == {f"{word}images" for word in words}


def test_a_state_that_a_checkpoint_cannot_hold_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step(closure)
            self.state[self.param_groups[0]["params"][0]]["steps"] = 3

    monkeypatch.setattr(WithAdam, "optimizer", lambda _, groups, __: Counting(groups))
    with pytest.raises(TypeError, match=r"expected tensors in its state, .* got steps 3 of images"):
        run(tmp_path, "adam")


def test_first_images_are_stored_as_the_method_reads_them(tmp_path: Path) -> None:
    made = run(tmp_path / "a", "packed")
    run(tmp_path / "plain", "scaled")
    for name in ("result", "checkpoint"):
        init = replace(OPTIONS, init=f"file:{tmp_path / 'a' / name}.safetensors")
        assert torch.equal(prepared("packed", init).images, made.images)
        plain = replace(OPTIONS, init=f"file:{tmp_path / 'plain' / name}.safetensors")
        with pytest.raises(ValueError, match=r"init: .* expected images stored with the view \{"):
            prepared("packed", plain)
    with pytest.raises(ValueError, match=r"init: .* expected images stored with the view None"):
        prepared("scaled", init)  # from the checkpoint


def test_a_method_without_a_view_begins_with_what_networks_see_of_a_set(tmp_path: Path) -> None:
    made = run(tmp_path / "a", "packed")
    init = replace(OPTIONS, init=f"file:{tmp_path / 'a' / 'result.safetensors'}")
    assert torch.equal(prepared("adam", replace(init, ipc=2)).images, made.seen().images)
    with pytest.raises(ValueError, match=r"init: .* expected 3 images, .* got 6 with other labels"):
        prepared("scaled", init)


def test_a_draw_of_the_bank_that_is_neither_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Drawing, "bank_draw", "updates")
    with pytest.raises(ValueError, match="bank_draw: expected iteration or update of the method"):
        prepared("drawing")


def test_an_estimate_puts_the_methods_state_back() -> None:
    tried = prepared("remembering")
    assert estimate(tried).iterations == 6
    assert not tried.method.state()["mean"].any()


def test_a_state_that_the_method_does_not_know_is_an_error(tmp_path: Path) -> None:
    options = replace(OPTIONS, iterations=3)
    run(tmp_path, "remembering", options)
    (tmp_path / "result.safetensors").unlink()
    with pytest.raises(FileError, match="expected no state of the method, got mean"):
        run(tmp_path, "scaled", options, resume=True)


def test_networks_are_drawn_for_every_update(
    tmp_path: Path, cmi: CMIOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    draw = CMIRegularizer.draw

    def noting(self: CMIRegularizer, step: int) -> list[int]:
        steps.append(step)
        return draw(self, step)

    monkeypatch.setattr(CMIRegularizer, "draw", noting)
    run(tmp_path, "drawing", replace(OPTIONS, ipc=2, iterations=3), cmi)
    assert steps == [0, 1, 2, 3, 4, 5]


def test_classes_move_by_steps_of_their_own(tmp_path: Path) -> None:
    class Plain(Scaled):
        class_scale = None

    found = run(tmp_path / "a", "scaled", replace(OPTIONS, iterations=1)).images
    METHODS["scaled"] = replace(METHODS["scaled"], make=Plain)
    whole = run(tmp_path / "b", "scaled", replace(OPTIONS, iterations=1)).images
    first = first_images(DATASET, 1, "real", 0)[0]
    factors = torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(found - first, factors * (whole - first))


class Shuffled(Pull):
    """Looks at all images in another order."""

    def first_batch(self, iteration: int) -> Tensor:  # noqa: ARG002
        return torch.tensor([5, 0, 4, 1, 3, 2])


def test_cmi_of_a_batch_does_not_depend_on_its_order(
    monkeypatch: pytest.MonkeyPatch, cmi: CMIOptions
) -> None:
    found = []
    for made, on in ((Pull, "all"), (Shuffled, "batch")):
        monkeypatch.setitem(METHODS, "dm", replace(METHODS["dm"], make=made, options=NoOptions))
        run = prepare(
            "dm",
            DATASET,
            replace(OPTIONS, ipc=2),
            NoOptions(),
            replace(cmi, cmi_on=on),
            device=CPU,
            say=quiet,
        )
        gradient = torch.zeros_like(run.images)
        value = run.cmi.add(run.images, gradient, 0, logged=True)
        found.append((value, gradient))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().sum() > 0
