from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from cmidd.networks import (
    Network,
    build_network,
    freeze,
    initialize,
)
from cmidd.networks.layers import AvgPool
from cmidd.seeds import generator


def fresh(spec: str, size: int, channels: int = 3, seed: int = 0) -> Network:
    network = build_network(spec, channels, size, 10)
    initialize(network, generator("test", seed))
    return network


def images_of(size: int, channels: int = 3, count: int = 4) -> Tensor:
    return torch.randn(count, channels, size, size, generator=generator("images", size))


def test_building_draws_no_number_and_leaves_parameters_nan() -> None:
    state = torch.get_rng_state()
    network = build_network("convnet:norm=batch", 3, 32, 10)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.isnan().all() for p in network.parameters())
    assert network(images_of(32)).isnan().all()


def test_initialize_draws_from_its_generator_alone() -> None:
    state = torch.get_rng_state()
    one, two, other = (fresh("convnet", 32, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_initialize_is_equal_in_every_dtype_and_memory_format(dtype: torch.dtype) -> None:
    network = build_network("convnet", 3, 32, 10).to(dtype)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    initialize(network, generator("test", 0))
    for key, value in fresh("convnet", 32).state_dict().items():
        assert torch.equal(network.state_dict()[key], value.to(dtype)), key


def test_initialize_has_the_distributions_of_pytorch() -> None:
    network = fresh("convnet", 32)
    torch.manual_seed(0)
    for name, module in network.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        default = copy.deepcopy(module)
        default.reset_parameters()
        for ours, theirs in zip(module.parameters(), default.parameters(), strict=True):
            few = 8 / ours.numel() ** 0.5
            assert abs(ours.mean() / theirs.std()) < few, name
            assert abs(ours.std() / theirs.std() - 1) < few, name
            assert abs(ours.abs().max() / theirs.abs().max() - 1) < few, name


def test_initialize_resets_norms_and_their_statistics() -> None:
    network = fresh("convnet:norm=batch", 8)
    start = copy.deepcopy(network.state_dict())
    network(images_of(8)).sum().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    initialize(network, generator("test", 0))
    assert all(torch.equal(network.state_dict()[key], start[key]) for key in start)
    norm = network.features[1]  # type: ignore[index]
    assert norm.weight.eq(1).all()
    assert norm.bias.eq(0).all()
    assert norm.running_var.eq(1).all()
    assert norm.num_batches_tracked == 0


def test_initialize_refuses_parts_without_a_rule() -> None:
    with pytest.raises(TypeError, match="'1', a PReLU"):
        initialize(nn.Sequential(nn.Linear(2, 2), nn.PReLU()), generator("test"))


def test_freeze_stops_training_and_returns_the_network() -> None:
    network = fresh("convnet:norm=batch", 8)
    assert freeze(network) is network
    assert not any(module.training for module in network.modules())
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(("spec", "size"), [("convnet:width=16", 32), ("resnet18:width=8", 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stacked_networks_are_the_same_one_after_another(
    spec: str, size: int, dtype: torch.dtype
) -> None:
    networks = [fresh(spec, size, seed=seed).to(dtype) for seed in range(3)]
    skeleton = copy.deepcopy(networks[0]).to("meta")
    parameters, buffers = stack_module_state(networks)
    images = images_of(size).to(dtype)

    def logits_of(state: dict[str, Tensor], buffer: dict[str, Tensor]) -> Tensor:
        logits: Tensor = functional_call(skeleton, (state, buffer), (images,))
        return logits

    stacked = vmap(logits_of)(parameters, buffers)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for got, network in zip(stacked, networks, strict=True):
        torch.testing.assert_close(got, network(images), rtol=tolerance, atol=tolerance)
    torch.autograd.backward(stacked.square().sum())
    weight = networks[1].head.weight
    (expected,) = torch.autograd.grad(networks[1](images).square().sum(), weight)
    got_gradient = parameters["head.weight"].grad
    assert got_gradient is not None
    torch.testing.assert_close(got_gradient[1], expected, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("spec", ["convnet:depth=2,width=4", "resnet18:width=1"])
def test_gradients_of_gradients_are_right(spec: str) -> None:
    network = freeze(fresh(spec, 9).double())
    images = images_of(9, count=2).double().requires_grad_()
    assert torch.autograd.gradgradcheck(network, (images,), fast_mode=True)


def pooled_maps(size: int, memory_format: torch.memory_format, dtype: torch.dtype) -> Tensor:
    maps = torch.randn(3, 4, size, size, generator=generator("maps", size))
    return maps.to(dtype).contiguous(memory_format=memory_format).requires_grad_()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [2, 3, 5, 8, 32])
def test_average_pooling_is_that_of_torch(
    size: int, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    maps = pooled_maps(size, memory_format, dtype)
    got, expected = AvgPool()(maps), nn.functional.avg_pool2d(maps, 2)
    torch.testing.assert_close(got, expected)
    weights = torch.randn(got.shape, generator=generator("weights")).to(dtype)
    gradients = [torch.autograd.grad(found, maps, weights)[0] for found in (got, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("size", [2, 5, 6])
def test_average_pooling_has_all_derivatives(size: int) -> None:
    maps = pooled_maps(size, torch.contiguous_format, torch.float64)
    assert torch.autograd.gradcheck(AvgPool(), maps)
    assert torch.autograd.gradgradcheck(AvgPool(), maps)
    stacked = torch.stack([maps, 2 * maps])
    torch.testing.assert_close(vmap(AvgPool())(stacked)[1], 2 * AvgPool()(maps))
