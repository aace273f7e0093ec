"""Every bad call is refused with the argument's name, what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from cmikernels import ClassIndex, CMILoss, class_centroids, cmi_value_and_grad, fused_cmi

ROWS = torch.randn(6, 4)
GROUPS = torch.randn(2, 3, 4)
LABELS = torch.tensor([0, 1, 0, 1, 1, 0])
Q = torch.full((2, 4), 0.25)


class Bad(NamedTuple):
    """Arguments of a call, and the error it must raise."""

    arguments: tuple[Any, ...]
    options: dict[str, Any]
    error: type[Exception]
    message: str


FEATURES = {
    "a list": Bad(([[1.0]], LABELS), {}, TypeError, r"features: expected a tensor, got list"),
    "an array": Bad((np.ones((6, 4)), LABELS), {}, TypeError, r"features: .*tensor, got ndarray"),
    "None": Bad((None, LABELS), {}, TypeError, r"features: expected a tensor, got NoneType"),
    "integers": Bad((ROWS.long(), LABELS), {}, TypeError, r"features: .*float32.*, got int64"),
    "bools": Bad((ROWS.bool(), LABELS), {}, TypeError, r"features: .*float32.*, got bool"),
    "complex": Bad(
        (ROWS.to(torch.complex64), LABELS), {}, TypeError, r"features: .*, got complex64"
    ),
    "3-d with labels": Bad(
        (GROUPS, LABELS), {}, ValueError, r"features: expected \(N, M\) .*got shape \(2, 3, 4\)"
    ),
    "1-d with labels": Bad((ROWS[0], LABELS), {}, ValueError, r"features: .*got shape \(4,\)"),
    "0-d with labels": Bad((ROWS[0, 0], LABELS), {}, ValueError, r"features: .*got shape \(\)"),
    "2-d without labels": Bad(
        (ROWS,), {}, ValueError, r"features: expected \(\.\.\., C, n, M\) .*\(6, 4\); pass classes="
    ),
    "1-d without labels": Bad((ROWS[0],), {}, ValueError, r"features: .*got shape \(4,\)"),
    "no channels": Bad(
        (ROWS[:, :0], LABELS), {}, ValueError, r"features: expected at least one channel.*\(6, 0\)"
    ),
    "groups without channels": Bad(
        (GROUPS[..., :0],), {}, ValueError, r"features: .*one channel, got shape \(2, 3, 0\)"
    ),
    "sparse": Bad((ROWS.to_sparse(), LABELS), {}, TypeError, r"features: .*sparse"),
}
CLASSES = {
    "a list": Bad((ROWS, [0] * 6), {}, TypeError, r"classes: .*ClassIndex, got list"),
    "floats": Bad((ROWS, LABELS.float()), {}, TypeError, r"classes: .*integer.*got torch.float32"),
    "one-hot": Bad((ROWS, torch.eye(6).long()), {}, ValueError, r"classes: .*\(N,\), got \(6, 6\)"),
    "too few": Bad((ROWS, LABELS[:5]), {}, ValueError, r"classes: .*each of the 6 rows.*, got 5"),
    "too few in an index": Bad(
        (ROWS, ClassIndex(LABELS[:5])), {}, ValueError, r"classes: .*6 rows of features, got 5"
    ),
    "elsewhere": Bad(
        (ROWS, LABELS.to("meta")), {}, ValueError, r"classes: .*features' device cpu, got meta"
    ),
    "index elsewhere": Bad(
        (ROWS, ClassIndex(LABELS).to("meta")), {}, ValueError, r"classes: .*device cpu, got meta"
    ),
    "negative": Bad((ROWS, LABELS - 1), {}, ValueError, r"classes: .*\[0, num_classes\).*got -1"),
    "too large": Bad(
        (ROWS, LABELS), {"num_classes": 1}, ValueError, r"classes: .*= \[0, 1\), got 1"
    ),
}
NUM_CLASSES = {
    "a float": Bad((ROWS, LABELS), {"num_classes": 2.0}, TypeError, r"num_classes: .*got float"),
    "a bool": Bad((ROWS, LABELS), {"num_classes": True}, TypeError, r"num_classes: .*got bool"),
    "zero": Bad(
        (ROWS, LABELS), {"num_classes": 0}, ValueError, r"num_classes: .*at least 1, got 0"
    ),
    "not the groups'": Bad(
        (GROUPS,), {"num_classes": 3}, ValueError, r"num_classes: .*\(2, 3, 4\) hold 2 .*, got 3"
    ),
    "not the index's": Bad(
        (ROWS, ClassIndex(LABELS)),
        {"num_classes": 3},
        ValueError,
        r"num_classes: .*ClassIndex of 2 classes, got 3",
    ),
}
TEMPERATURE = {
    "text": Bad((GROUPS,), {"temperature": "1"}, TypeError, r"temperature: .*number, got str"),
    "a tensor": Bad(
        (GROUPS,), {"temperature": torch.ones(())}, TypeError, r"temperature: .*number, got Tensor"
    ),
    "a bool": Bad((GROUPS,), {"temperature": True}, TypeError, r"temperature: .*got bool"),
    "zero": Bad((GROUPS,), {"temperature": 0.0}, ValueError, r"temperature: .*1e30\], got 0.0"),
    "negative": Bad((GROUPS,), {"temperature": -1}, ValueError, r"temperature: .*1e30\], got -1"),
    "tiny": Bad(
        (GROUPS,), {"temperature": 1e-31}, ValueError, r"temperature: .*\[1e-30, 1e30\], got 1e-31"
    ),
    "nan": Bad((GROUPS,), {"temperature": math.nan}, ValueError, r"temperature: .*number.*got nan"),
    "infinite": Bad(
        (GROUPS,), {"temperature": math.inf}, ValueError, r"temperature: .*number.*, got inf"
    ),
    "an enormous int": Bad(
        (GROUPS,), {"temperature": 10**400}, ValueError, r"temperature: .*1e30\], got 1000"
    ),
}
EVERYWHERE = {
    f"{name} {what}": bad
    for name, table in {
        "features": FEATURES,
        "classes": CLASSES,
        "num_classes": NUM_CLASSES,
        "temperature": TEMPERATURE,
        "backend": {
            "unknown": Bad(
                (GROUPS,),
                {"backend": "magma"},
                ValueError,
                r"backend: expected one of cpu, .*reference.*, got 'magma'",
            ),
            "of another device": Bad(
                (GROUPS.to("meta"),),
                {"backend": "cpu"},
                ValueError,
                r"backend: 'cpu' cannot run on .*meta: it computes CPU tensors only",
            ),
        },
    }.items()
    for what, bad in table.items()
}
VALUE_ONLY = {
    "weight text": Bad((GROUPS,), {"weight": "1"}, TypeError, r"weight: .*number, got str"),
    "weight bool": Bad((GROUPS,), {"weight": False}, TypeError, r"weight: .*number, got bool"),
    "weight nan": Bad(
        (GROUPS,), {"weight": float("nan")}, ValueError, r"weight: .*finite.*got nan"
    ),
    "reduction unknown": Bad(
        (GROUPS,),
        {"reduction": "max"},
        ValueError,
        r"reduction: expected one of mean, sum, class, none, got 'max'",
    ),
    "reduction None": Bad(
        (GROUPS,), {"reduction": None}, ValueError, r"reduction: expected one of .*, got None"
    ),
    "reduction unhashable": Bad(
        (GROUPS,), {"reduction": ["mean"]}, ValueError, r"reduction: expected one of .*got \['mean'"
    ),
    "centroids list": Bad(
        (GROUPS,), {"centroids": [[0.5]]}, TypeError, r"centroids: expected a tensor, got list"
    ),
    "centroids list with labels": Bad(
        (ROWS, LABELS), {"centroids": [[0.5]]}, TypeError, r"centroids: .*tensor, got list"
    ),
    "centroids 0-d with labels": Bad(
        (ROWS, LABELS), {"centroids": Q[0, 0]}, ValueError, r"centroids: expected shape .*got \(\)"
    ),
    "centroids of no class with labels": Bad(
        (ROWS, LABELS), {"centroids": Q[:0]}, ValueError, r"centroids: .*got \(0, 4\)"
    ),
    "centroids of too few classes": Bad(
        (ROWS, LABELS), {"centroids": Q[:1]}, ValueError, r"(classes|centroids): .*1"
    ),
    "centroids integers": Bad(
        (GROUPS,), {"centroids": Q.long()}, TypeError, r"centroids: .*floating-point.*got .*int64"
    ),
    "centroids of other classes": Bad(
        (GROUPS,),
        {"centroids": torch.ones(3, 4)},
        ValueError,
        r"centroids: expected shape \(2, 4\), got \(3, 4\)",
    ),
    "centroids of other channels": Bad(
        (ROWS, LABELS),
        {"centroids": torch.ones(2, 5)},
        ValueError,
        r"centroids: expected shape \(2, 4\), got \(2, 5\)",
    ),
    "centroids of other networks": Bad(
        (torch.randn(2, 2, 3, 4),),
        {"centroids": torch.ones(3, 2, 4)},
        ValueError,
        r"centroids: expected shape .*\(2, 2, 4\).*, got \(3, 2, 4\)",
    ),
    "centroids and another num_classes": Bad(
        (ROWS, LABELS),
        {"centroids": Q, "num_classes": 3},
        ValueError,
        r"centroids: expected shape \(3, 4\), got \(2, 4\)",
    ),
    "centroids elsewhere": Bad(
        (GROUPS,), {"centroids": Q.to("meta")}, ValueError, r"centroids: .*device cpu, got meta"
    ),
    "centroids that want a gradient": Bad(
        (GROUPS,),
        {"centroids": Q.clone().requires_grad_()},
        ValueError,
        r"centroids: .*constants.*; pass centroids.detach\(\)",
    ),
    "centroids sparse": Bad(
        (GROUPS,), {"centroids": Q.to_sparse()}, TypeError, r"centroids: .*sparse"
    ),
}


@pytest.mark.parametrize("function", [fused_cmi, cmi_value_and_grad, class_centroids])
@pytest.mark.parametrize("name", EVERYWHERE)
def test_every_function_refuses(name: str, function: Callable[..., Any]) -> None:
    bad = EVERYWHERE[name]
    with pytest.raises(bad.error, match=bad.message):
        function(*bad.arguments, **bad.options)


@pytest.mark.parametrize("function", [fused_cmi, cmi_value_and_grad])
@pytest.mark.parametrize("name", VALUE_ONLY)
def test_functions_with_a_value_refuse(name: str, function: Callable[..., Any]) -> None:
    bad = VALUE_ONLY[name]
    with pytest.raises(bad.error, match=bad.message):
        function(*bad.arguments, **bad.options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, r"num_classes: .*at least 1, got 0"),
        ({"num_classes": 2.5}, TypeError, r"num_classes: .*int, got float"),
        ({"temperature": -1.0}, ValueError, r"temperature: .*1e30\], got -1.0"),
        ({"weight": "big"}, TypeError, r"weight: .*number, got str"),
        ({"reduction": "max"}, ValueError, r"reduction: .*mean, sum.*, got 'max'"),
    ],
)
def test_the_module_refuses_at_construction(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        CMILoss(**options)


def test_centroids_that_want_a_gradient_are_fine_where_none_is_made() -> None:
    with torch.no_grad():
        assert fused_cmi(GROUPS, centroids=Q.clone().requires_grad_()).isfinite()
