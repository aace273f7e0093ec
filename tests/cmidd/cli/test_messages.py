"""Every mistake on a command line is one line, which says what came, what was expected and what to
do, before any data is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmidd.cli import commands, evaluation, recovery, scoring
from tests.support.errors import error_of

FILES = {
    "broken.yaml": "ipc: 1\nseed: [1\n",
    "list.yaml": "- 1\n",
    "method.yaml": "method: dm\nipc: 3\n",
    "typed.yaml": "iterations: many\n",
    "empty.yaml": "ipc:\n",
    "switch.yaml": "zca: 1\n",
    "unknown.yaml": "itrations: 5\n",
    "bounds.yaml": "ipc: 0\n",
    "names.yaml": "network: nosuch\nbank: none\ncmi_weight: 1\n",
    "real.yaml": "random_real: 1000\n",
    "two.yaml": "set: s\npng: a\n",
}
# Of the words that are not known or cannot be understood. Each line is the whole message.
USAGE = {
    "": "expected a command: distill, pretrain, experts, recover, relabel, evaluate, score, "
    "convert, export, report; see cmidd --help",
    "nosuch": "no command nosuch; see cmidd --help",
    "distil dm": "no command distil; did you mean distill? See cmidd --help",
    "dm": "no command dm; did you mean cmidd distill dm? See cmidd --help",
    "--ipc 3": "expected a command first, got --ipc; see cmidd --help",
    "distill": "expected a method: dm, dc, dsa, mtt, idc, idm, iid, ncfm; see cmidd distill --help",
    "distill dmm": "no method dmm; did you mean dm? See cmidd distill --help",
    "distill --ipc 3 dm": "expected a method first, got --ipc; see cmidd distill --help",
    "distill dm --nosuch 3": "no option --nosuch of cmidd distill dm; see cmidd distill dm --help",
    "distill dm --itrations=3": "no option --itrations of cmidd distill dm; did you mean "
    "--iterations? See cmidd distill dm --help",
    "distill mtt --network mlp": "no option --network of cmidd distill mtt; "
    "see cmidd distill mtt --help",
    "evaluate --network mlp": "no option --network of cmidd evaluate; did you mean --networks? "
    "See cmidd evaluate --help",
    "distill dm --iter 3": "no option --iter of cmidd distill dm; did you mean --iterations? "
    "See cmidd distill dm --help",
    "distill dm -ipc 3": "no option -ipc of cmidd distill dm; did you mean --ipc? "
    "See cmidd distill dm --help",
    "distill dm 3": "expected an option of cmidd distill dm, got 3; see cmidd distill dm --help",
    "distill dm --ipc": "--ipc: expected a whole number after it",
    "distill dm --ipc --zca": "--ipc: expected a whole number after it",
    "evaluate --sets": "--sets: expected a path after it",
    "distill dm --ipc many": "--ipc: expected a whole number, got many",
    "distill dm --ipc 1.5": "--ipc: expected a whole number, got 1.5",
    "distill dm --ipc=": "--ipc: expected a whole number, got nothing",
    "distill dm --lr-images fast": "--lr_images: expected a number, got fast",
    "distill dm --lr_images nan": "--lr_images: expected a number, got nan",
    "distill dm --lr_images -inf": "--lr_images: expected a number, got -inf",
    "distill dm --zca=yes": "--zca: expected no value, got yes",
    "distill dm --out=": "--out: expected a path, got nothing",
    "distill dm --ipc 0": "--ipc: expected at least 1, got 0",
    "distill dm --report_every 0": "--report_every: expected at least 1, got 0",
    "distill dm --checkpoint_every -1": "--checkpoint_every: expected at least 1, got -1",
    "distill dm --lr_images -1e-3": "--lr_images: expected more than 0, got -0.001",
    "distill dm --cmi_layer logits": "--bank: expected the file of a bank, as other options of "
    "CMI are given",
    "distill dm --bank b --cmi_centroids Real": "--cmi_centroids: expected own or real, got 'Real'",
    "distill dm --real_dtype float16": "--real_dtype: expected float32 or bfloat16, got 'float16'",
    "distill dc --metric nosuch": "--metric: expected rows or mse or cosine, got 'nosuch'",
    "distill dc --inner_epochs 0": "--inner_epochs: expected at least 1, got 0",
    "distill mtt": "--experts: expected the file that cmidd experts makes; "
    "see cmidd distill mtt --help",
    "distill mtt --experts e --lr_labels 1": "--lr_labels: expected soft_labels, which it is the "
    "learning rate of",
    "experts --experts 0": "--experts: expected at least 1, got 0",
    "experts --lr 0": "--lr: expected more than 0, got 0.0",
    "pretrain --networks 0": "--networks: expected at least 1, got 0",
    "pretrain --mcmi_weight nan": "--mcmi_weight: expected a number, got nan",
    "pretrain --objective cmi": "--objective: expected cross_entropy or mcmi, got 'cmi'",
    "evaluate --random_real 2 --repeats 0": "--repeats: expected at least 1, got 0",
    "score": "--bank: expected the file that cmidd pretrain makes; see cmidd score --help",
    "export": "--set: expected a synthetic set: the folder of a run, its result.safetensors, or a "
    "converted set; see cmidd export --help",
    "convert": "--source: expected the file of another tool, or a folder with a folder of pictures "
    "for each class; see cmidd convert --help",
    "convert a": "--out: expected file of the set, such as set.safetensors; see cmidd convert "
    "--help",
    "convert a --out b": "--dataset: expected what the set was distilled from: name, or "
    "folder:PATH, arrays:PATH.npz, hub:NAME; cmidd --help lists the names; see cmidd convert "
    "--help",
    "convert a --out b --dataset digits --format tar": "--format: expected res or pair or idc or "
    "idm or kip or pictures, got 'tar'",
    "convert a --out b --dataset digits --factor 0": "--factor: expected at least 1, got 0",
    "export a b": "--set: expected one, got a and b",
    "report": "--runs: expected folders of runs, and files of sets, converted ones too; see cmidd "
    "report --help",
    "distill dm --config none.yaml": "--config: expected a YAML file, found none at none.yaml",
    "distill dm --config bounds.yaml": "bounds.yaml: ipc: expected at least 1, got 0",
    "distill dm --config bounds.yaml --ipc -1": "--ipc: expected at least 1, got -1",
    "distill dm --config broken.yaml": "broken.yaml: expected YAML in line 3: expected ',' or ']', "
    "but got '<stream end>'",
    "distill dm --config list.yaml": "list.yaml: expected lines such as ipc: 10, got [1]",
    "distill dm --config unknown.yaml": "unknown.yaml: no option itrations of cmidd distill dm; "
    "did you mean iterations? See cmidd distill dm --help",
    "distill dc --config method.yaml": "method.yaml is of method dm: use cmidd distill dm",
    "pretrain --config method.yaml": "method.yaml is of method dm: use cmidd distill dm",
    "recover": "--teacher: expected files of trained networks with batch norm, as cmidd pretrain "
    "makes them; of several networks each step takes one; see cmidd recover --help",
    "recover --teacher t --config method.yaml": "method.yaml is of method dm: use cmidd distill dm",
    "recover --teacher t --recipe sre3l": "--recipe: expected sre2l or cda or dwa or edc, got "
    "'sre3l'",
    "distill dm --config typed.yaml": "typed.yaml: iterations: expected a whole number, got many",
    "distill dm --config empty.yaml": "empty.yaml: ipc: expected a whole number, got nothing",
    "distill dm --config switch.yaml": "switch.yaml: zca: expected true or false, got 1",
}
DATASETS = "digits, cifar10, cifar100, svhn, mnist, fashionmnist, tinyimagenet, imagenet, "
DATASETS += "folder:PATH, arrays:PATH.npz, hub:NAME"
NETWORKS = "there are convnet, mlp, lenet, alexnet, vgg11, resnet18"
# Of what is looked at before data is read.
EARLY = {
    "evaluate": "--sets: expected something to evaluate; name the folder of a run, or give "
    "--random_real 10",
    "score --bank b": "--sets: expected something to score; name the folder of a run, or give "
    "--random_real 10",
    "distill dm --config names.yaml": "names.yaml: bank: expected a file with a bank of networks, "
    "found none at none; ",
    "distill dc --config names.yaml --bank list.yaml": "--bank: list.yaml: expected a safetensors ",
    "pretrain --config names.yaml": "names.yaml: no option bank of cmidd pretrain; ",
    "export --config two.yaml --pt a": "two.yaml: png, --pt: expected two folders, ",
    "convert a --out b --dataset nosuch": f"--dataset: expected one of {DATASETS}; got 'nosuch'",
    "convert a --out b --dataset digits --size 8": "--size: expected one of tinyimagenet, ",
    "convert a --out b --dataset digits": "--source: expected a file or a folder, found none at a",
    "convert list.yaml --out two.yaml --dataset digits": "--out: two.yaml exists already; add "
    "--overwrite, or name another file",
    "convert list.yaml --out . --dataset digits": "--out: . is a folder; name a file in it",
    "convert list.yaml --out b --dataset digits": "list.yaml: expected a file of torch.save, "
    "pickle.dump or numpy.savez; it is of another kind",
    "export s --pt a --ddranking a/b": "--pt, --ddranking: expected two folders, neither inside "
    "the other; got a and a/b",
    "export s": "--png, --pt, --ddranking, --hub: expected a folder for at least one of them",
    "export s --png a --pt a": "--png, --pt: expected two folders, neither inside the other; got a "
    "and a",
    "export s --png a/png --pt a": "--png, --pt: expected two folders, neither inside the other; "
    "got a/png and a",
    "export s --png a --hub a/b": "--png, --hub: expected two folders, neither inside the other; "
    "got a and a/b",
    "distill dm --dataset nosuch": f"--dataset: expected one of {DATASETS}; got 'nosuch'",
    "distill dm --dataset Folder:a": f"--dataset: expected one of {DATASETS}; got 'Folder:a'; "
    "did you mean folder:PATH?",
    "distill dm --dataset .": f"--dataset: expected one of {DATASETS}; got '.'; did you mean "
    "folder:.?",
    "distill dm --dataset a/b.npz": f"--dataset: expected one of {DATASETS}; got 'a/b.npz'; did "
    "you mean arrays:a/b.npz?",
    "distill dm --out list.yaml": "--out: list.yaml is a file; name a folder",
    "pretrain --out .": "--out: . is a folder; name a file in it",
    "experts --out .": "--out: . is a folder; name a file in it",
    "evaluate --random_real 1 --out .": "--out: . is a folder; name a file in it",
    "report r --out .": "--out: . is a folder; name a file in it, such as report.html",
    "distill dm --size 8": "--size: expected one of tinyimagenet, imagenet, folder:PATH, hub:NAME "
    "with it; the images of digits are of one size",
    "distill dm --bank none --cmi_weight 1": "--bank: expected a file with a bank of networks, "
    "found none at none; cmidd pretrain makes one",
    "distill dm --bank list.yaml": "--bank: list.yaml: expected a safetensors file with a bank of "
    "networks; it is damaged or something else (",
    "distill dm --init zeros": "--init: expected noise, real, mix, cells, "
    "smooth_cells or file:PATH, got zeros",
    "distill dm --init file:none": "--init: expected a synthetic set or the checkpoint of a run, "
    "found none at none",
    "distill dm --network nosuch": f"--network: no 'nosuch'; {NETWORKS}",
    "distill dm --network convnet:deep=3": "--network: convnet has no option 'deep'; its options "
    "are depth, width, norm, activation, pooling",
    "distill dm --augmentation blur": "--augmentation: no operation 'blur'; join some of color, "
    "crop, cutout, flip, scale, rotate, zoom, shuffle by '_', or say 'none'",
    "distill mtt --experts none": "--experts: expected a file with a set of experts, found none at "
    "none; cmidd experts makes one",
    "distill dm --device nosuch": "--device: nosuch cannot be used here: ",
    "distill dm --device cuda:77": "--device: cuda:77 cannot be used here: ",
    "evaluate none": "--sets: expected a file with a synthetic set, found none at none; cmidd "
    "distill makes one",
    "evaluate a/b,c/d": "--sets: expected paths with spaces between them, a b and not a,b; found "
    "none at a/b,c/d",
    "evaluate --random_real 1 --ddranking": "--sets: expected synthetic sets to score with "
    "ddranking; name the folder of a run",
    "evaluate a --ddranking --real_accuracy 85": "--real_accuracy: expected a share from 0 to 1, "
    "got 85",
    "evaluate a --ddranking --lrs_weight -0.5": "--lrs_weight: expected a share from 0 to 1, got "
    "-0.5",
    "evaluate a --ars_weight 0.3": "--ars_weight: expected ddranking with it; give --ddranking too",
    "evaluate [a,b]": "--sets: expected paths with spaces between them, a b and not a,b; found "
    "none at [a,b]",
    "evaluate --random_real 1 --networks mlp nosuch": f"--networks: no 'nosuch'; {NETWORKS}",
    "evaluate --random_real 1 --augmentation blur": "--augmentation: no operation 'blur'; ",
    "score --bank none --random_real 1": "--bank: expected a file with a bank of networks, ",
    "report none": "--runs: none is not the folder of a run (it has no config.yaml); name the "
    "folder that cmidd distill wrote to, or the file of a set",
    "report none --bank b": "--bank: expected a file with a bank of networks, found none at b; ",
    "recover --teacher none": "--teacher: expected a file with a bank of networks, found none at "
    "none; cmidd pretrain makes one",
    "recover --teacher none --zca": "--zca: expected images that are not whitened",
    "recover --teacher=": "--teacher: expected at least one file of networks, got none",
    "recover --teacher none --zoom 1.5": "--zoom: expected a share up to 1, got 1.5",
    "recover --teacher none --average 1": "--average: expected a share below 1, got 1",
    "recover --teacher none --curriculum step": "--curriculum_share: expected a share below 1 with",
    "recover --teacher none --bank none": "--cmi_weight: expected a weight other than 0 with bank",
    "recover --teacher none --bank b --cmi_weight 1": "--teacher: expected a file with a bank of",
    "recover --teacher none --augmentation blur": "--teacher: expected a file with a bank of",
    "pretrain --network nosuch": f"--network: no 'nosuch'; {NETWORKS}",
    "pretrain --objective mcmi": "--from_bank: expected a bank whose networks mcmi fine-tunes; "
    "cmidd pretrain without --objective makes one",
    "pretrain --objective mcmi --from_bank none": "--from_bank: expected a file with a bank of "
    "networks, found none at none; cmidd pretrain makes one",
    "pretrain --centroids moving": "--centroids: expected objective mcmi with it; give "
    "--objective mcmi too",
}
# Of what only the images tell.
LATE = {
    "distill dm --dataset arrays:list.yaml": "list.yaml: expected a file that numpy.savez has",
    "distill dm --dataset folder:none": "folder:none was not found; looked for none",
    "distill dm --dataset cifar10": "cifar10 was not found; looked for data/",
    "distill dc --network convnet:norm=batch": "--network: expected one whose features depend on",
    "distill dc --init=real --ipc 100000": "--ipc: class 0 of digits has",
    "evaluate --random_real 1000": "--random_real: class 0 of digits has",
    "evaluate --config real.yaml": "real.yaml: random_real: class 0 of digits has",
    "experts --network convnet:norm=batch": "--network: expected one whose state is",
}


LOADERS = (
    (commands, "load"),
    (recovery, "load"),
    (evaluation, "load_for"),
    (scoring, "load_for"),
)


def message_of(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The line, in a folder that holds `FILES` and nothing else afterwards."""
    for name, text in FILES.items():
        Path(name).write_text(text)
    text = error_of(words.split(), capsys)
    assert text.startswith("cmidd: ")
    assert text.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == sorted(FILES)
    return text.removeprefix("cmidd: ").rstrip("\n")


@pytest.mark.parametrize("words", USAGE)
def test_what_cannot_be_understood(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert message_of(words, capsys) == USAGE[words]


@pytest.mark.parametrize("words", EARLY)
def test_what_is_refused_before_data_is_read(
    elsewhere: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
) -> None:
    for module, name in LOADERS:
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("data was read"))
    assert message_of(words, capsys).startswith(EARLY[words])


@pytest.mark.parametrize("words", LATE)
def test_what_the_images_tell(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert message_of(words, capsys).startswith(LATE[words])
