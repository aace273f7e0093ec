"""Class-positive InfoNCE: whether rows are more alike to keys of their own class than to others.

    L = -(1/N) sum_s log( mean over keys r of the class of s of e^(c_sr / tau)
                          / sum over all keys r of e^(c_sr / tau) )
      = (1/N) sum_s ( log n_s + log(1 + e^gap_s) )
    dL/dc_sr = sigmoid(gap_s) (R_sr - Q_sr) / (N tau)

c_sr is the cosine of query s and key r, and n_s the number of keys of the class of s. Q_s is the
softmax of c_s / tau over these and R_s that over all other keys, each 0 elsewhere; gap_s is the
log-sum-exp of the others less that of the class's own. By the gap nothing cancels where classes are
far apart. This is after the idea of MIM4DD (arXiv 2312.16627), whose program is not public: critic,
temperature and negatives are ours.

Some queries at a time are compared with all keys, and gradients are computed with the value, so the
matrix of all pairs is never there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from cmikernels.arguments import check_count
from cmikernels.class_index import check_labels
from cmikernels.precision import computing
from cmikernels.problem import arithmetic_dtype, check_dense
from cmikernels.reference import oracle_dtype
from cmikernels.transforms import refuse_func_grad, refuse_vmap

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_TEMPERATURES = 1e-6, 1e6  # between which gradients stay in the range of float32
_AT_ONCE = 1 << 20  # similarities that are in memory together
_FEW = 8  # classes that a message lists


def class_infonce(
    queries: Tensor,
    query_labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    *,
    temperature: float = 0.1,
    chunk_size: int | None = None,
) -> Tensor:
    """Class-positive InfoNCE of `queries` among `keys`, by cosines, differentiable in both.

    Small where a row is more alike to keys of its class than to others. A row of zeros, or of
    numbers below 1e-31 (float64: 1e-292), is at right angles to all others and has no gradient:
    the gradient of a row grows as the row shrinks, and divided by the temperature it has to stay in
    the range of its dtype.

    Args:
        queries: `(N, M)`, float32, float64 or bfloat16, which is computed in float32.
        query_labels: class of each query, `(N,)` of any integer dtype.
        keys: `(R, M)` in the queries' dtype; the positives of a query are those of its class, and
            the others its negatives.
        key_labels: class of each key, `(R,)`, every class of the queries among them.
        temperature: what cosines are divided by, from 1e-6 to 1e6.
        chunk_size: queries that are compared with all keys at once; default: as many as make a
            million similarities. Memory beside the gradients grows with it. The graph of a second
            derivative holds all pairs.

    Returns:
        The mean over queries, 0 of none; float64 for float64, else float32. For each query it
        is at least the logarithm of the number of its positives.

    Example:
        >>> real = torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0]])
        >>> labels, images = torch.tensor([0, 0, 1, 1]), torch.eye(2, requires_grad=True)
        >>> loss = class_infonce(images, torch.tensor([0, 1]), real, labels, temperature=0.5)
        >>> loss.backward()
        >>> round(loss.item(), 3), images.grad.shape
        (0.824, torch.Size([2, 2]))
    """
    _check(queries, query_labels, keys, key_labels)
    check_temperature("temperature", temperature)
    if chunk_size is not None:
        check_count("chunk_size", chunk_size)
    query_labels, key_labels = query_labels.to(torch.int64), key_labels.to(torch.int64)
    _check_positives(query_labels, key_labels)
    prepared = PreparedKeys.of(keys, key_labels)
    return compare(queries, query_labels, prepared, temperature, chunk_size)


@dataclass(frozen=True, eq=False)
class PreparedKeys:
    """Keys of several calls: their unit rows, and their classes as int64."""

    rows: Tensor
    labels: Tensor

    @classmethod
    def of(cls, keys: Tensor, labels: Tensor) -> PreparedKeys:
        """Of rows of any length, and labels of int64."""
        with computing(None, keys.device.type):
            return cls(unit_rows(keys.to(arithmetic_dtype(keys.dtype))), labels)


def compare(
    queries: Tensor,
    query_labels: Tensor,
    keys: PreparedKeys,
    temperature: float,
    chunk_size: int | None = None,
) -> Tensor:
    """`class_infonce` of arguments that are known to be right; the host does not wait for a GPU.

    Labels are int64, and there is a key of every class of the queries.
    """
    size = chunk_size or max(1, _AT_ONCE // max(1, len(keys.rows)))
    call = _Call(query_labels, keys.labels, temperature, size)
    with computing(None, queries.device.type):  # without autocast, which would round the cosines
        rows = unit_rows(queries.to(arithmetic_dtype(queries.dtype)))
        value: Tensor = _ClassInfoNCE.apply(rows, keys.rows, call)  # type: ignore[no-untyped-call]
        return value


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length 1; one of zeros, or nearly, stays 0 and has no gradient.

    A row is divided by its largest number first, so that no square overflows or vanishes. The
    result does not depend on that number, which is taken as a constant.
    """
    limits = torch.finfo(rows.dtype)
    largest = rows.detach().abs().amax(dim=1, keepdim=True)
    is_zero = largest < limits.tiny / limits.eps
    scaled = rows.masked_fill(is_zero, 0) / largest.masked_fill(is_zero, 1)
    squares = scaled.square().sum(dim=1, keepdim=True)
    return scaled / squares.masked_fill(is_zero, 1).sqrt()


