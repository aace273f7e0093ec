from __future__ import annotations

import inspect
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cmidd.networks import NETWORKS, Network, NetworkSpec, build_network, initialize
from cmidd.networks.layers import Convolution
from cmidd.networks.spec import WORDS, options_of
from cmidd.options import names
from cmidd.seeds import generator

# Network, channels, size, classes: parameters, and length of the embedding. The first two are
# published figures; the others were counted by hand from the published layers. Published networks
# have biases of convolutions before instance norm too, which are taken off here.
COUNTS = [
    ("convnet", 3, 32, 10, 320_010 - 3 * 128, 2048),
    ("resnet18", 3, 32, 10, 11_173_962, 512),
    ("resnet18:norm=batch", 3, 32, 10, 11_173_962, 512),
    ("resnet18", 3, 64, 10, 11_168_832 + 2049 * 10, 2048),
    ("convnet", 1, 28, 10, 317_706 - 3 * 128, 2048),
    ("mlp", 1, 28, 10, 784 * 128 + 128 + 128 * 128 + 128 + 1290, 128),
    ("lenet", 1, 28, 10, 61_706, 84),
    ("lenet", 1, 32, 10, 61_706, 84),
    ("alexnet", 3, 32, 10, 1_872_202, 3072),
    ("vgg11", 3, 32, 10, 9_231_114 - (64 + 128 + 2 * 256 + 4 * 512), 512),
    ("convnet:depth=4", 3, 64, 200, 447_360 - 4 * 128 + 2049 * 200, 2048),
    ("imagenet_resnet18", 3, 224, 1000, 11_689_512, 512),
    ("imagenet_resnet18:stem=small", 3, 64, 10, 11_173_962, 512),
    ("imagenet_resnet50", 3, 224, 1000, 25_557_032, 2048),
]


BUILDS = [
    ("convnet", 8),
    ("convnet", 28),
    ("convnet", 32),
    ("convnet:depth=4", 64),
    ("convnet:norm=none,activation=sigmoid,pooling=max", 32),
    ("convnet:norm=layer,activation=leakyrelu", 28),
    ("convnet:norm=group,width=8", 9),
    ("convnet:norm=batch,pooling=none,width=4", 8),
    ("mlp", 8),
    ("lenet", 28),
    ("lenet", 64),
    ("alexnet", 8),
    ("alexnet", 28),
    ("vgg11", 28),
    ("vgg11:norm=batch", 64),
    ("resnet18:width=8", 28),
    ("resnet18:width=8", 33),
    ("resnet18:width=8,norm=batch", 8),
    ("resnet18:width=8,norm=none", 8),
    ("imagenet_resnet18:width=8", 33),
    ("imagenet_resnet18:width=8,norm=group,stem=small", 8),
    ("imagenet_resnet50:width=4", 40),
    ("imagenet_resnet50:width=4,norm=layer", 33),
    ("imagenet_resnet50:width=4,norm=layer,stem=small", 17),
]


def fresh(spec: str, size: int, channels: int = 3, seed: int = 0) -> Network:
    network = build_network(spec, channels, size, 10)
    initialize(network, generator("test", seed))
    return network


def images_of(size: int, channels: int = 3, count: int = 4) -> Tensor:
    return torch.randn(count, channels, size, size, generator=generator("images", size))


@pytest.mark.parametrize(("spec", "channels", "size", "classes", "parameters", "embed_dim"), COUNTS)
def test_parameters_and_embedding_have_the_published_sizes(
    spec: str, channels: int, size: int, classes: int, parameters: int, embed_dim: int
) -> None:
    network = build_network(spec, channels, size, classes)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.embed_dim == network.head.in_features == embed_dim


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("spec", "size"), BUILDS)
def test_images_become_embeddings_and_logits(spec: str, size: int, channels: int) -> None:
    network = fresh(spec, size, channels)
    images = images_of(size, channels)
    kept = images.clone()
    embedding = network.embed(images)
    assert embedding.shape == (4, network.embed_dim)
    assert torch.equal(images, kept)
    logits = network(images)
    assert logits.shape == (4, 10)
    assert logits.isfinite().all()
    assert logits.std(0).min() > 0  # the images are seen
    torch.testing.assert_close(logits, network.head(network.embed(images)))


