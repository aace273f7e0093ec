"""What ranks share is what one process makes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cmidd import ranks
from cmidd.evaluate import evaluate
from cmidd.loop import Loop, distill
from cmidd.methods import METHODS, Method, fill_in_published
from cmidd.options.cmi import CMIOptions
from cmidd.options.dc import DCOptions
from cmidd.options.distill import DistillOptions
from cmidd.options.fields import Options
from cmidd.options.recipe import Recipe
from cmidd.pretrained.bank import train_bank
from cmidd.pretrained.experts import train_experts
from cmidd.run import prepare
from cmidd.storage.run_folder import KIND as CHECKPOINT
from cmidd.storage.run_folder import read_log
from cmidd.storage.tensor_file import read_tensors
from cmidd.synthetic import SyntheticSet
from tests.support.ranks import on_ranks
from tests.support.tiny import (
    CPU,
    DM_OPTIONS,
    DSA_OPTIONS,
    IDC_OPTIONS,
    IDM_OPTIONS,
    NETWORK,
    OPTIONS,
    expert_options,
    iid_options,
    mcmi_options,
    mtt_options,
    ncfm_options,
    quiet,
    tiny_dataset,
    tiny_experts,
    tiny_options,
)

NO_CMI: dict[str, Any] = {}


def run(
    path: Path,
    method: str,
    options: Options,
    term: CMIOptions | None = None,
    loop: DistillOptions = OPTIONS,
    *,
    resume: bool = False,
) -> None:
    made = prepare(method, tiny_dataset(), loop, options, term, device=CPU, say=quiet)
    distill(made, made.folder(path, resume=resume), say=quiet)


def run_all(folder: Path, experts: Path, bank: Path) -> None:
    """Every method, with and without CMI of several kinds."""
    dc = DCOptions(network=NETWORK, batch_real=3, outer_steps=2, inner_epochs=1)
    some = mtt_options(experts, batch_syn=3)
    idc = replace(IDC_OPTIONS, per_class_step=True, batch_syn=5)
    on_batch = {"cmi_weight": 5.0, "cmi_on": "batch", "cmi_centroids": "real"}
    for name, method, options, cmi in (
        ("dm", "dm", DM_OPTIONS, NO_CMI),
        ("dm-cmi", "dm", DM_OPTIONS, {"cmi_weight": 5.0, "cmi_chunk": 4}),
        ("dc-cmi", "dc", dc, {"cmi_weight": 5.0, "cmi_every": 2}),
        ("dsa", "dsa", DSA_OPTIONS, NO_CMI),
        ("mtt", "mtt", mtt_options(experts, batch_syn=None), NO_CMI),
        ("mtt-cmi", "mtt", some, on_batch),
        ("iid", "iid", iid_options(bank), NO_CMI),
        ("idc", "idc", IDC_OPTIONS, NO_CMI),
        ("idc-cmi", "idc", idc, {"cmi_weight": 5.0}),
        ("idm", "idm", IDM_OPTIONS, NO_CMI),
        ("iid-idm-cmi", "iid", iid_options(bank, "idm"), {"cmi_weight": 5.0}),
        ("ncfm", "ncfm", ncfm_options(bank), NO_CMI),
        ("ncfm-cmi", "ncfm", ncfm_options(bank), {"cmi_weight": 5.0}),
        ("ncfm-sgd", "ncfm", ncfm_options(bank, optimizer="sgd"), NO_CMI),
    ):
        term = CMIOptions(bank=bank if cmi else None, **cmi)
        loop = replace(OPTIONS, lr_images=0.01 if method == "ncfm" else 1.0, init="real")
        run(folder / name, method, options, term, loop)


@pytest.mark.parametrize("count", [2, 3])
def test_every_method_makes_the_images_of_one_process(
    count: int, tmp_path: Path, bank_file: Path
) -> None:
    experts = tmp_path / "experts"
    tiny_experts(experts, tiny_dataset())
    run_all(tmp_path / "one", experts, bank_file)
    on_ranks(count, run_all, tmp_path, tmp_path / "shared", experts, bank_file)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 14
    for name in names:
        one, shared = tmp_path / "one" / name, tmp_path / "shared" / name
        check_alike(SyntheticSet.load(shared), SyntheticSet.load(one), name)
        logs = [read_log(k / "log.jsonl") for k in (shared, one)]
        assert [line.keys() for line in logs[0]] == [line.keys() for line in logs[1]]
        for of_shared, of_one in zip(*logs, strict=True):
            assert of_shared == pytest.approx(of_one, rel=1e-3)
        assert {path.name for path in shared.iterdir()} == {path.name for path in one.iterdir()}


def check_alike(shared: SyntheticSet, one: SyntheticSet, name: str) -> None:
    # DM and IID on it add up nothing but zeros over ranks. DC, DSA, IDC, IDM and MTT add up what
    # networks learn by, and their images go on from what it led to.
    room = {"dm": 0.0, "iid": 0.0, "dm-cmi": 1e-6}.get(name, 1e-5)
    for found, expected in ((shared.images, one.images), (shared.targets, one.targets)):
        torch.testing.assert_close(
            found, expected, rtol=room, atol=room, msg=lambda m: f"{name}: {m}"
        )
    assert (shared.learned_lr or 0) == pytest.approx(one.learned_lr or 0, rel=1e-4)


def steps(experts: Path, bank: Path) -> dict[str, list[Tensor]]:
    """Loss and gradients of the first updates of every method in float64."""
    data = tiny_dataset()
    images = data.to_input(data.train.images[::3], torch.float64)
    labels = data.train.labels[::3]
    found = {}
    for name, options in (
        ("dm", DM_OPTIONS),
        ("dsa", DSA_OPTIONS),
        ("mtt", mtt_options(experts)),
        ("iid", iid_options(bank)),
        ("idc", replace(IDC_OPTIONS, cutmix_net=1.0)),
        ("idm", IDM_OPTIONS),
        ("ncfm", ncfm_options(bank)),
    ):
        _, of_method, _ = fill_in_published(name, data, 2, OPTIONS, options)
        method = METHODS[name].make(data, labels, of_method, 0, CPU, torch.float64)
        # With training of the network between updates; that of IDM lasts across iterations.
        places = itertools.product(range(4 if name == "idm" else 1), range(method.updates))
        accuracies: list[Tensor] = []  # of networks that IDM matches in
        for iteration, update in places:
            loss, gradient = method.loss_and_gradient(images, method.draw(iteration, update))
            extra = [each.tensor.grad for each in method.extra_parameters.values()]
            there = [each for each in extra if each is not None]
            found[f"{name}, {iteration}, {update}"] = [loss, gradient, *there]
            accuracies += [n for key, n in method.log_values().items() if key == "accuracy"]
        assert name != "idm" or max(accuracies) > 0
    return found


def compare_steps(experts: Path, bank: Path, expected: dict[str, list[Tensor]]) -> None:
    for name, shares in steps(experts, bank).items():
        ranks.add_up(*shares)
        for share, whole in zip(shares, expected[name], strict=True):
            torch.testing.assert_close(share, whole, rtol=1e-11, atol=1e-13)


def test_shares_add_up_to_the_step_of_one_process(tmp_path: Path, bank_file: Path) -> None:
    experts = tmp_path / "experts"
    tiny_experts(experts, tiny_dataset())
    on_ranks(2, compare_steps, tmp_path, experts, bank_file, steps(experts, bank_file))


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    run(tmp_path / "whole", "dm", DM_OPTIONS)
    path = tmp_path / "run"
    for iterations, count in ((3, 2), (5, 1), (8, 3)):
        loop = replace(OPTIONS, iterations=iterations)
        if count == 1:
            run_on(path, loop)
        else:
            on_ranks(count, run_on, tmp_path, path, loop)
    (found, _), (expected, _) = (
        read_tensors(each / "checkpoint.safetensors", CHECKPOINT)
        for each in (path, tmp_path / "whole")
    )
    assert found.keys() == expected.keys() == {"images", "momentum of images"}
    assert all(torch.equal(found[name], expected[name]) for name in found)


def run_on(path: Path, loop: DistillOptions) -> None:
    run(path, "dm", DM_OPTIONS, loop=loop, resume=path.exists())


def train_all(folder: Path) -> None:
    """A bank, the same fine-tuned, experts and an evaluation, of uneven shares."""
    data = tiny_dataset()
    train_bank(folder / "bank", data, tiny_options(), CPU, say=quiet)
    train_bank(folder / "mcmi", data, mcmi_options(folder / "bank"), CPU, say=quiet)
    train_experts(folder / "experts", data, expert_options(together=2), CPU, say=quiet)
    said: list[str] = []
    recipe = Recipe(epochs=2, batch_size=5)
    found = evaluate(
        data.to_input(data.train.images),
        data.train.labels,
        data,
        [NETWORK],
        repeats=3,
        recipe=recipe,
        device=CPU,
        say=said.append,
    )
    (folder / f"evaluation{dist.get_rank() if dist.is_initialized() else ''}").write_text(
        f"{found[0].accuracies} {said}"
    )


def evaluate_another_set_each() -> None:
    data, recipe = tiny_dataset(), Recipe(epochs=1)
    images = data.to_input(data.train.images) + dist.get_rank()
    with pytest.raises(ValueError, match="images, labels: expected the same on all ranks"):
        evaluate(images, data.train.labels, data, [NETWORK], recipe=recipe, device=CPU, say=quiet)


def test_ranks_that_evaluate_different_sets_are_told(tmp_path: Path) -> None:
    on_ranks(2, evaluate_another_set_each, tmp_path)


def test_networks_are_those_of_one_process(tmp_path: Path) -> None:
    one, shared = tmp_path / "one", tmp_path / "shared"
    for folder in (one, shared):
        folder.mkdir()
    train_all(one)
    on_ranks(2, train_all, tmp_path, shared)
    for name in ("bank", "mcmi", "experts"):
        assert (shared / name).read_bytes() == (one / name).read_bytes()
    for rank in range(2):
        assert (shared / f"evaluation{rank}").read_text() == (one / "evaluation").read_text()
    left = {path.name for path in shared.iterdir()}
    assert left == {"bank", "mcmi", "experts", "evaluation0", "evaluation1"}


def count_what_is_sent(folder: Path, experts: Path) -> None:
    sizes: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor: Tensor, *arguments: Any) -> None:
        sizes.append(tensor.numel() * tensor.element_size())
        all_reduce(tensor, *arguments)

    dist.all_reduce = counted  # type: ignore[assignment]
    images = 6 * 8 * 8 * 4
    options = mtt_options(experts, soft_labels=False)
    for method, of_method, expected in (
        ("dm", DM_OPTIONS, [4, 4, images]),
        ("mtt", options, None),
    ):
        made = prepare(method, tiny_dataset(), OPTIONS, of_method, device=CPU, say=quiet)
        loop = Loop(made, made.folder(folder / method), None, quiet)  # type: ignore[arg-type]
        sizes.clear()
        loop.update(0, 0, logged=False)
        if expected is None:
            theta = made.method.experts.parameters(0, 0).nbytes  # type: ignore[attr-defined]
            steps = options.student_steps
            assert steps is not None
            expected = [theta] * 2 * steps + [4, 4, images, 4]
        assert sizes == expected, method


def test_what_is_sent_in_an_update(tmp_path: Path) -> None:
    tiny_experts(tmp_path / "experts", tiny_dataset())
    on_ranks(2, count_what_is_sent, tmp_path, tmp_path, tmp_path / "experts")


class _Alone(Method):
    """One that ranks do not share."""

    network_spec = NETWORK

    def __init__(self, *_: Any) -> None:
        pass

    def loss_and_gradient(self, images: Tensor, draws: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return images.sum().detach(), torch.ones_like(images)


def refuse(folder: Path, experts: Path) -> None:
    data = tiny_dataset()
    with pytest.raises(ValueError, match="ranks: expected at most one for each of the 3 classes"):
        prepare("dm", data, OPTIONS, DM_OPTIONS, device=CPU, say=quiet)
    few = mtt_options(experts, batch_syn=3)
    with pytest.raises(ValueError, match="ranks: expected at most one for each of the 3 images"):
        prepare("mtt", data, OPTIONS, few, device=CPU, say=quiet)
    METHODS["dm"] = replace(METHODS["dm"], make=_Alone)
    with pytest.raises(ValueError, match="ranks: dm does not share its work; expected one process"):
        prepare("dm", data, OPTIONS, DM_OPTIONS, device=CPU, say=quiet)


def test_what_ranks_cannot_share_is_refused(tmp_path: Path) -> None:
    tiny_experts(tmp_path / "experts", tiny_dataset())
    on_ranks(4, refuse, tmp_path, tmp_path, tmp_path / "experts")
