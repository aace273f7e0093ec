"""The whole regulariser: images -> frozen network -> features -> weighted CMI, in chunks.

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
import random
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from cmikernels.class_index import ClassIndex
from cmikernels.cmi import class_centroids, cmi_value_and_grad, fused_cmi
from cmikernels.embedding import embed
from cmikernels.problem import arithmetic_dtype


class CMIRegularizer:
    """Weighted CMI of images in the feature space of frozen networks: one line of a training loop.

    Args:
        networks: one module, or a sequence of them (a list, a resident bank) of which every step
            takes some. Frozen and in eval mode: `network.eval().requires_grad_(False)`.
        weight: factor on the value and the gradient (the published lambda).
        chunk_size: images that go through a network at once. `None` takes all of them and keeps
            the graph, for losses that are differentiated twice or compiled.
        layer: what of a network is the feature: "features", what enters its last `nn.Linear` (or
            its method `embed`, where it has one); "logits", what the network returns; or the name
            of a submodule, whose output it is. Flattened to `(N, M)`.
        temperature: the softmax's tau.
        centroids: compare with these probabilities instead of the images' own class means: `(C, M)`
            or `(networks, C, M)`, as `real_centroids` gives them.
        networks_per_step: how many networks a step averages over, drawn without repetition.
        every: apply it in every k-th step only and give 0 in the others. That is another algorithm
            than the published one: cheaper, with a gradient that comes in bursts.
        seed: of the draw of networks, which depends on it and on the step alone.

    Example:
        >>> regularizer = CMIRegularizer(networks, weight=2000.0)
        >>> classes = ClassIndex(labels)
        >>> loss = distillation_loss + regularizer(images, classes)
    """

    def __init__(
        self,
        networks: nn.Module | Sequence[nn.Module],
        weight: float = 1.0,
        *,
        chunk_size: int | None = 50,
        layer: str = "features",
        temperature: float = 1.0,
        centroids: Tensor | None = None,
        networks_per_step: int = 1,
        every: int = 1,
        seed: int = 0,
        backend: str | None = None,
    ) -> None:
        single = isinstance(networks, nn.Module) and not isinstance(networks, nn.ModuleList)
        self.networks: Sequence[nn.Module] = [networks] if single else networks  # type: ignore[assignment, list-item]
        count = len(self.networks)
        if count == 0:
            raise ValueError("networks: expected at least one, got none")
        for name, number in (("networks_per_step", networks_per_step), ("every", every)):
            _check_count(name, number)
        if chunk_size is not None:
            _check_count("chunk_size", chunk_size)
        if networks_per_step > count:
            raise ValueError(
                f"networks_per_step: expected at most the {count} networks given, "
                f"got {networks_per_step}"
            )
        if centroids is not None and (
            centroids.dim() not in (2, 3) or (centroids.dim() == 3 and len(centroids) != count)
        ):
            raise ValueError(
                f"centroids: expected (C, M), or (networks, C, M) of {count} networks, "
                f"got shape {tuple(centroids.shape)}"
            )
        self.weight = weight
        self.chunk_size = chunk_size
        self.layer = layer
        self.temperature = temperature
        self.centroids = centroids
        self.networks_per_step = networks_per_step
        self.every = every
        self.seed = seed
        self.backend = backend
        self.step = 0
        self._plan: tuple[ClassIndex, list[_Chunk]] | None = None

    def __call__(
        self, images: Tensor, classes: Tensor | ClassIndex, *, step: int | None = None
    ) -> Tensor:
        """The weighted CMI of `images`, differentiable with respect to them.

        Args:
            images: `(N, ...)` as the networks take them (normalised).
            classes: label of each image, or a `ClassIndex` built once.
            step: number of the step, which decides on the networks; default one more at every
                call. Give it where a run may be resumed.
        """
        step = self.step if step is None else step
        self.step = step + 1
        num_classes = None if self.centroids is None else self.centroids.shape[-2]
        index = classes if isinstance(classes, ClassIndex) else ClassIndex(classes, num_classes)
        if num_classes not in (None, index.num_classes):
            raise ValueError(
                f"classes: expected the {num_classes} classes that centroids are for, "
                f"got a ClassIndex of {index.num_classes}"
            )
        if len(images) != index.num_rows:
            raise ValueError(
                f"classes: expected one label for each of the {len(images)} images, "
                f"got {index.num_rows}"
            )
        if step % self.every or not len(images):
            return _zero(images)
        if self.centroids is None and index.largest <= 1:
            warnings.warn(
                "every class has one image, so CMI is 0 with any network: skipped. Give centroids "
                "of real data, or several views of an image",
                stacklevel=2,
            )
            return _zero(images)
        terms = [self._term(number) for number in self.draw(step)]
        if self.chunk_size is None:
            return torch.stack(
                [
                    fused_cmi(term.features(images), index, weight=term.weight, **term.options())
                    for term in terms
                ]
            ).sum()
        value: Tensor = _in_chunks(images, terms, self._chunks(index))
        return value

    def draw(self, step: int) -> list[int]:
        """Numbers of the networks that a step uses."""
        count = len(self.networks)
        return random.Random(f"{self.seed}/{step}").sample(range(count), self.networks_per_step)

    @torch.no_grad()
    def real_centroids(self, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int) -> Tensor:
        """Class means of the probabilities of real data, `(networks, C, M)`, for `centroids`.

        Args:
            batches: images and labels, read once (a list, a DataLoader); every class counts each
                of its images once, whatever the sizes of the classes.
            num_classes: number of classes.
        """
        sums = counts = torch.zeros(num_classes, 1, dtype=torch.float64)
        for images, labels in batches:
            index = ClassIndex(labels, num_classes)
            means = []
            for number in range(len(self.networks)):
                z = embed(self._network(number), images, self.layer)
                means.append(class_centroids(z, index, temperature=self.temperature))
            rows = index.counts().double()[:, None]
            sums = sums.to(rows.device) + torch.stack(means) * rows
            counts = counts.to(rows.device) + rows
        missing = counts.flatten().eq(0).nonzero().flatten().tolist()
        if missing:
            raise ValueError(f"batches: expected images of every class, got none of {missing}")
        return sums / counts

    def _network(self, number: int) -> nn.Module:
        network = self.networks[number]
        trains = any(module.training for module in network.modules())
        if trains or any(p.requires_grad for p in network.parameters()):
            raise ValueError(
                f"networks[{number}]: expected a frozen network, got one that trains; "
                "call network.eval().requires_grad_(False)"
            )
        return network

    def _term(self, number: int) -> _Term:
        centroids = self.centroids
        if centroids is not None and centroids.dim() == 3:
            centroids = centroids[number]
        return _Term(
            self._network(number),
            self.layer,
            centroids,
            self.temperature,
            self.weight / self.networks_per_step,
            self.backend,
        )

    def _chunks(self, index: ClassIndex) -> list[_Chunk]:
        """How `index` is cut, kept from call to call: on a GPU making it waits for the device."""
        assert self.chunk_size is not None
        if self._plan is None or self._plan[0] is not index:
            self._plan = index, _cut(index, self.chunk_size)
        return self._plan[1]


@dataclass(frozen=True)
class _Term:
    """CMI by one network: everything but the images."""

    network: nn.Module
    layer: str
    centroids: Tensor | None  # (C, M)
    temperature: float
    weight: float
    backend: str | None

    def features(self, images: Tensor) -> Tensor:
        """What the network makes of images, `(N, M)`."""
        return embed(self.network, images, self.layer)

    def options(self) -> dict[str, Any]:
        """What `fused_cmi` is told whichever way the images go."""
        return {
            "centroids": self.centroids,
            "temperature": self.temperature,
            "backend": self.backend,
        }


@dataclass(frozen=True)
class _Chunk:
    """Whole classes that fit a chunk, as one piece; or one larger class, in several."""

    pieces: tuple[slice | Tensor, ...]  # which rows of the images
    index: ClassIndex  # of the rows of all pieces, classes counted from first_class
    first_class: int


def _cut(index: ClassIndex, chunk_size: int) -> list[_Chunk]:
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
            chunks.append(_Chunk(pieces, of_chunk, first))
        first = last
    return chunks


@_disable_dynamo  # torch.compiler.disable would load the compiler at import, twice the time
def _in_chunks(images: Tensor, terms: list[_Term], chunks: list[_Chunk]) -> Tensor:
    if images.requires_grad and torch.is_grad_enabled():
        value: Tensor = _ChunkedCMI.apply(images, terms, chunks)  # type: ignore[no-untyped-call]
        return value
    return _compute(images, terms, chunks, None)


class _ChunkedCMI(torch.autograd.Function):
    """Value and gradient of the images now; the gradient handed out once, as in `cmi._FusedCMI`."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, terms: list[_Term], chunks: list[_Chunk]) -> Tensor:
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
    images: Tensor, terms: list[_Term], chunks: list[_Chunk], gradient: Tensor | None
) -> Tensor:
    """The value; its derivative is added to `gradient` where there is one."""
    images = images.detach()
    values = []
    # As in `embed`, and for the backward through the network, which is part of the same call here.
    with torch.autocast(images.device.type, enabled=False):
        for term in terms:
            for chunk in chunks:
                scaled = _scaled(term, chunk, len(images))
                in_chunk = _one_piece if len(chunk.pieces) == 1 else _in_pieces
                values.append(in_chunk(images, term, chunk, scaled, gradient))
    total = torch.stack(values).sum(dtype=torch.float64)
    return total.to(arithmetic_dtype(images.dtype))


def _scaled(term: _Term, chunk: _Chunk, num_images: int) -> dict[str, Any]:
    """Options under which the chunks' values add up to the mean over all images."""
    options = term.options()
    options |= {"weight": term.weight / num_images, "reduction": "sum"}
    if term.centroids is not None:
        last = chunk.first_class + chunk.index.num_classes
        options["centroids"] = term.centroids[chunk.first_class : last]
    return options


def _one_piece(
    images: Tensor, term: _Term, chunk: _Chunk, scaled: dict[str, Any], gradient: Tensor | None
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
    images: Tensor, term: _Term, chunk: _Chunk, scaled: dict[str, Any], gradient: Tensor | None
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


def _zero(images: Tensor) -> Tensor:
    """0 with a graph, so that a loss of nothing else can still be differentiated."""
    return images.flatten()[:0].sum(dtype=arithmetic_dtype(images.dtype))


def _check_count(name: str, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name}: expected an int, got {type(number).__name__}")
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")
