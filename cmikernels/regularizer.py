"""The whole regulariser: images -> frozen network -> features -> weighted CMI.

Images go through the networks in chunks, see `chunked.py`.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from cmikernels.chunked import Chunk, Term, cmi_in_chunks, cut_into_chunks
from cmikernels.class_index import ClassIndex
from cmikernels.cmi import class_centroids, fused_cmi
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
        self._plan: tuple[ClassIndex, list[Chunk]] | None = None

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
        value: Tensor = cmi_in_chunks(images, terms, self._chunks(index))
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

    def _term(self, number: int) -> Term:
        centroids = self.centroids
        if centroids is not None and centroids.dim() == 3:
            centroids = centroids[number]
        return Term(
            self._network(number),
            self.layer,
            centroids,
            self.temperature,
            self.weight / self.networks_per_step,
            self.backend,
        )

    def _chunks(self, index: ClassIndex) -> list[Chunk]:
        """How `index` is cut, kept from call to call: on a GPU making it waits for the device."""
        assert self.chunk_size is not None
        if self._plan is None or self._plan[0] is not index:
            self._plan = index, cut_into_chunks(index, self.chunk_size)
        return self._plan[1]


def _zero(images: Tensor) -> Tensor:
    """0 with a graph, so that a loss of nothing else can still be differentiated."""
    return images.flatten()[:0].sum(dtype=arithmetic_dtype(images.dtype))


def _check_count(name: str, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name}: expected an int, got {type(number).__name__}")
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")
