"""CMI of data sets that no memory holds, and NCMI, which sets it beside how far classes are apart.

CMI   = (1/N) sum_s KL(P_s || Q_y)              how concentrated each class is
Gamma = mean over pairs of rows of -sum_j P_j log P'_j, 0 for those of one class
NCMI  = CMI / Gamma                             (arXiv 2309.09123)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cmikernels import class_statistics
from cmikernels.arguments import check_count
from cmikernels.class_index import ClassIndex, check_labels, check_num_classes
from cmikernels.cmi import fused_cmi
from cmikernels.problem import arithmetic_dtype, check_options, checked_call
from cmikernels.reference import log_probabilities

if TYPE_CHECKING:
    from cmikernels.metric_base import MetricBase as Metric
else:
    try:
        from torchmetrics import Metric
    except ModuleNotFoundError as error:
        if error.name != "torchmetrics":  # it is there, and lacks something
            raise
        from cmikernels.metric_base import MetricBase as Metric

PAIRS = ("all", "different")


def ncmi(
    features: Tensor,
    classes: Tensor | ClassIndex | None = None,
    *,
    num_classes: int | None = None,
    pairs: str = "all",
    temperature: float = 1.0,
    weight: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Normalised CMI: CMI over the mean cross-entropy between rows of different classes.

    Small where classes are compact and far apart. Differentiable any number of times; needs no
    matrix of pairs.

    Args:
        features: `(N, M)` with `classes`, or `(C, n, M)` without, as `fused_cmi` takes them.
        classes: label of each row or a `ClassIndex`.
        num_classes: number of classes when `classes` is a labels tensor; default largest + 1.
        pairs: over which the cross-entropy is a mean: "all" pairs of rows, those of one class
            counting 0, as the paper defines it; or "different", the pairs of different classes
            alone, as its program has it. The latter mean is larger.
        temperature: the softmax's tau.
        weight: factor on the value and the gradient.
        backend: of the CMI in it, as for `fused_cmi`.

    Returns:
        A scalar; 0 where no two rows are of different classes.

    Example:
        >>> features = torch.tensor([[4.0, 0.0], [3.0, 0.0], [0.0, 4.0], [0.0, 3.0]])
        >>> round(ncmi(features, torch.tensor([0, 0, 1, 1])).item(), 5)
        0.00207
    """
    _check_pairs(pairs)
    if classes is None and features.dim() > 3:
        raise ValueError(
            "features: expected (C, n, M) or (N, M) with classes, because NCMI compares all "
            f"classes of one network; got shape {tuple(features.shape)}"
        )
    problem, _ = checked_call(features, classes, num_classes, None, temperature, weight, "mean")
    if classes is None:
        counts = torch.full((problem.num_classes,), problem.rows_per_class, device=features.device)
        labels = torch.arange(problem.num_classes, device=features.device)
        labels = labels.repeat_interleave(problem.rows_per_class)
        given: ClassIndex | None = None
    else:
        assert problem.classes is not None
        given, labels, counts = problem.classes, problem.classes.labels, problem.classes.counts()
    value = fused_cmi(features, given, temperature=temperature, weight=weight, backend=backend)
    with torch.autocast(features.device.type, enabled=False):
        log_p = log_probabilities(features.flatten(0, -2), temperature)
        zeros = log_p.new_zeros(problem.num_classes, log_p.shape[1])
        gamma = class_statistics.cross_entropy_between(
            zeros.index_add(0, labels, log_p.exp()),
            zeros.index_add(0, labels, log_p),
            counts.to(log_p.dtype),
            pairs == "different",
        )
    apart = gamma > 0
    ratio = value / torch.where(apart, gamma, 1)
    return torch.where(apart, ratio, 0 * value).to(arithmetic_dtype(features.dtype))