def test_convnet_is_convolution_norm_activation_and_pooling() -> None:
    network = fresh("convnet:depth=2,width=8", 8)
    x = images_of(8)
    for conv in (network.features[0], network.features[4]):  # type: ignore[index]
        x = nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
        x = ((x - mean) / (var + 1e-5).sqrt()).clamp(min=0)
        x = (x[..., ::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, ::2] + x[..., 1::2, 1::2]) / 4
    torch.testing.assert_close(network.embed(images_of(8)), x.flatten(1))


def test_resnet18_is_a_stem_and_eight_blocks_with_shortcuts() -> None:
    network = fresh("resnet18:width=2,norm=none", 32)
    weights = [p for name, p in network.named_parameters() if name.startswith("features")]

    def conv(x: Tensor, stride: int = 1) -> Tensor:
        weight = weights.pop(0)
        return nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = conv(images_of(32) * 100).relu()  # weights are small and there is no norm
    for stride in (1, 1, 2, 1, 2, 1, 2, 1):
        inner = conv(conv(x, stride).relu())
        x = (inner + (x if stride == 1 else conv(x, stride))).relu()
    assert not weights
    assert x.max() > 1
    torch.testing.assert_close(network.embed(images_of(32) * 100), x.mean((2, 3)))


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ("convnet:width=8", 32),
        ("convnet:width=8,norm=group,activation=leakyrelu,pooling=none", 9),
        ("resnet18:width=4", 17),
        ("vgg11", 32),
    ],
)
def test_what_the_kernel_makes_of_a_network_is_what_torchs_layers_make_of_it(
    spec: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = fresh(spec, size).double()
    weights = dict(network.named_parameters())

    def results() -> list[Tensor]:
        """Logits, gradients, and the gradient of a function of the gradients by the images."""
        x = torch.randn(2, 3, size, size, generator=generator("images"), dtype=torch.float64)
        x.requires_grad_()
        logits = network(x)
        gradients = torch.autograd.grad(
            logits.square().sum(), [*weights.values(), x], create_graph=True
        )
        loss = torch.stack([g.square().mean() for g in gradients]).sum()
        return [logits, *gradients, *torch.autograd.grad(loss, x)]

    fused = results()
    block = sys.modules["cmikernels.norm_act_pool"]  # whose name the function has
    monkeypatch.setattr(block, "_kernel_serves", lambda *_: False)
    for got, expected in zip(fused, results(), strict=True):
        assert (got - expected).abs().max() <= 1e-9 * (1e-3 + expected.abs().max())


@pytest.mark.parametrize(("spec", "size"), [("convnet:width=8", 28), ("vgg11", 32)])
def test_a_state_with_biases_before_instance_norm_loads_and_gives_the_same_logits(
    spec: str, size: int
) -> None:
    network, biased = fresh(spec, size).double(), build_network(spec, 3, size, 10).double()
    rng = generator("biases")
    for module in biased.modules():
        if isinstance(module, Convolution):
            module.bias = nn.Parameter(torch.randn(module.out_channels, generator=rng).double())
    old = {k: v for k, v in biased.state_dict().items() if k not in network.state_dict()}
    assert old.keys() == {f"{k[:-6]}bias" for k in old_weights(network)}
    biased.load_state_dict({**old, **network.state_dict()})
    loaded = build_network(spec, 3, size, 10).double()
    loaded.load_state_dict(biased.state_dict())
    images = images_of(size).double()
    assert torch.equal(loaded(images), network(images))
    torch.testing.assert_close(biased(images), network(images), rtol=1e-9, atol=1e-9)


def old_weights(network: Network) -> list[str]:
    return [f"{n}.weight" for n, m in network.named_modules() if isinstance(m, Convolution)]


def test_weights_of_a_seed_do_not_depend_on_whether_convolutions_have_biases() -> None:
    with_biases = fresh("convnet:norm=group", 32).state_dict()
    without = fresh("convnet", 32).state_dict()
    assert with_biases.keys() - without.keys() == {f"features.{i}.bias" for i in (0, 4, 8)}
    assert all(torch.equal(with_biases[name], without[name]) for name in without)


def test_instance_norm_lets_no_image_see_its_batch() -> None:
    network = fresh("resnet18:width=8", 32).double()
    images = images_of(32).double()
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]), rtol=0, atol=1e-12)
    training = network(images)
    assert torch.equal(training, network.eval()(images))


