"""Networks for images of any size and number of channels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunesampler.condensation.networks import NETWORKS, NORMS, ConvNet, check_network, new_network
from prunesampler.errors import ArgumentError

SHAPES: list[Any] = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 5, 9)]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_network_takes_images_of_any_shape(name: str, shape: Any) -> None:
    network = new_network(name, shape, 5, seed=0, width=4)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    assert network(images).shape == (2, 5)
    features = network.features(images)
    assert torch.equal(network.embed(images), features[-1].flatten(1))
    assert torch.equal(network(images), network.head(features[-1].flatten(1)))
    assert all(bool(each.std() > 0) for each in features)  # no norm has wiped the images out


def test_the_convnet_is_that_of_the_field() -> None:
    network = ConvNet((3, 32, 32), 10)
    assert sum(each.numel() for each in network.parameters()) == 320_010  # as published for ConvNet-3 of 128
    assert network.head.in_features == 2048
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    block = network.blocks[0]
    convolved = block[0](images)
    mean, variance = convolved.mean((2, 3), keepdim=True), convolved.var((2, 3), keepdim=True, correction=0)
    normed = ((convolved - mean) / (variance + 1e-5).sqrt()).relu()
    pooled = normed.reshape(2, 128, 16, 2, 16, 2).mean((3, 5))
    torch.testing.assert_close(block(images), pooled, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_options_of_the_convnet(norm: str) -> None:
    for pooling, side in (("average", 2), ("max", 2), ("none", 8)):
        network = ConvNet((3, 8, 8), 4, depth=2, width=6, norm=norm, pooling=pooling)
        assert network.features(torch.rand(2, 3, 8, 8))[-1].shape == (2, 6, side, side)


def test_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, again, other = (new_network("convnet", (1, 8, 8), 3, seed, width=4).head.weight for seed in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        ("convnett", {}, "did you mean 'convnet'"),
        ("convnet", {"wide": 3}, "network_options"),
        ("convnet", {"norm": "batchnorm"}, "norm must be one of"),
        ("convnet", {"depth": 4}, "depth must be at most 3 for images of 8 × 8"),
        (lambda shape, classes: nn.Flatten(), {}, "a module with features and embed"),
    ],
)
def test_bad_options_are_refused(network: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        new_network(network, (1, 8, 8), 3, 0, **options)


def test_a_network_for_other_images_is_refused() -> None:
    with pytest.raises(ArgumentError, match="network must take images of 1 × 8 × 8"):
        check_network(ConvNet((3, 8, 8), 4, width=4), (1, 8, 8), 4)
    with pytest.raises(ArgumentError, match="must give logits of 5 classes"):
        check_network(ConvNet((1, 8, 8), 4, width=4), (1, 8, 8), 5)
