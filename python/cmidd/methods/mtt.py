"""MTT, matching training trajectories (Cazenavette et al., CVPR 2022): one step.

    loss = || theta_N - theta* ||^2 / || theta_0 - theta* ||^2

theta_0 are the weights of a drawn expert after a drawn epoch, theta* those M epochs later; theta_N
is where N steps of SGD on augmented synthetic images lead from theta_0. The step size of these
steps is learned with the images, and soft labels are where they are asked for.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.profiler import record_function

from cmidd import ranks
from cmidd.augment import Draw, Strategy, Turn, change, changes_of, draw
from cmidd.datasets import Dataset
from cmidd.device import precision_on
from cmidd.methods.adjoint import Descent
from cmidd.methods.base import CMIWeights, ExtraParameter, Method, MethodEntry, Published
from cmidd.networks import GPU_IMAGES_SECOND_ORDER, build_network, freeze, images_per_chunk
from cmidd.options.fields import check_filled_in
from cmidd.options.mtt import MTTOptions
from cmidd.parcel import sent
from cmidd.pretrained.experts import Experts
from cmidd.seeds import generator
from cmidd.synthetic import SyntheticSet
from cmikernels.precision import computing

SURE = 0.9
"""Probability of its class that a soft label starts with."""


@dataclass(frozen=True, eq=False)
class MTTDraws:
    """What MTT draws for an iteration."""

    expert: int
    epoch: int  # of the expert, that the student starts from
    rows: list[Tensor]  # of the synthetic images of each step of the student
    augmentation: list[Draw]  # of each step, with a group for each image


class StudentBatch(NamedTuple):
    """What a step of the student takes, of this rank."""

    rows: Tensor | None  # of the images; None: all of them in order
    changes: list[Turn]


class MTTPlan(NamedTuple):
    """The same as the device takes it."""

    start: Tensor  # weights (P,) that the student starts from
    target: Tensor  # and those that it is to reach
    batches: list[StudentBatch]


class MTT(Method):
    """The step of MTT on one dataset; ranks share the images of each step of the student."""

    shares_work = True
    options_that_may_diverge = ("step_size",)

    def __init__(
        self,
        dataset: Dataset,
        labels: Tensor,
        options: MTTOptions,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Prepare steps on images whose labels are `labels`."""
        check_filled_in(options)
        self.options, self.seed, self.device, self.dtype = options, seed, device, dtype
        self.precision = precision_on(device, options.precision)
        self.count = len(labels)
        self.batch_size = min(options.batch_syn or self.count, self.count)
        smallest = self.count % self.batch_size or self.batch_size
        if smallest < ranks.count():
            raise ValueError(
                f"ranks: expected at most one for each of the {smallest} images of the smallest "
                f"batch of the student, got {ranks.count()}"
            )
        self.experts = Experts.load(options.experts)  # networks with batch norm are none
        dataset.check_made_for(self.experts.record, f"experts: {options.experts}")
        dataset.check_unseen(self.experts.record, f"experts: {options.experts}")
        last = options.max_start_epoch - 1 + options.expert_epochs
        trained = self.experts.record["epochs"]
        if last > trained:
            latest = trained - options.expert_epochs + 1
            lower = f"lower --max_start_epoch to {latest}, or " if latest > 0 else ""
            raise ValueError(
                f"max_start_epoch - 1 + expert_epochs: expected at most {trained}, the epochs in "
                f"{options.experts}, got {last}; {lower}train experts of {last} epochs or more"
            )
        rate = self.experts.record["lr"] if options.step_size is None else options.step_size
        self.lr_labels = 1.0 if options.lr_labels is None else options.lr_labels
        self.strategy = Strategy.parse(options.augmentation, mirror=dataset.mirror)
        channels, size, _ = dataset.shape
        self.image_size = dataset.shape[1:]
        self.network_spec = self.experts.record["network"]
        network = build_network(self.network_spec, channels, size, dataset.num_classes)
        self.network = freeze(network.to(device, dtype))  # only its structure is used
        self.chunk = images_per_chunk(device, size, GPU_IMAGES_SECOND_ORDER)
        self.labels = labels.to(device)
        self.step_size = torch.tensor(rate, dtype=dtype, device=device, requires_grad=True)
        self.step_size_before = self.step_size.detach().clone()
        self.label_logits: Tensor | None = None
        if options.soft_labels:
            # All classes but its own are equally likely.
            surest = math.log(SURE / (1 - SURE) * (dataset.num_classes - 1))
            of_class = F.one_hot(self.labels, dataset.num_classes).to(dtype)
            self.label_logits = (of_class * surest).requires_grad_()

    @property
    def input_records(self) -> dict[str, Any]:
        """The experts' record."""
        return {"experts": self.experts.record}

    @property
    def extra_parameters(self) -> dict[str, ExtraParameter]:
        """The step size, and the numbers whose softmax are soft labels."""
        found = {"step_size": ExtraParameter(self.step_size, self.options.lr_step_size)}
        if self.label_logits is not None:
            found["labels"] = ExtraParameter(self.label_logits, self.lr_labels)
        return found

    def draw(self, iteration: int, update: int) -> MTTDraws:  # noqa: ARG002
        """The expert and its epoch, batches of the student and their augmentations."""
        draws = generator(self.seed, "expert", iteration)
        expert = int(torch.randint(len(self.experts), (), generator=draws))
        epoch = int(torch.randint(self.options.max_start_epoch, (), generator=draws))
        rows = [self.batch_rows(iteration, i) for i in range(self.options.student_steps)]
        augmentation = [
            draw(
                self.strategy,
                len(batch),
                generator(self.seed, "dsa", iteration, i),
                one_operation=True,
            )
            for i, batch in enumerate(rows)
        ]
        return MTTDraws(expert, epoch, rows, augmentation)

    def loss_and_gradient(self, images: Tensor, draws: MTTDraws) -> tuple[Tensor, Tensor]:
        """Loss and its gradient with respect to the synthetic images, `(N, ch, H, W)`."""
        for each in self.extra_parameters.values():
            each.tensor.grad = None
        self.step_size_before = self.step_size.detach().clone()
        with record_function("mtt.experts"):
            plan = self.plan(draws)
        leaf = images.detach().requires_grad_()
        descent = Descent(
            self.student_loss,
            lambda i: self.batch(leaf, plan.batches[i]),
            self.options.student_steps,
            self.step_size_before,
            self.chunk,
            lambda i: len(draws.rows[i]),
        )
        with computing(self.precision, self.device.type):
            return self._match(descent, plan.start, plan.target, leaf)

    def plan(self, draws: MTTDraws) -> MTTPlan:
        """What was drawn as the device takes it, where it is then."""
        batches = []
        for rows, drawn in zip(draws.rows, draws.augmentation, strict=True):
            mine = ranks.slice_of(len(rows))
            own, drawn = rows[mine], drawn[mine]
            groups, like = torch.arange(len(own)), (self.image_size, self.dtype, self.device)
            changes = changes_of(self.strategy, drawn, groups, *like)
            in_order = len(own) == self.batch_size == self.count
            batches.append(StudentBatch(None if in_order else own, changes))
        plan = MTTPlan(*self.window(draws.expert, draws.epoch), batches)
        return sent(plan, self.device)

    def _match(
        self, descent: Descent, start: Tensor, target: Tensor, leaf: Tensor
    ) -> tuple[Tensor, Tensor]:
        with record_function("mtt.student"):
            path = descent.path(start)
        gap, scale = path[-1] - target, (start - target).square().sum()
        with record_function("mtt.adjoint"):
            self.step_size.grad = descent.pull_back(path, 2 / scale * gap)
        assert leaf.grad is not None
        loss = gap.square().sum() / scale
        return loss if ranks.is_first() else torch.zeros_like(loss), leaf.grad

    def window(self, expert: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Weights (P,) that the student starts from and those that it is to reach, on the CPU."""
        later = epoch + self.options.expert_epochs
        start, target = (self.experts.parameters(expert, e).to(self.dtype) for e in (epoch, later))
        if not (start - target).square().sum() > 0:
            raise ValueError(
                f"experts: expected networks that move, but expert {expert} of "
                f"{self.options.experts} has the same weights after {epoch} and "
                f"{later} epochs; train them with a larger lr"
            )
        return start, target

    def batch_rows(self, iteration: int, step: int) -> Tensor:
        """The images of a student's step: all in order, or the next of a drawn order."""
        if self.batch_size == self.count:
            return torch.arange(self.count)
        turn, place = divmod(step, -(-self.count // self.batch_size))
        order = torch.randperm(
            self.count, generator=generator(self.seed, "batches", iteration, turn)
        )
        return torch.split(order, self.batch_size)[place]

    def batch(self, images: Tensor, batch: StudentBatch) -> tuple[Tensor, Tensor]:
        """Augmented images of a student's step that are this rank's, and their labels."""
        targets = self.labels if self.label_logits is None else self.label_logits.softmax(dim=1)
        if batch.rows is not None:
            images, targets = images[batch.rows], targets[batch.rows]
        return change(images, batch.changes).contiguous(), targets

    def student_loss(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Sum of cross-entropies, `theta` (P,) being the network's parameters one after another."""
        named = dict(self.network.named_parameters())
        pieces = torch.split(theta, [p.numel() for p in named.values()])
        weights = {
            name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)
        }
        with computing(self.precision, self.device.type, network=True):
            logits: Tensor = functional_call(self.network, weights, (images,))
        return F.cross_entropy(logits.to(images.dtype), labels, reduction="sum")

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep the step size positive: an update at most halves it."""
        self.step_size.copy_(torch.maximum(self.step_size, self.step_size_before / 2))

    def first_batch(self, iteration: int) -> Tensor | None:
        """The batch of the student's first step."""
        return None if self.batch_size == self.count else self.batch_rows(iteration, 0)

    def log_values(self) -> dict[str, Tensor]:
        """The step size."""
        return {"step_size": self.step_size.detach()}

    def finish(self, result: SyntheticSet) -> SyntheticSet:
        """The distilled set with the learned step size, and soft labels if there are such."""
        soft_labels = None
        if self.label_logits is not None:
            soft_labels = self.label_logits.detach().softmax(dim=1).float().cpu()
        record = {**result.record, "learned_lr": self.step_size.item()}
        return replace(result, record=record, soft_labels=soft_labels)


@dataclass(frozen=True)
class Setting:
    """A row of the authors' list, or one of ours."""

    student_steps: int
    expert_epochs: int
    max_start_epoch: int
    lr_images: float
    lr_step_size: float
    step_size: float | None = None
    batch_syn: int | None = None
    whitened: bool = False  # published with ZCA-whitened images


SETTINGS: dict[tuple[str, int], Setting] = {
    ("cifar10", 1): Setting(50, 2, 2, 100.0, 1e-7, whitened=True),
    ("cifar10", 10): Setting(30, 2, 20, 100.0, 1e-5, step_size=1e-3, whitened=True),
    ("cifar10", 50): Setting(30, 2, 40, 1000.0, 1e-5, step_size=1e-3),
    ("cifar100", 1): Setting(20, 3, 20, 1000.0, 1e-5, whitened=True),
    ("cifar100", 10): Setting(20, 2, 20, 1000.0, 1e-5),
    ("cifar100", 50): Setting(80, 2, 40, 1000.0, 1e-5, batch_syn=125, whitened=True),
    ("tinyimagenet", 1): Setting(10, 2, 10, 10000.0, 1e-4),
    ("tinyimagenet", 10): Setting(20, 2, 40, 10000.0, 1e-4, batch_syn=200),
    ("tinyimagenet", 50): Setting(20, 2, 40, 10000.0, 1e-4, batch_syn=300),
    # Ours.
    ("digits", 1): Setting(10, 1, 8, 10.0, 1e-5),
    ("digits", 10): Setting(5, 1, 8, 100.0, 1e-5),
    ("digits", 50): Setting(5, 1, 8, 100.0, 1e-5),
}
# What the published program does where it is not told.
_USUAL = Setting(20, 3, 25, 1000.0, 1e-5)


def published(dataset: Dataset, ipc: int) -> Published:
    """Settings of MTT for the nearest of 1, 10 and 50 images per class."""
    near = 1 if ipc < 5 else 10 if ipc < 30 else 50
    setting = SETTINGS.get((dataset.name, near))
    if setting is None:
        setting = _USUAL
        origin = f"not published for {dataset.name}; the published program's default"
    else:
        whose = "published"
        if dataset.name == "digits":
            whose = "ours, for experts as cmidd experts trains them,"
        zca = ", which whitened images: --zca" if setting.whitened else ""
        origin = f"{whose} for {near} images per class{zca}"
    options = asdict(setting)
    del options["whitened"]
    loop = {
        "iterations": 5000,
        "init": "real",
        "lr_images": options.pop("lr_images"),
        "report_every": 10,
        "checkpoint_every": 10,
    }
    return Published(loop, options, origin=origin)


# Of two weights for digits none was better than the other.
MTT_ENTRY = MethodEntry(MTT, MTTOptions, published, CMIWeights(ours={"digits": (0.01, 0.01)}))