@dataclass(frozen=True, eq=False)
class _Call:
    """Everything about a call but the rows."""

    query_labels: Tensor
    key_labels: Tensor
    temperature: float
    chunk_size: int

    def chunks(self) -> Iterator[slice]:
        """Queries that are compared at once."""
        for first in range(0, len(self.query_labels), self.chunk_size):
            yield slice(first, first + self.chunk_size)

    def scores(self, queries: Tensor, keys: Tensor, some: slice) -> _Scores:
        """Of some queries."""
        scores = (queries[some] / self.temperature) @ keys.T
        is_negative = self.query_labels[some, None] != self.key_labels
        negatives = is_negative.sum(dim=1)
        # A query without negatives has all keys in their place, so that every number is finite.
        counted = is_negative | (negatives == 0)[:, None]
        return _Scores(
            scores.masked_fill(is_negative, -torch.inf),
            scores.masked_fill(~counted, -torch.inf),
            len(keys) - negatives,
            negatives == 0,
        )


class _Scores(NamedTuple):
    """Cosines over temperature of some queries."""

    own: Tensor  # of keys of the query's class, else -inf
    others: Tensor  # of all other keys, else -inf
    positives: Tensor  # how many keys are of the query's class
    is_alone: Tensor  # whether all of them are

    def gap(self) -> Tensor:
        """By how much the others outweigh a query's own keys."""
        return self.others.logsumexp(dim=1) - self.own.logsumexp(dim=1)

    def losses(self) -> Tensor:
        """Of each query: log n + log(1 + e^gap), which keeps its digits where the gap is wide."""
        excess = -logsigmoid(-self.gap())
        return excess.masked_fill(self.is_alone, 0) + self.positives.to(excess.dtype).log()

    def derivatives(self) -> Tensor:
        """Of the losses by the scores: sigmoid(gap) x (softmax of the others - softmax of own)."""
        differences = self.others.softmax(dim=1).sub_(self.own.softmax(dim=1))
        return differences.mul_(self.gap().sigmoid()[:, None])


def _mean(losses: Tensor) -> Tensor:
    """Over queries; 0 of none."""
    total = losses.sum(dtype=oracle_dtype(losses.device))
    return (total / max(1, len(losses))).to(losses.dtype)


def _plain(queries: Tensor, keys: Tensor, call: _Call) -> Tensor:
    """The value of unit rows by autograd's own means."""
    losses = [call.scores(queries, keys, some).losses() for some in call.chunks()]
    return _mean(torch.cat([queries[:0].sum(dim=1), *losses]))


