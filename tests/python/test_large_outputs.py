"""Outputs so large that they are written past the caches: the same bits as those of a few rows at a time."""

import os

import numpy as np
import pytest

from checks import normal
from deepnet import nn


def least_floats():
    """Of an output that is written so: a quarter of the third-level cache."""
    try:
        cache = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (ValueError, OSError):
        cache = 0
    return (cache if cache > 0 else 32 << 20) // 4 // 4


# Planes and rows that begin and end within a line of 64 bytes, and whole ones.
@pytest.mark.parametrize(
    ("layer", "row"),
    [
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 61, 67)),
        (nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=6), (6, 92, 95)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 64, 64)),
        (nn.MaxPool2d(2), (5, 61, 67)),
        (nn.AvgPool2d(3, 2, 1), (5, 61, 67)),
        (nn.Softmax(), (1003,)),
        (nn.LogSoftmax(), (1003,)),
        (nn.Softmax(), (3,)),
    ],
    ids=["depthwise", "depthwise strided", "depthwise lines", "max", "average", "softmax", "log softmax", "short rows"],
)
def test_large_outputs_are_those_of_their_rows(layer, row, rng):
    some = normal(rng, (64, *row))
    repeats = least_floats() // min(some.size, layer(some).size) + 1
    x = np.concatenate([some] * repeats)
    y = layer(x)
    d_some = normal(rng, (64, *y.shape[1:]))
    dx = layer.backward(np.concatenate([d_some] * repeats))
    want = layer(some)
    want_dx = layer.backward(d_some)
    for i in range(0, len(x), 64):
        np.testing.assert_array_equal(y[i : i + 64], want)
        np.testing.assert_array_equal(dx[i : i + 64], want_dx)
