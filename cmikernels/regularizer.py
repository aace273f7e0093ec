"""The whole regulariser: images -> frozen network -> features -> weighted CMI.

Images go through the networks in chunks, see `chunked.py`.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from cmikernels.arguments import as_sequence, check_count, check_module, checked_centroids, trains
from cmikernels.chunked import Chunk, Term, cmi_in_chunks, cut_into_chunks
from cmikernels.class_index import ClassIndex
from cmikernels.cmi import class_centroids, fused_cmi
from cmikernels.embedding import embed, named_layer
from cmikernels.precision import check_precision
from cmikernels.problem import arithmetic_dtype, check_options, index_for_centroids
from cmikernels.real_data import Batches, RunningMeans, as_batches
from cmikernels.transforms import refuse_func_grad, refuse_vmap


class CMIRegularizer(nn.Module):
    """Weighted CMI of images in the feature space of frozen networks: one line of a training loop.

    The networks stay outside of this module, whatever it is put into: they are not among its
    parameters and not in its state, and neither `train()` nor `to()` reaches them. Its state is
    the number of the next step, and the given centroids.

    Args:
        networks: one module, or a sequence of them (a list, a bank) of which every step
            takes some. Frozen and in eval mode: `network.eval().requires_grad_(False)`.
        weight: factor on the value and the gradient (the published lambda).
        chunk_size: images that go through a network at once. `None` takes all of them and keeps
            the graph, for losses that are differentiated twice.
        layer: what of a network is the feature: "features", what enters its last `nn.Linear` (or
            its method `embed`, where it has one); "logits", what the network returns; or the name
            of a submodule, whose output it is. Flattened to `(N, M)`.
        temperature: the softmax's tau.
        centroids: compare with these probabilities instead of the images' own class means: `(C, M)`
            or `(networks, C, M)`, as `real_centroids` gives them. `to()` moves them.
        networks_per_step: how many networks a step averages over, drawn without repetition.
        every: apply it in every k-th step only and give 0 in the others. That is another algorithm
            than the published one: cheaper, with a gradient that comes in bursts.
        seed: of the draw of networks, which depends on it and on the step alone.
        precision: of the networks, forward and backward: "float32", "tf32" (on GPUs) or "bfloat16",
            whose loss, sums and image gradients are float32 all the same. None takes float32 as
            torch is set for it. Autocast around a call changes nothing.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> regularizer = CMIRegularizer(network.eval().requires_grad_(False), weight=2000.0)
        >>> images = torch.randn(4, 3, 8, 8, requires_grad=True)
        >>> regularizer(images, ClassIndex(torch.tensor([0, 0, 1, 1]))).backward()
        >>> images.grad.shape
        torch.Size([4, 3, 8, 8])
    """

    __call__: Callable[..., Tensor]
    networks: Sequence[nn.Module]
    centroids: Tensor | None

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
        precision: str | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("centroids", None)
        self.networks = as_sequence(networks)
        count = len(self.networks)
        if count == 0:
            raise ValueError("networks: expected at least one, got none")
        for name, number in (("networks_per_step", networks_per_step), ("every", every)):
            check_count(name, number)
        if chunk_size is not None:
            check_count("chunk_size", chunk_size)
        if networks_per_step > count:
            raise ValueError(
                f"networks_per_step: expected at most the {count} networks given, "
                f"got {networks_per_step}"
            )
        check_options(temperature, weight, "mean")
        check_precision(precision)
        if layer not in ("features", "logits"):
            named_layer(self._module(0), layer)
        self.weight = weight
        self.chunk_size = chunk_size
        self.layer = layer
        self.temperature = temperature
        self.centroids = centroids
        self.networks_per_step = networks_per_step
        self.every = every
        self.seed = seed
        self.backend = backend
        self.precision = precision
        self.step = 0
        self._plan: tuple[ClassIndex, list[Chunk]] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep networks out of the module's children, and centroids that are none out of it."""
        if name == "networks":
            value = as_sequence(value)
        elif name == "centroids" and value is not None:
            value = checked_centroids(value, len(self.networks))
        super().__setattr__(name, value)

    def forward(
        self, images: Tensor, classes: Tensor | ClassIndex, *, step: int | None = None
    ) -> Tensor:
        """The weighted CMI of `images`, differentiable with respect to them.

        Args:
            images: `(N, ...)` as the networks take them (normalised).
            classes: label of each image, or a `ClassIndex` built once.
            step: number of the step, which decides on the networks; default one more at every
                call. Give it, or save the state, where a run may be resumed.
        """
        if torch.compiler.is_compiling():
            return _without_compiler(self, images, classes, step)
        if not isinstance(images, Tensor):
            raise TypeError(f"images: expected a tensor, got {type(images).__name__}")
        check_precision(self.precision, images.device.type)
        if self.chunk_size is not None:
            refuse_vmap("images", images, "give all at once")
            refuse_func_grad("images", images)
        step = self.step if step is None else step
        # Not by the attributes, with which nn.Module takes 5 us.
        self.__dict__["step"] = step + 1
        centroids = self._buffers["centroids"]
        if isinstance(classes, ClassIndex):
            index = classes
        elif centroids is None:
            index = ClassIndex(classes)
        else:
            index = index_for_centroids(classes, centroids.shape[-2])
        if centroids is not None and centroids.shape[-2] != index.num_classes:
            raise ValueError(
                f"classes: expected the {centroids.shape[-2]} classes that centroids are for, "
                f"got a ClassIndex of {index.num_classes}"
            )
        if len(images) != index.num_rows:
            raise ValueError(
                f"classes: expected one label for each of the {len(images)} images, "
                f"got {index.num_rows}"
            )
        if step % self.every or not len(images):
            return _zero(images)
        if centroids is None and index.largest <= 1:
            warnings.warn(
                "every class has one image, so CMI is 0 with any network: skipped. Give centroids "
                "of real data, or several views of an image",
                stacklevel=_level_of_caller(),
            )
            return _zero(images)
        terms = [self._term(number, centroids) for number in self.draw(step)]
        if self.chunk_size is None:
            return torch.stack(
                [
                    fused_cmi(features, index, weight=term.weight, **term.options())
                    for term in terms
                    for features in [term.features_with_gradients(images)]
                ]
            ).sum()
        return cmi_in_chunks(images, terms, self._chunks(index))

    def draw(self, step: int) -> list[int]:
        """Numbers of the networks that a step uses."""
        count = len(self.networks)
        return random.Random(f"{self.seed}/{step}").sample(range(count), self.networks_per_step)

    @torch.no_grad()
    def real_centroids(
        self,
        batches: Tensor | Batches,
        labels: Tensor | ClassIndex | int | None = None,
        num_classes: int | None = None,
    ) -> Tensor:
        """Class means of the probabilities of real data, `(networks, C, M)`, for `centroids`.

        Every class counts each of its images once, whatever the sizes of the classes.

        Args:
            batches: images and labels, read once (a list, a DataLoader); or all images, with
                `labels` beside them. They go through the networks in chunks then.
            labels: label of each image, where `batches` are images.
            num_classes: number of classes; default: largest label + 1.

        Example:
            >>> network = nn.Linear(4, 3).eval().requires_grad_(False)
            >>> regularizer = CMIRegularizer(network, layer="logits")
            >>> images, labels = torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
            >>> regularizer.centroids = regularizer.real_centroids(images, labels)
            >>> regularizer.centroids.shape
            torch.Size([1, 2, 3])
        """
        if isinstance(labels, int):  # real_centroids(batches, num_classes)
            labels, num_classes = None, labels
        elif isinstance(labels, ClassIndex):
            num_classes = num_classes or labels.num_classes
            labels = labels.labels
        means = RunningMeans()
        for images, of_batch in as_batches(batches, labels, self.chunk_size):
            index = ClassIndex(of_batch, num_classes)
            of_networks = []
            for number in range(len(self.networks)):
                z = embed(self._network(number), images, self.layer, self.precision)
                of_networks.append(class_centroids(z, index, temperature=self.temperature))
            means.add(torch.stack(of_networks), index.counts())
        return means.result(num_classes)

    def extra_repr(self) -> str:
        """What it was made of, and where it stands, for `print(regularizer)`."""
        centroids = None if self.centroids is None else tuple(self.centroids.shape)
        return (
            f"networks={len(self.networks)}, weight={self.weight}, chunk_size={self.chunk_size}, "
            f"layer={self.layer!r}, temperature={self.temperature}, centroids={centroids}, "
            f"networks_per_step={self.networks_per_step}, every={self.every}, seed={self.seed}, "
            f"backend={self.backend!r}, precision={self.precision!r}, step={self.step}"
        )

    def get_extra_state(self) -> Tensor:
        """Number of the next step, for `state_dict`."""
        return torch.tensor(self.step, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from the step that `get_extra_state` told."""
        self.step = int(state)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Take saved centroids also where none were given yet."""
        saved = state_dict.get(prefix + "centroids")
        if saved is not None and self.centroids is None:
            weights = next(self._module(0).parameters(), saved)
            self.centroids = saved.to(weights.device, copy=True)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CMIRegularizer:
        """Move the centroids, but leave their dtype: bfloat16 would round the value away."""
        given = self.centroids
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = self.centroids
        if given is not None and moved is not None and moved.dtype != given.dtype:
            self._buffers["centroids"] = given.to(moved.device)
        return self

    def _module(self, number: int) -> nn.Module:
        network = self.networks[number]
        check_module(number, network)
        return network

    def _network(self, number: int) -> nn.Module:
        network = self._module(number)
        if trains(network):
            raise ValueError(
                f"networks[{number}]: expected a frozen network, got one that trains; "
                "call network.eval().requires_grad_(False)"
            )
        return network

    def _term(self, number: int, centroids: Tensor | None) -> Term:
        if centroids is not None and centroids.dim() == 3:
            centroids = centroids[number]
        return Term(
            self._network(number),
            self.layer,
            centroids,
            self.temperature,
            self.weight / self.networks_per_step,
            self.backend,
            self.precision,
        )

    def _chunks(self, index: ClassIndex) -> list[Chunk]:
        """How `index` is cut, kept from call to call: on a GPU making it waits for the device."""
        assert self.chunk_size is not None
        if self._plan is None or self._plan[0] is not index:
            self._plan = index, cut_into_chunks(index, self.chunk_size)
        return self._plan[1]


@_disable_dynamo  # which loads the compiler when called; torch.compiler.disable would at import
def _without_compiler(
    regularizer: CMIRegularizer, images: Tensor, classes: Tensor | ClassIndex, step: int | None
) -> Tensor:
    """A call from compiled code, outside of its graphs: what is drawn and cut cannot be traced."""
    return regularizer.forward(images, classes, step=step)


def _zero(images: Tensor) -> Tensor:
    """0 with a graph, so that a loss of nothing else can still be differentiated."""
    return images.flatten()[:0].sum(dtype=arithmetic_dtype(images.dtype))


def _level_of_caller() -> int:
    """The `stacklevel` at which a warning of the function that asks names the user's line."""
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame and frame.f_globals["__name__"].partition(".")[0] in ("cmikernels", "torch"):
        frame, level = frame.f_back, level + 1
    return level
