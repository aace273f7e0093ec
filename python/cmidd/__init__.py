"""A dataset distiller around the CMI regulariser, as commands (`cmidd`) and from Python.

    import cmidd

    data = cmidd.load_dataset("digits")
    run = cmidd.prepare("dm", data, cmidd.DistillOptions(ipc=10, iterations=500))
    result = cmidd.distill(run, run.folder("runs/dm"))
    cmidd.evaluate_set(result, data)

The names in `__all__` are stable. The rooms behind them, in the order of a run: `datasets` hold
real images, `networks` see them, `pretrained` keeps networks trained on them, `augment` changes
images, `first_images` starts from some, `synthetic` is the distilled set and its file, `exchange`
reads and writes those of other tools, `methods` has a file for each method, `run` sets one up,
`loop` runs it, `regularization` is its CMI, `infonce_term` its InfoNCE, `storage` its files,
`recovery` makes images of trained networks instead, `relabelling` has teachers label the result,
`evaluate` trains fresh networks on it, `report` draws it. `options` is what all of these can be
told, `cli` has the commands.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmidd.datasets import Dataset, load_dataset
    from cmidd.evaluate import evaluate_set, train_on
    from cmidd.label_file import SoftLabels
    from cmidd.loop import distill
    from cmidd.methods import METHODS, Method, MethodEntry, Published, register
    from cmidd.options.cmi import CMIOptions
    from cmidd.options.dc import DCOptions
    from cmidd.options.distill import DistillOptions
    from cmidd.options.dm import DMOptions
    from cmidd.options.dsa import DSAOptions
    from cmidd.options.idc import IDCOptions
    from cmidd.options.idm import IDMOptions
    from cmidd.options.iid import IIDOptions
    from cmidd.options.infonce import InfoNCEOptions
    from cmidd.options.mtt import MTTOptions
    from cmidd.options.ncfm import NCFMOptions
    from cmidd.options.pretrained import BankOptions, ExpertOptions
    from cmidd.options.recipe import Recipe
    from cmidd.options.recover import RecoverCMIOptions, RecoverOptions
    from cmidd.options.relabel import RelabelOptions
    from cmidd.pretrained.bank import Bank, train_bank
    from cmidd.pretrained.experts import train_experts
    from cmidd.recovery.recover import Recovery, prepare_recovery, recover
    from cmidd.relabelling import Relabelling, relabel
    from cmidd.run import prepare
    from cmidd.synthetic import SyntheticSet
    from cmidd.teaching import TeacherNetworks

# What is imported when it is asked for, so that `cmidd` can say what is not installed.
_HOME = {
    "Dataset": "datasets",
    "load_dataset": "datasets",
    "DistillOptions": "options.distill",
    "DMOptions": "options.dm",
    "DCOptions": "options.dc",
    "DSAOptions": "options.dsa",
    "IDCOptions": "options.idc",
    "IDMOptions": "options.idm",
    "MTTOptions": "options.mtt",
    "IIDOptions": "options.iid",
    "NCFMOptions": "options.ncfm",
    "distill": "loop",
    "prepare": "run",
    "evaluate_set": "evaluate",
    "train_on": "evaluate",
    "Recipe": "options.recipe",
    "METHODS": "methods",
    "Method": "methods",
    "MethodEntry": "methods",
    "Published": "methods",
    "register": "methods",
    "Bank": "pretrained.bank",
    "BankOptions": "options.pretrained",
    "train_bank": "pretrained.bank",
    "ExpertOptions": "options.pretrained",
    "train_experts": "pretrained.experts",
    "CMIOptions": "options.cmi",
    "InfoNCEOptions": "options.infonce",
    "RecoverOptions": "options.recover",
    "RecoverCMIOptions": "options.recover",
    "Recovery": "recovery.recover",
    "prepare_recovery": "recovery.recover",
    "recover": "recovery.recover",
    "SyntheticSet": "synthetic",
    "RelabelOptions": "options.relabel",
    "Relabelling": "relabelling",
    "relabel": "relabelling",
    "SoftLabels": "label_file",
    "TeacherNetworks": "teaching",
}

__all__ = [
    "METHODS",
    "Bank",
    "BankOptions",
    "CMIOptions",
    "DCOptions",
    "DMOptions",
    "DSAOptions",
    "Dataset",
    "DistillOptions",
    "ExpertOptions",
    "IDCOptions",
    "IDMOptions",
    "IIDOptions",
    "InfoNCEOptions",
    "MTTOptions",
    "Method",
    "MethodEntry",
    "NCFMOptions",
    "Published",
    "Recipe",
    "RecoverCMIOptions",
    "RecoverOptions",
    "Recovery",
    "RelabelOptions",
    "Relabelling",
    "SoftLabels",
    "SyntheticSet",
    "TeacherNetworks",
    "distill",
    "evaluate_set",
    "load_dataset",
    "prepare",
    "prepare_recovery",
    "recover",
    "register",
    "relabel",
    "train_bank",
    "train_experts",
    "train_on",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cmidd' has no attribute {name!r}")
    return getattr(import_module(f"cmidd.{_HOME[name]}"), name)
