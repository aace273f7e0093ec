"""The methods by name, and what is known of each where the user says nothing.

A method is a file here and a line in `METHODS`; `register` adds one that stands elsewhere, and
`__all__` has all that such a one needs. Its file holds the loop's mathematics, its published
settings and its weights of CMI; its options are in `cmidd.options`, as a file of its name and a
line in `METHOD_OPTIONS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from cmidd.methods import dc, dm, idc, idm, iid, mtt, ncfm
from cmidd.methods.base import CMIWeights, ExtraParameter, Method, MethodEntry, Published
from cmidd.options.fields import AS_PUBLISHED, Options, fill_in, option
from cmidd.options.methods import METHOD_OPTIONS
from cmidd.options.recipe import PUBLISHED_RECIPE
from cmidd.seeds import generator
from cmidd.view import View, register_view

if TYPE_CHECKING:
    from cmidd.datasets import Dataset

__all__ = [
    "AS_PUBLISHED",
    "METHODS",
    "CMIWeights",
    "ExtraParameter",
    "Method",
    "MethodEntry",
    "Options",
    "Published",
    "View",
    "Weight",
    "cmi_weight",
    "evaluation_of",
    "fill_in_published",
    "generator",
    "method_entry",
    "option",
    "register",
    "register_view",
]

METHODS: dict[str, MethodEntry] = {
    "dm": dm.DM_ENTRY,
    "dc": dc.DC_ENTRY,
    "dsa": dc.DSA_ENTRY,
    "mtt": mtt.MTT_ENTRY,
    "idc": idc.IDC_ENTRY,
    "idm": idm.IDM_ENTRY,
    "iid": iid.IID_ENTRY,
    "ncfm": ncfm.NCFM_ENTRY,
}
"""Every method by its name; `register` adds to it."""


_Loop = TypeVar("_Loop", bound=Options)
_Options = TypeVar("_Options", bound=Options)


def register(name: str, entry: MethodEntry) -> None:
    """Add a method, which `distill` and the commands then know by its name."""
    if name in METHODS:
        raise ValueError(f"name: a method {name} exists already; expected another name")
    METHODS[name] = entry
    METHOD_OPTIONS[name] = entry.options


def method_entry(name: str) -> MethodEntry:
    """The method of a name."""
    if name not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


@dataclass(frozen=True)
class Weight:
    """A weight of CMI and where it comes from, in words for the user."""

    value: float
    origin: str


def cmi_weight(method: str, dataset: str, ipc: int) -> Weight:
    """The weight to use where the user gives none.

    Weights were published as comments in code, for 10 and 50 images per class; another number of
    images takes those of the nearer one. A weight multiplies a mean over images, while the losses
    of methods are sums over classes (and layers), so it does not carry over to datasets with
    another number of classes.
    """
    weights = method_entry(method).cmi_weights
    position = 0 if ipc < 30 else 1
    near = (10, 50)[position]
    for table, whose in ((weights.published, "published"), (weights.ours, "ours")):
        if dataset in table:
            note = "" if ipc == near else f", the nearest to your {ipc}"
            origin = f"{whose} for {dataset} at {near} images per class{note}"
            return Weight(table[dataset][position], origin)
    known = sorted({**weights.published, **weights.ours})
    only = f" (only for {', '.join(known)})" if known else ""
    raise ValueError(
        f"cmi_weight: none is known for {method} on {dataset}{only}; give one: start where "
        "weighted_cmi in the log is a tenth of the loss"
    )


def evaluation_of(method: str, dataset: Dataset, ipc: int) -> dict[str, Any]:
    """Epochs and augmentation of networks that are trained on a set, as published."""
    usual = {"epochs": PUBLISHED_RECIPE.epochs, "augmentation": PUBLISHED_RECIPE.augmentation}
    return {**usual, **method_entry(method).published(dataset, ipc).evaluation}


def fill_in_published(
    method: str, dataset: Dataset, ipc: int, loop: _Loop, options: _Options
) -> tuple[_Loop, _Options, str]:
    """Options with what is published in the place of what was not given.

    The line for the user says what that was and where it comes from.
    """
    published = method_entry(method).published_for(dataset, ipc, options)
    loop, of_loop = fill_in(loop, published.loop)
    options, of_method = fill_in(options, published.options)
    words = [
        f"{name} {value}"
        for name, value in {**of_loop, **of_method}.items()
        if value is not None and not name.endswith("_every")  # of which nothing is published
    ]
    return loop, options, f"{', '.join(words)} ({published.origin})" if words else ""
