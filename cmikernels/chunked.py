"""CMI of images by frozen networks, chunk by chunk: the memory of one chunk, the sums of one batch.

The cost is the network's, not the loss's, and its activations grow with the number of images. CMI
is a sum over classes that need nothing of one another, so images go through the network in chunks
of whole classes, each with its value and gradient, and only one chunk's activations live at a time:

    value = sum over chunks of (1/N) sum_s KL_s,    d value / d images chunk by chunk

A class larger than a chunk goes through twice: pieces without a graph give its features, the
features give value and d value / d features, and each piece again takes its share of that back to
the images. Both are the sums that one batch would give, in memory O(chunk_size).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cmikernels.class_index import ClassIndex
from cmikernels.cmi import cmi_value_and_grad, fused_cmi
from cmikernels.embedding import embed
from cmikernels.precision import computing, with_gradients
from cmikernels.problem import arithmetic_dtype


@dataclass(frozen=True)
class Term:
    """CMI by one network: everything but the images."""

    network: nn.Module
    layer: str
    centroids: Tensor | None  # (C, M)
    temperature: float
    weight: float
    backend: str | None
    precision: str | None

    def features(self, images: Tensor) -> Tensor:
        """What the network makes of images, `(N, M)`."""
        return embed(self.network, images, self.layer, self.precision)

    def features_with_gradients(self, images: Tensor) -> Tensor:
        """The same, whose gradient may be taken after this call."""
        return with_gradients(self.features, images, self.precision)

    def options(self) -> dict[str, Any]:
        """What `fused_cmi` is told whichever way the images go."""
        return {
            "centroids": self.centroids,
            "temperature": self.temperature,
            "backend": self.backend,
        }


@dataclass(frozen=True)
class Chunk:
    """Whole classes that fit a chunk, as one piece; or one larger class, in several."""

    pieces: tuple[slice | Tensor, ...]  # which rows of the images
    index: ClassIndex  # of the rows of all pieces, classes counted from first_class
    first_class: int


def cut_into_chunks(index: ClassIndex, chunk_size: int) -> list[Chunk]:
    """Consecutive classes together as long as they fit; a larger class alone, in equal pieces."""
    offsets = index.offsets.tolist()

    def rows(start: int, stop: int) -> slice | Tensor:
        return slice(start, stop) if index.order is None else index.order[start:stop]

    chunks = []
    first = 0
    while first < index.num_classes:
        start, last = offsets[first], first + 1
        while last < index.num_classes and offsets[last + 1] - start <= chunk_size:
            last += 1
        stop = offsets[last]
        count = -(-(stop - start) // chunk_size)
        bounds = [start + (stop - start) * i // max(count, 1) for i in range(count + 1)]
        pieces = tuple(rows(a, b) for a, b in itertools.pairwise(bounds))
        part = index.offsets[first : last + 1] - start
        labels = index.labels[rows(start, stop)] - first
        if pieces:
            of_chunk = ClassIndex.from_parts(labels, None, part, index.largest)
            chunks.append(Chunk(pieces, of_chunk, first))
        first = last
    return chunks


def cmi_in_chunks(images: Tensor, terms: list[Term], chunks: list[Chunk]) -> Tensor:
    """The sum of the terms' weighted CMI, differentiable once with respect to the images."""
    if images.requires_grad and torch.is_grad_enabled():
        value: Tensor = _ChunkedCMI.apply(images, terms, chunks)  # type: ignore[no-untyped-call]
        return value
    return _compute(images, terms, chunks, None)


class _ChunkedCMI(torch.autograd.Function):
    """Value and gradient of the images now; the gradient handed out once, as in `cmi._FusedCMI`."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, terms: list[Term], chunks: list[Chunk]) -> Tensor:
        ctx.gradient = torch.zeros_like(images)
        ctx.save_for_backward(images)
        ctx.terms, ctx.chunks = terms, chunks
        return _compute(images, terms, chunks, ctx.gradient)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "CMIRegularizer: expected a first derivative, got a backward with create_graph; "
                "chunk_size=None keeps the graph that a second one needs"
            )
        (images,) = ctx.saved_tensors
        gradient = ctx.__dict__.pop("gradient", None)
        if gradient is None:  # handed out before
            gradient = torch.zeros_like(images)
            _compute(images, ctx.terms, ctx.chunks, gradient)
        return gradient.mul_(grad_value), None, None


def _compute(
    images: Tensor, terms: list[Term], chunks: list[Chunk], gradient: Tensor | None
) -> Tensor:
    """The value; its derivative is added to `gradient` where there is one."""
    images = images.detach()
    values = []
    for term in terms:
        # As in `embed`, and for the backward through the network, part of the same call here.
        with computing(term.precision, images.device.type):
            for chunk in chunks:
                scaled = _scaled(term, chunk, len(images))
                in_chunk = _one_piece if len(chunk.pieces) == 1 else _in_pieces
                values.append(in_chunk(images, term, chunk, scaled, gradient))
    total = torch.stack(values).sum(dtype=torch.float64)
    return total.to(arithmetic_dtype(images.dtype))


def _scaled(term: Term, chunk: Chunk, num_images: int) -> dict[str, Any]:
    """Options under which the chunks' values add up to the mean over all images."""
    options = term.options()
    options |= {"weight": term.weight / num_images, "reduction": "sum"}
    if term.centroids is not None:
        last = chunk.first_class + chunk.index.num_classes
        options["centroids"] = term.centroids[chunk.first_class : last]
    return options


def _one_piece(
    images: Tensor, term: Term, chunk: Chunk, scaled: dict[str, Any], gradient: Tensor | None
) -> Tensor:
    (rows,) = chunk.pieces
    with torch.set_grad_enabled(gradient is not None):
        # A copy: a network that works in place on its input must not reach the caller's images.
        piece = images[rows].clone().requires_grad_(gradient is not None)
        value = fused_cmi(term.features(piece), chunk.index, **scaled)
        if gradient is not None:
            (of_piece,) = torch.autograd.grad(value, piece)
            gradient[rows] += of_piece
    return value.detach()


def _in_pieces(
    images: Tensor, term: Term, chunk: Chunk, scaled: dict[str, Any], gradient: Tensor | None
) -> Tensor:
    with torch.no_grad():
        features = torch.cat([term.features(images[rows].clone()) for rows in chunk.pieces])
        if gradient is None:
            return fused_cmi(features, chunk.index, **scaled)
        value, of_features = cmi_value_and_grad(features, chunk.index, **scaled)
    start = 0
    for rows in chunk.pieces:
        with torch.enable_grad():
            piece = images[rows].requires_grad_()
            z = term.features(piece)
        (of_piece,) = torch.autograd.grad(z, piece, of_features[start : start + len(piece)])
        gradient[rows] += of_piece
        start += len(piece)
    return value