class EmpiricalCMI(Metric):
    """CMI of a data set that is seen batch by batch, in memory that its size does not change.

    A `torchmetrics.Metric` where torchmetrics is installed, else a module with the same
    `update`, `compute`, `merge_state`, `reset`, `forward` and state. What several batches, workers
    or processes have seen merges exactly, without the differences of large numbers that sums of
    logarithms would need. Its state is float64 and stays so when a model around it is cast.

    Args:
        num_classes: of the labels.
        num_channels: of the features, M.
        reduction: "mean" over rows, or "class" for the mean of each class (0 without rows).
        normalize: None for CMI. "all" or "different" for NCMI, whose cross-entropy is a mean over
            such pairs of rows, see `ncmi`; it keeps another `(C, M)` numbers.
        temperature: the softmax's tau.
        backend: as for `fused_cmi`.
        **options: of torchmetrics, such as process_group.

    Example:
        >>> metric = EmpiricalCMI(num_classes=2, num_channels=8)
        >>> for _ in range(3):
        ...     metric.update(torch.randn(64, 8), torch.randint(2, (64,)))
        >>> metric.compute().shape, metric.centroids().shape
        (torch.Size([]), torch.Size([2, 8]))
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    statistics: Tensor

    def __init__(
        self,
        num_classes: int,
        num_channels: int,
        *,
        reduction: str = "mean",
        normalize: str | None = None,
        temperature: float = 1.0,
        backend: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_num_classes(num_classes)
        check_count("num_channels", num_channels)
        check_options(temperature, 1.0, "mean")
        if reduction not in ("mean", "class"):
            raise ValueError(f"reduction: expected mean or class, got {reduction!r}")
        if normalize is not None:
            _check_pairs(normalize, "normalize")
            if reduction != "mean":
                raise ValueError("reduction: expected mean where CMI is normalized, got class")
        self.num_classes, self.num_channels = num_classes, num_channels
        self.reduction, self.normalize = reduction, normalize
        self.temperature, self.backend = temperature, backend
        merge = partial(class_statistics.merged, channels=num_channels)
        with_logs = normalize is not None
        nothing = class_statistics.empty(num_classes, num_channels, temperature, with_logs)
        self.add_state("statistics", nothing, dist_reduce_fx=merge, persistent=True)

    @torch.no_grad()
    def update(self, features: Tensor, classes: Tensor | ClassIndex) -> None:
        """Take rows `(N, M)` and the label of each."""
        index = self._checked(features, classes)
        batch = class_statistics.statistics_of(
            features, index, self.temperature, self.backend, self.normalize is not None
        )
        self._take(batch)

    def forward(self, features: Tensor, classes: Tensor | ClassIndex) -> Tensor:
        """Take rows; the value of these alone."""
        index = self._checked(features, classes)  # before what was seen is put aside
        value: Tensor = super().forward(features, index)
        return value

    def merge_state(self, incoming_state: Mapping[str, Tensor] | EmpiricalCMI) -> None:
        """Take what another metric, or its `metric_state`, has seen."""
        if isinstance(incoming_state, Mapping):
            theirs = incoming_state.get("statistics")
        else:
            theirs = getattr(incoming_state, "statistics", None)
        if not isinstance(theirs, Tensor):
            raise TypeError(
                "incoming_state: expected an EmpiricalCMI or its metric_state, got "
                f"{type(incoming_state).__name__}"
            )
        theirs = theirs.to(self.statistics.device)
        if not class_statistics.measured_alike(self.statistics, theirs):
            raise ValueError(
                "incoming_state: expected a metric of as many classes and channels, of the same "
                "temperature, and with normalize as here"
            )
        self._take(theirs)
        self._computed = None  # torchmetrics would give the value from before
        self._update_count += 1  # and warn that there was no update

    def _take(self, part: Tensor) -> None:
        both = torch.stack([self.statistics, part.to(self.statistics.device)])
        self.statistics = class_statistics.merged(both, self.num_channels)

    def _checked(self, features: Tensor, classes: Tensor | ClassIndex) -> ClassIndex:
        """The rows of each class, or the error that says what is wrong."""
        if not isinstance(classes, ClassIndex):
            check_labels(classes)
        problem, _ = checked_call(
            features, classes, self.num_classes, None, self.temperature, 1.0, "class"
        )
        if features.shape[1] != self.num_channels:
            raise ValueError(
                f"features: expected {self.num_channels} channels as num_channels says, "
                f"got shape {tuple(features.shape)}"
            )
        assert problem.classes is not None
        return problem.classes

    def compute(self) -> Tensor:
        """CMI or NCMI of all rows so far, of all processes; 0 where there are none."""
        if self.reduction == "class":
            return self.of_classes()
        n = class_statistics.counts(self.statistics)
        value = class_statistics.divergences(self.statistics).sum() / n.sum().clamp_min(1)
        if self.normalize is None:
            return value
        gamma = class_statistics.separation(
            self.statistics, self.num_channels, self.normalize == "different"
        )
        return torch.where(gamma > 0, value / gamma, torch.zeros_like(value))

    def centroids(self) -> Tensor:
        """Mean probabilities of each class that this process has seen, `(C, M)`.

        They are ready for `centroids=` of `fused_cmi` and `CMIRegularizer`; zeros for a class
        without rows.
        """
        return class_statistics.centroids(self.statistics, self.num_channels).clone()

    def of_classes(self) -> Tensor:
        """Mean KL of the rows of each class that this process has seen, `(C,)`; 0 without rows."""
        n = class_statistics.counts(self.statistics)
        return class_statistics.divergences(self.statistics) / n.clamp_min(1)

    def counts(self) -> Tensor:
        """Rows of each class that this process has seen, `(C,)` int64."""
        return class_statistics.counts(self.statistics).long()

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        """Go to another device, and stay float64."""
        moved: Any = super()._apply  # which torch leaves untyped
        return moved(lambda t: t.to(fn(t.new_empty(0)).device), *args, **kwargs)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._computed = None


def _check_pairs(pairs: str, name: str = "pairs") -> None:
    if pairs not in PAIRS:
        raise ValueError(f"{name}: expected {' or '.join(PAIRS)}, got {pairs!r}")
