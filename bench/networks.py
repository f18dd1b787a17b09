"""The networks that benchmarks train and run, the shapes of their batches, and how much work they are."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import NamedTuple

import numpy as np

from deepnet import nn


def lenet() -> nn.Sequential:
    """LeCun et al. 1998 in the form of today's examples."""
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(50 * 4 * 4, 500), nn.ReLU(), nn.Linear(500, 10)),
    )


def vgg_small() -> nn.Sequential:
    """Pairs of 3 x 3 convolutions, each followed by a halving (after Simonyan and Zisserman 2015)."""
    layers: list[nn.Layer] = []
    channels = 3
    for filters in (64, 128, 256):
        layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(filters, filters, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = filters
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256 * 4 * 4, 512), nn.ReLU(), nn.Linear(512, 10))


def plain(convolutions: int = 19, width: int = 16) -> nn.Sequential:
    """3 x 3 convolutions in three stages, twice the channels at half the size (He et al. 2015's plain nets).

    The first stage is one longer than the others where the number does not divide by 3.
    """
    layers: list[nn.Layer] = []
    channels = 3
    for stage in range(3):
        filters = width << stage
        for i in range((convolutions + 2 - stage) // 3):
            layers += [nn.Conv2d(channels, filters, 3, stride=2 if stage and i == 0 else 1, padding=1), nn.ReLU()]
            channels = filters
    return nn.Sequential(*layers, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(channels, 10))


def strided() -> nn.Sequential:
    """Halvings by 3 x 3 convolutions of stride 2, each followed by a 1 x 1 convolution to more channels."""
    layers: list[nn.Layer] = []
    channels = 3
    for halved, widened in ((32, 64), (64, 128), (128, 256)):
        layers += [nn.Conv2d(channels, halved, 3, stride=2, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(halved, widened, 1), nn.ReLU()]
        channels = widened
    return nn.Sequential(*layers, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(channels, 10))


def separable() -> nn.Sequential:
    """3 x 3 convolutions channel by channel, each followed by a 1 x 1 convolution (Howard et al. 2017's MobileNet)."""
    layers: list[nn.Layer] = [nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU()]
    channels = 32
    for filters, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
        layers += [nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels), nn.ReLU()]
        layers += [nn.Conv2d(channels, filters, 1), nn.ReLU()]
        channels = filters
    return nn.Sequential(*layers, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(channels, 10))


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Layer] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Work(NamedTuple):
    """A network and the shape of its input."""

    build: Callable[[], nn.Sequential]
    shape: tuple[int, ...]
    classes: int


WORKS = {
    "lenet": Work(lenet, (64, 1, 28, 28), 10),
    "lenet, batch 1": Work(lenet, (1, 1, 28, 28), 10),
    "vgg-small": Work(vgg_small, (64, 3, 32, 32), 10),
    "plain-20": Work(plain, (64, 3, 32, 32), 10),
    "strided": Work(strided, (32, 3, 64, 64), 10),
    "separable": Work(separable, (32, 3, 64, 64), 10),
    "mlp 4-24-3": Work(lambda: mlp(4, 24, 3), (8, 4), 3),
    "mlp 784-256-128-10": Work(lambda: mlp(784, 256, 128, 10), (64, 784), 10),
}


class Cost(NamedTuple):
    """Floating-point operations, a multiply-add counted as two, and bytes that have to move at least."""

    flops: float
    bytes: float


def layer_cost(layer: nn.Layer, x_shape: tuple[int, ...], y_shape: tuple[int, ...], backward: bool = False) -> Cost:
    """Of a layer alone, by the definition of what it computes, whatever algorithm computes it.

    The bytes are those of everything that goes in or comes out, each once: forward of x, weights and y; backward of dy,
    dx, the weights, their gradients and x (or y, in place of it).
    """
    x, y = prod(x_shape), prod(y_shape)
    weights = sum(p.data.size for p in layer.parameters().values())
    flops = 0.0
    if isinstance(layer, nn.Linear):
        flops = 2.0 * y * layer.in_features
    elif isinstance(layer, nn.Conv2d):
        flops = 2.0 * y * prod(layer.parameters()["weight"].shape[1:])
    if not backward:
        return Cost(flops, 4.0 * (x + weights + y))
    return Cost(2 * flops, 4.0 * (2 * x + 2 * weights + y))


def network_cost(net: nn.Sequential, shape: tuple[int, ...], training: bool) -> Cost:
    """Of all its layers with weights; the first one's dE/dx is not needed."""
    x = np.zeros(shape, np.float32)
    flops = moved = 0.0
    first = True
    for layer in net:
        y = layer(x)
        if layer.parameters():
            forward = layer_cost(layer, x.shape, y.shape)
            backward = layer_cost(layer, x.shape, y.shape, backward=True)
            flops += forward.flops
            moved += forward.bytes
            if training:
                flops += backward.flops / 2 if first else backward.flops
                moved += backward.bytes
            first = False
        x = y
    return Cost(flops, moved)
