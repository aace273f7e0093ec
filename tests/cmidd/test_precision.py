"""The precision of each part: what its networks compute in, its default, and how it is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from bench.plain.inputs import random_dataset, write_bank
from cmidd import device as devices
from cmidd.augment import Strategy
from cmidd.cli import main
from cmidd.device import has_tf32, precision_on, usable_device
from cmidd.evaluate import evaluate_set
from cmidd.evaluation_file import EvaluationFile
from cmidd.loop import distill
from cmidd.methods.base import Method
from cmidd.methods.class_gradients import GradientsTogether
from cmidd.methods.dc import GradientMatching
from cmidd.methods.dm import DM
from cmidd.methods.idm import IDM
from cmidd.methods.iid import IID
from cmidd.methods.mtt import MTT
from cmidd.methods.ncfm import NCFM
from cmidd.options import recipe as options_of_recipe
from cmidd.options.cmi import CMIOptions
from cmidd.options.dm import DMOptions
from cmidd.options.dsa import DSAOptions
from cmidd.options.idm import IDMOptions
from cmidd.options.iid import IIDOptions
from cmidd.options.ncfm import NCFMOptions
from cmidd.options.recipe import Recipe
from cmidd.pretrained.bank import Bank, train_bank
from cmidd.run import prepare
from cmidd.stack import Stack
from cmidd.synthetic import SyntheticSet
from cmidd.training import train
from cmidd.training_draws import draw_epochs
from cmikernels.precision import PRECISIONS
from tests.support import mtt_cases
from tests.support.compare import relative_error
from tests.support.convolutions import Convolutions
from tests.support.tiny import (
    CPU,
    DM_OPTIONS,
    NETWORK,
    OPTIONS,
    quiet,
    tiny_bank,
    tiny_dataset,
    tiny_options,
)

WIDE = "convnet:depth=2,width=16"
LABELS = torch.arange(3).repeat_interleave(4)
IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
INSIDE = {"float32": "ieee", "tf32": "tf32", "bfloat16": "ieee"}


def dm(precision: str, _: Path) -> Method:
    options = DMOptions(WIDE, batch_real=8, precision=precision)
    return DM(random_dataset((8, 8, 8), 8), LABELS, options, 0, CPU)


def dsa(precision: str, _: Path) -> Method:
    options = DSAOptions(
        WIDE, batch_real=8, outer_steps=2, inner_epochs=1, metric="mse", precision=precision
    )
    return GradientMatching(random_dataset((8, 8, 8), 8), LABELS, options, 0, CPU)


def dsa_together(precision: str, _: Path) -> Method:
    method = dsa(precision, _)
    assert isinstance(method, GradientMatching)
    method.gradients = GradientsTogether(method.stack, method.distance.names, 2)
    return method


def mtt(precision: str, experts: Path) -> Method:
    return mtt_cases.ours(experts, dtype=torch.float32, precision=precision)


def iid(precision: str, experts: Path) -> Method:
    data, bank = random_dataset((8, 8, 8), 8), experts.with_name("bank")
    write_bank(bank, data, WIDE)
    options = IIDOptions(WIDE, batch_real=8, precision=precision, covariance_weight=1.0,
                         centre_weight=1.0, centre_bank=bank)  # fmt: skip
    method = IID(data, LABELS, options, 0, CPU)
    assert method.bank is not None
    assert len(list(method.bank)) == 3  # which builds them, by a convolution of their own
    return method


def idm(precision: str, _: Path) -> Method:
    options = IDMOptions(WIDE, factor=2, batch_real=8, precision=precision, accuracy_weight=0.1,
                         push_interval=1, steps_net=2, batch_net=8)  # fmt: skip
    return IDM(random_dataset((8, 8, 8), 8), LABELS, options, 0, CPU)


def ncfm(precision: str, experts: Path) -> Method:
    data, bank = random_dataset((8, 8, 8), 8), experts.with_name("bank")
    write_bank(bank, data, WIDE)
    options = NCFMOptions(
        bank, 2, batch_real=8, frequencies=64, weight_decay=5e-4, precision=precision
    )
    method = NCFM(data, LABELS, replace(options, optimizer="adamw"), 0, CPU)
    assert len(list(method.bank)) == 3  # which builds them, by a convolution of their own
    return method


Make = Callable[[str, Path], Method]
MAKES: tuple[Make, ...] = (dm, dsa, dsa_together, mtt, iid, idm, ncfm)
METHODS = pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)


def updates(method: Method) -> tuple[list[Tensor], Convolutions]:
    """Loss and gradient of each update of an iteration, and the convolutions in it."""
    images = mtt_cases.images_of().float() if isinstance(method, MTT) else IMAGES
    found: list[Tensor] = []
    with Convolutions() as convolutions:
        for update in range(method.updates):
            found += method.loss_and_gradient(images, method.draw(0, update))
    return found, convolutions


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    """Trajectories for MTT."""
    from cmidd.options.pretrained import ExpertOptions
    from cmidd.pretrained.experts import train_experts

    path = tmp_path / "experts"
    options = ExpertOptions(mtt_cases.NETWORK, experts=2, epochs=mtt_cases.EPOCHS, lr=0.05,
                            batch_size=16)  # fmt: skip
    train_experts(path, random_dataset(mtt_cases.REAL, 16), options, CPU, say=quiet)
    return path


@METHODS
def test_bfloat16_is_of_all_convolutions_of_a_method_and_of_nothing_else(
    make: Make, experts: Path
) -> None:
    exact, in_float32 = updates(make("float32", experts))
    rounded, in_bfloat16 = updates(make("bfloat16", experts))
    assert in_float32.dtypes == {torch.float32}
    assert in_bfloat16.dtypes == {torch.bfloat16}
    assert len(in_float32.seen) == len(in_bfloat16.seen)
    assert in_bfloat16.went_backward
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.dtype == torch.float32
        assert 0 < relative_error(ours, theirs) < 0.1


@METHODS
@pytest.mark.parametrize("precision", PRECISIONS)
def test_torchs_attributes_are_set_while_a_method_computes(
    precision: str, make: Make, experts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_tf32", lambda _: True)
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    convolutions.fp32_precision = "none"
    _, seen = updates(make(precision, experts))
    assert seen.attributes == {INSIDE[precision]}
    assert convolutions.fp32_precision == "none"
    convolutions.fp32_precision = "tf32"


@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_and_testing_of_networks_have_the_precision(
    precision: str, networks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_tf32", lambda _: True)
    recipe = Recipe(2, batch_size=8, precision=precision)
    stack = Stack.fresh(WIDE, (3, 8, 8), 3, range(networks), CPU, precision)
    drawn = draw_epochs(range(networks), len(IMAGES), recipe, Strategy.parse("none"))
    with Convolutions() as convolutions:
        train(stack, IMAGES, LABELS, recipe, Strategy.parse("none"), drawn)
        stack.accuracy([(IMAGES, LABELS)])
    assert convolutions.went_backward
    bfloat16 = precision == "bfloat16"
    assert convolutions.dtypes == {torch.bfloat16 if bfloat16 else torch.float32}
    assert convolutions.attributes == {INSIDE[precision]}
    assert stack(IMAGES.expand(networks, *IMAGES.shape)).dtype == torch.float32
    assert all(tensor.dtype == torch.float32 for tensor in stack.state.values())


def test_users_code_in_an_objective_sees_its_own_settings() -> None:
    seen = []

    def objective(stack: Stack, images: Tensor, targets: Tensor) -> Tensor:
        seen.append(torch.backends.cudnn.allow_tf32)
        return stack(images).flatten(0, 1).square().sum()

    stack = Stack.fresh(WIDE, (3, 8, 8), 3, [0], CPU)
    recipe = Recipe(1)
    drawn = draw_epochs([0], len(IMAGES), recipe, Strategy.parse("none"))
    train(stack, IMAGES, LABELS, recipe, Strategy.parse("none"), drawn, objective=objective)
    assert seen == [True]


@pytest.mark.parametrize(
    ("capability", "hip", "expected"),
    [((9, 0), None, "tf32"), ((8, 0), None, "tf32"), ((7, 5), None, "float32"),
     ((9, 4), "6.2", "float32")],
)  # fmt: skip
def test_tf32_is_the_default_on_gpus_that_have_it(
    capability: tuple[int, int], hip: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    gpu = torch.device("cuda")
    assert precision_on(gpu, None) == expected
    assert precision_on(gpu, "bfloat16") == "bfloat16"
    assert precision_on(CPU, None) == "float32"
    assert has_tf32(gpu) == (expected == "tf32")


def test_the_device_is_chosen_without_a_setting_of_the_process() -> None:
    usable_device("cpu")
    assert torch.backends.cudnn.allow_tf32


def test_commands_and_kernels_name_the_same_precisions() -> None:
    assert options_of_recipe.PRECISIONS == PRECISIONS


def config(folder: Path) -> Any:
    return yaml.safe_load((folder / "config.yaml").read_text())


def run(path: Path, cmi: CMIOptions, *, resume: bool = False, **options: Any) -> SyntheticSet:
    of_method = replace(DM_OPTIONS, **options)
    made = prepare("dm", tiny_dataset(), OPTIONS, of_method, cmi, device=CPU, say=quiet)
    return distill(made, made.folder(path, resume=resume), say=quiet)


def test_a_run_records_both_and_does_not_go_on_with_others(tmp_path: Path, cmi: CMIOptions) -> None:
    result = run(tmp_path, cmi)
    for record in (config(tmp_path), result.record["config"]):
        assert (record["precision"], record["cmi_precision"]) == ("float32", "float32")
    run(tmp_path, cmi, resume=True, precision="float32")
    with pytest.raises(ValueError, match="precision: 'float32' there, 'bfloat16' now"):
        run(tmp_path, cmi, resume=True, precision="bfloat16")
    with pytest.raises(ValueError, match="cmi_precision: 'float32' there, 'bfloat16' now"):
        run(tmp_path, replace(cmi, cmi_precision="bfloat16"), resume=True)


def test_a_run_that_is_older_than_the_option_goes_on_in_float32(
    tmp_path: Path, cmi: CMIOptions
) -> None:
    run(tmp_path, cmi)
    older = config(tmp_path)
    del older["precision"], older["cmi_precision"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(older))
    run(tmp_path, cmi, resume=True)
    with pytest.raises(ValueError, match="precision: None there, 'bfloat16' now"):
        run(tmp_path, cmi, resume=True, precision="bfloat16")


def test_the_regulariser_has_its_own(tmp_path: Path, cmi: CMIOptions) -> None:
    exact = run(tmp_path / "float32", cmi)
    rounded = run(tmp_path / "bfloat16", replace(cmi, cmi_precision="bfloat16"))
    assert config(tmp_path / "bfloat16")["cmi_precision"] == "bfloat16"
    assert 0 < relative_error(rounded.images, exact.images) < 0.05


def test_a_run_without_cmi_has_no_precision_of_it(tmp_path: Path) -> None:
    run(tmp_path, CMIOptions())
    assert config(tmp_path)["cmi_precision"] is None


def test_a_bank_records_it_and_does_not_go_on_with_another(tmp_path: Path) -> None:
    path = tmp_path / "bank"
    tiny_bank(path, tiny_dataset())
    record = Bank.load(path, CPU).record
    assert record["precision"] == "float32"
    more = {name: record[name] for name in ("network", "epochs", "lr")}
    options = replace(tiny_options(), **more, networks=record["networks"] + 1)
    with pytest.raises(ValueError, match="precision: 'float32' there, 'bfloat16' now"):
        train_bank(path, tiny_dataset(), replace(options, precision="bfloat16"), CPU,
                   resume=True, say=quiet)  # fmt: skip


def test_an_evaluation_records_it_and_does_not_go_on_with_another(tmp_path: Path) -> None:
    data = tiny_dataset()
    made = SyntheticSet.of(data, data.to_input(data.train.images[:6]), data.train.labels[:6])
    path = tmp_path / "evaluation.json"

    def evaluated(precision: str | None, *, resume: bool) -> None:
        file = EvaluationFile(path, {"seed": 0}, {"command": ""}, resume=resume)
        evaluate_set(made, data, [NETWORK], repeats=1, recipe=Recipe(1, precision=precision),
                     device=CPU, store=file.of("set", made), say=quiet)  # fmt: skip

    evaluated(None, resume=False)
    (result,) = json.loads(path.read_text())["results"]
    assert result["evaluations"][0]["recipe"]["precision"] == "float32"
    evaluated("float32", resume=True)
    with pytest.raises(ValueError, match="precision: 'float32' there, 'bfloat16' now"):
        evaluated("bfloat16", resume=True)


@pytest.mark.parametrize(
    "command",
    [
        "distill dm --precision tf32",
        "distill mtt --experts none --precision tf32",
        "distill dm --bank none --cmi_precision tf32",
        "pretrain --precision tf32",
        "experts --precision tf32",
        "evaluate --random_real 1 --precision tf32",
    ],
)
def test_tf32_on_a_cpu_is_refused_before_data_is_read(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmidd.cli.checks.check_names", lambda _: None)  # of files
    words = [*command.split(), "--device", "cpu", "--dataset", "cifar10", "--data", "none"]
    flag = "cmi_precision" if "bank" in command else "precision"
    with pytest.raises(
        SystemExit, match=f"--{flag}: expected float32 or bfloat16 on cpu, got tf32"
    ):
        main(words)