@pytest.mark.parametrize(
    ("spec", "size", "told"),
    [
        ("convnet:depth=4", 8, "16 x 16"),
        ("convnet:depth=6", 28, "64 x 64"),
        ("lenet", 8, "16 x 16"),
        ("alexnet", 7, "8 x 8"),
        ("vgg11", 31, "32 x 32"),
        ("resnet18", 8, "9 x 9"),
        ("imagenet_resnet18:norm=instance", 32, "33 x 33"),
        ("imagenet_resnet50:norm=instance,stem=small", 8, "9 x 9"),
    ],
)
def test_images_too_small_are_an_error_that_says_what_is_needed(
    spec: str, size: int, told: str
) -> None:
    with pytest.raises(ValueError, match=f"{told}.*got {size} x {size}"):
        build_network(spec, 3, size, 10)


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ("convnet:depth=3", 8),
        ("convnet:depth=5", 28),
        ("lenet", 16),
        ("vgg11", 32),
        ("resnet18", 9),
        ("imagenet_resnet18:width=8,norm=instance", 33),
    ],
)
def test_the_smallest_images_still_tell_apart(spec: str, size: int) -> None:
    assert fresh(spec, size)(images_of(size)).std(0).min() > 1e-4


@pytest.mark.parametrize("argument", ["channels", "size", "num_classes"])
def test_sizes_below_one_are_errors_that_name_the_argument(argument: str) -> None:
    sizes = {"channels": 3, "size": 32, "num_classes": 10, argument: 0}
    with pytest.raises(ValueError, match=f"{argument} .*got 0"):
        build_network("convnet", **sizes)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("resnet", "no 'resnet'.*convnet.*resnet18"),
        ("resnet19", "no 'resnet19'; there are convnet, .*resnet50; did you mean resnet18[?]$"),
        ("", "no ''; there are .*resnet50$"),
        ("convnet:depht=3", "no option 'depht'.*depth, width, norm"),
        ("convnet:", "no option ''"),
        ("convnet:depth", "positive integer, got ''"),
        ("convnet:depth=0", "positive integer, got '0'"),
        ("convnet:depth=2.5", "positive integer, got '2.5'"),
        ("convnet:norm=Instance", "none, batch, group, instance, layer, got 'Instance'"),
        ("convnet:depth=2,depth=2", "depth is given twice"),
        ("lenet:width=3", "it has no options"),
        ("imagenet_resnet18:stem=7x7", "stem is one of imagenet, small, got '7x7'"),
        ("convnet:norm=group,width=6", "4 groups.*6"),
    ],
)
def test_a_spec_that_names_what_is_not_there_is_an_error_that_lists_what_is(
    spec: str, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        build_network(spec, 3, 32, 10)


@st.composite
def spec_texts(draw: st.DrawFn) -> str:
    name = draw(st.sampled_from(sorted(NETWORKS)))
    options = options_of(name)
    chosen = draw(st.permutations(list(options)))[: draw(st.integers(0, len(options)))]
    values = [
        draw(st.sampled_from(sorted(WORDS[o])) if o in WORDS else st.integers(1, 999))
        for o in chosen
    ]
    items = ",".join(f"{o}={v}" for o, v in zip(chosen, values, strict=True))
    return f"{name}:{items}" if items else name


@given(spec_texts())
def test_a_spec_reads_what_it_prints(text: str) -> None:
    spec = NetworkSpec.parse(text)
    assert NetworkSpec.parse(str(spec)) == spec
    given_options = dict(i.split("=") for i in text.partition(":")[2].split(",") if i)
    meant = options_of(spec.name) | given_options
    assert {o: str(v) for o, v in (options_of(spec.name) | dict(spec.options)).items()} == {
        o: str(v) for o, v in meant.items()
    }


def test_equal_networks_have_equal_specs() -> None:
    texts = [
        "convnet:width=64,depth=3",
        "convnet:depth=3,width=64,norm=instance",
        "convnet:width=64",
    ]
    assert {str(NetworkSpec.parse(text)) for text in texts} == {"convnet:width=64"}
    assert len({NetworkSpec.parse(text) for text in texts}) == 1


def test_the_help_says_of_each_network_what_its_function_says() -> None:
    lines = []
    for name, architecture in NETWORKS.items():
        lines.append(f"{name}: {inspect.getdoc(architecture)}")
        options = ",".join(f"{option}={value}" for option, value in options_of(name).items())
        lines += [f"    {name}:{options}"] if options else []
    assert names.NETWORKS.splitlines() == lines