def _fill(
    losses: Tensor,
    of_queries: Tensor | None,
    of_keys: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    call: _Call,
    some: slice,
) -> None:
    """Put in the losses of some queries and, where asked for, their part of the gradients."""
    scores = call.scores(queries, keys, some)
    losses[some] = scores.losses()
    if of_queries is None and of_keys is None:
        return
    of_cosines = scores.derivatives().div_(len(queries) * call.temperature)
    if of_queries is not None:
        torch.mm(of_cosines, keys, out=of_queries[some])
    if of_keys is not None:
        of_keys.addmm_(of_cosines.T, queries[some])


class _ClassInfoNCE(torch.autograd.Function):
    """Value and gradients of unit rows in one pass; second derivatives go by the plain formula."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, call: _Call) -> Tensor:
        of_queries, of_keys = gradients = [
            torch.zeros_like(rows) if needed else None
            for rows, needed in zip((queries, keys), ctx.needs_input_grad, strict=False)
        ]
        losses = queries.new_empty(len(queries))  # what each chunk adds would split the memory
        for some in call.chunks():
            _fill(losses, of_queries, of_keys, queries, keys, call, some)
        ctx.save_for_backward(queries, keys)
        ctx.call, ctx.gradients = call, gradients
        return _mean(losses)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            found = [None if each is None else each * grad_value for each in ctx.gradients]
            return *found, None
        queries, keys = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        wanted = [rows for rows, is_needed in zip((queries, keys), needed, strict=True)
                  if is_needed]  # fmt: skip
        value = _plain(queries, keys, ctx.call)
        made = iter(torch.autograd.grad(value, wanted, grad_value, create_graph=True))
        return *(next(made) if is_needed else None for is_needed in needed), None


def _check(queries: Tensor, query_labels: Tensor, keys: Tensor, key_labels: Tensor) -> None:
    """Raise where rows and labels do not fit each other."""
    for name, rows, labels_name, labels in (
        ("queries", queries, "query_labels", query_labels),
        ("keys", keys, "key_labels", key_labels),
    ):
        check_dense(name, rows)
        if rows.dtype not in _DTYPES:
            raise TypeError(
                f"{name}: expected float32, float64 or bfloat16, got {_dtype_name(rows)}"
            )
        if rows.dim() != 2 or not rows.shape[1]:
            raise ValueError(
                f"{name}: expected rows of at least one channel, (N, M), got shape "
                f"{tuple(rows.shape)}"
            )
        refuse_vmap(name, rows, "call once for each")
        refuse_func_grad(name, rows)
        check_dense(labels_name, labels)
        check_labels(labels, labels_name)
        if len(labels) != len(rows):
            raise ValueError(
                f"{labels_name}: expected one label for each of the {len(rows)} rows of {name}, "
                f"got {len(labels)}"
            )
        for other, tensor in ((name, rows), (labels_name, labels)):
            if tensor.device != queries.device:
                raise ValueError(
                    f"{other}: expected on the queries' device {queries.device}, got "
                    f"{tensor.device}"
                )
    if keys.dtype != queries.dtype:
        raise TypeError(
            f"keys: expected the queries' dtype {_dtype_name(queries)}, got {_dtype_name(keys)}"
        )
    if keys.shape[1] != queries.shape[1]:
        raise ValueError(
            f"keys: expected the {queries.shape[1]} channels of the queries, got {keys.shape[1]}"
        )


def _check_positives(query_labels: Tensor, key_labels: Tensor) -> None:
    """Raise where a query has no key of its class."""
    alone = ~torch.isin(query_labels, key_labels)
    if alone.any():
        classes = sorted({*query_labels[alone].tolist()})
        more = ", ..." if len(classes) > _FEW else ""
        raise ValueError(
            "key_labels: expected a key of every class of the queries, got none of class "
            f"{', '.join(map(str, classes[:_FEW]))}{more}"
        )


def check_temperature(name: str, temperature: float) -> None:
    """Raise for one by which gradients would leave the range of float32."""
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(temperature).__name__}")
    least, most = _TEMPERATURES
    if not least <= temperature <= most:
        raise ValueError(f"{name}: expected a number in [1e-6, 1e6], got {temperature}")


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
