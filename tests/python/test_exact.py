"""Small whole numbers add and multiply without rounding: convolution and matrix product must give exactly the integer
answer, forward and backward, whatever the order of their sums, on every instruction set of this machine."""

import os
import subprocess
import sys

import numpy as np
import pytest

import cases
import deepnet as dn
import reference
from checks import HERE, integers, seeded_rng
from deepnet import nn


def run_on_integers(case):
    """Inputs and results of a layer whose numbers are all whole; sums stay far below 2^24."""
    rng, layer = seeded_rng(case), case.build()
    for p in layer.parameters().values():
        p.data[...] = integers(rng, p.data.shape)
    x = integers(rng, case.shape)
    y = layer(x)
    dy = integers(rng, y.shape)
    return layer, x, y, dy, layer.backward(dy)


def assert_exact(layer, y, dx, want_y, want_dx, want_dw):
    np.testing.assert_array_equal(y, want_y)
    np.testing.assert_array_equal(dx, want_dx)
    for (name, p), want in zip(layer.parameters().items(), want_dw, strict=False):
        np.testing.assert_array_equal(p.grad, want, err_msg=name)


@pytest.mark.parametrize("case", cases.cases_of(cases.LINEAR), ids=str)
def test_linear(case):
    layer, x, y, dy, dx = run_on_integers(case)
    weight = np.float64(layer.parameters()["weight"].data)
    want_dx, *want_dw = reference.linear_backward(np.float64(x), weight, np.float64(dy))
    assert_exact(layer, y, dx, case.reference(x, layer.state_dict()), want_dx, want_dw)


# Products so small that nothing is packed ahead, and those a little larger; with few rows, columns and sums, and with
# numbers of them that do not fill vectors.
@pytest.mark.parametrize("rows", range(1, 20))
def test_linear_of_any_small_size(rows):
    rng = seeded_rng(f"small {rows}")
    for _ in range(20):
        inputs, outputs = int(rng.integers(1, 140)), int(rng.integers(1, 40))
        net = nn.Sequential(nn.Linear(inputs, outputs, bias=bool(rng.integers(2))), nn.ReLU())
        for p in net.parameters().values():
            p.data[...] = integers(rng, p.data.shape)
        weight, *bias = (p.data for p in net.parameters().values())
        x = integers(rng, (rows, inputs))
        np.testing.assert_array_equal(net.predict(x), np.maximum(x @ weight.T + (bias[0] if bias else 0), 0))
        dy = integers(rng, (rows, outputs)) * (net(x) > 0)
        np.testing.assert_array_equal(net.backward(dy), dy @ weight)
        np.testing.assert_array_equal(net[0].weight.grad, dy.T @ x)


@pytest.mark.parametrize("case", cases.cases_of(cases.CONV2D), ids=str)
def test_conv2d(case):
    layer, x, y, dy, dx = run_on_integers(case)
    weight = np.float64(layer.parameters()["weight"].data)
    options = {k: v for k, v in case.arguments.items() if k in ("stride", "padding", "dilation", "groups")}
    want_dx, *want_dw = reference.conv2d_backward(np.float64(x), weight, np.float64(dy), **options)
    assert_exact(layer, y, dx, case.reference(x, layer.state_dict()), want_dx, want_dw)


# Many weights that meet few pixels: blocks of filters, each with its share of dE/dx, weights that are not packed, and
# runs of pixels that lie within a row, over rows and over images.
@pytest.mark.parametrize("seed", range(24))
def test_conv2d_of_few_images(seed, torch):
    rng = seeded_rng(f"few {seed}")
    images, groups = int(rng.integers(1, 4)), int(rng.choice([1, 1, 1, 2]))
    channels, filters = int(rng.choice([16, 20, 37])) * groups, int(rng.choice([40, 50, 64, 97, 130])) * groups
    kernel, stride, dilation = int(rng.integers(1, 8)), int(rng.choice([1, 1, 1, 2])), int(rng.choice([1, 1, 2]))
    padding = int(rng.integers(0, 3))
    out_h, out_w = int(rng.integers(5, 10)), int(rng.integers(5, 18))
    height, width = ((n - 1) * stride + dilation * (kernel - 1) + 1 - 2 * padding for n in (out_h, out_w))
    if min(height, width) < 1:
        padding, height, width = 0, height + 2 * padding, width + 2 * padding
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    check_conv2d(torch, rng, (images, channels, height, width), filters, kernel, options)


# Kernels, strides, dilations and paddings of both axes as they come.
@pytest.mark.parametrize("seed", range(60))
def test_conv2d_of_any_shape(seed, torch):
    rng = seeded_rng(f"any {seed}")
    groups = int(rng.choice([1, 1, 2, 3]))
    channels, filters = groups * int(rng.choice([1, 3, 5, 8])), groups * int(rng.choice([1, 2, 7, 20]))
    kernel, stride, dilation = (tuple(int(n) for n in rng.integers(1, most + 1, 2)) for most in (5, 4, 3))
    padding = tuple(int(n) for n in rng.integers(0, 4, 2))
    size = [
        max(int(rng.integers(1, 34)), (k - 1) * d + 1 - 2 * p)
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    check_conv2d(torch, rng, (int(rng.choice([1, 2, 5, 17])), channels, *size), filters, kernel, options)


# Every width of up to two vectors, so that rows end at every lane, inside the image and in its padding.
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
def test_depthwise_conv2d_of_any_width(padding, stride, torch):
    rng = seeded_rng("depthwise")
    for width in range(3, 36):
        channels, height = int(rng.integers(2, 5)), int(rng.integers(3, 12))
        options = {"stride": stride, "padding": padding, "dilation": 1, "groups": channels}
        filters = channels * int(rng.choice([1, 2]))
        check_conv2d(torch, rng, (2, channels, height, width), filters, 3, options)


# Images so large that a few at a time are padded.
@pytest.mark.parametrize(("stride", "padding"), [(2, 1), (1, 2), (3, 0)])
def test_conv2d_of_large_images(stride, padding, torch):
    options = {"stride": stride, "padding": padding, "dilation": 1, "groups": 1}
    check_conv2d(torch, seeded_rng("large"), (5, 2, 655, 657), 1, 2, options)


def check_conv2d(torch, rng, shape, filters, kernel, options):
    """Forward and backward on whole numbers against PyTorch in float64, on 1, 2 and 3 threads."""
    layer = nn.Conv2d(shape[1], filters, kernel, **options)
    for p in layer.parameters().values():
        p.data[...] = integers(rng, p.data.shape)
    x = integers(rng, shape)
    dy = integers(rng, layer(x).shape)
    wide = [torch.from_numpy(np.float64(a)).requires_grad_() for a in (x, layer.weight.data, layer.bias.data)]
    want = torch.nn.functional.conv2d(*wide, **options)
    want_dx, *want_dw = (g.numpy() for g in torch.autograd.grad(want, wide, torch.from_numpy(np.float64(dy))))
    for threads in (1, 2, 3):
        layer.zero_grad()
        with dn.threads(threads):
            y = layer(x)
            assert_exact(layer, y, layer.backward(dy), want.detach().numpy(), want_dx, want_dw)
    assert_exact(layer, y, layer.backward(dy), y, want_dx, [2 * g for g in want_dw])  # gradients add up


# Larger than the blocks of a cache-blocked product, with a remainder along every axis; and with so few rows that they
# are cut in halves, columns into strips, or both.
LARGE = [(300, 1025, 17), (1031, 37, 130), (7, 4099, 515), (67, 519, 1033)]
FEW_ROWS = [(67, 4099, 66), (31, 3001, 35), (95, 1024, 95), (127, 517, 50), (33, 70, 1999), (100, 1024, 1024)]


@pytest.mark.parametrize(("n", "i", "o"), LARGE + FEW_ROWS)
def test_linear_across_blocks(n, i, o, rng):
    layer = nn.Linear(i, o)
    weight, bias = integers(rng, (o, i)), integers(rng, o)
    layer.load_state_dict({"weight": weight, "bias": bias})
    x, dy = integers(rng, (n, i)), integers(rng, (n, o))
    y = layer(x)
    # float64 through BLAS, exact too, and quick.
    wide_x, wide_w, wide_dy = np.float64(x), np.float64(weight), np.float64(dy)
    wants = wide_x @ wide_w.T + bias, wide_dy @ wide_w, [wide_dy.T @ wide_x, wide_dy.sum(axis=0)]
    assert_exact(layer, y, layer.backward(dy), *wants)


@pytest.mark.parametrize("isa", dn.available_isas())
def test_exact_on(isa):
    """The tests above, in a process where this instruction set is forced."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "linear or conv2d or forced"]
    environment = {**os.environ, "DEEPNET_ISA": isa}
    result = subprocess.run(
        [*command, "test_exact.py"], cwd=HERE, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]


def test_isa_is_the_forced_one():
    isas = dn.available_isas()
    assert "generic" in isas
    assert dn.active_isa() == os.environ.get("DEEPNET_ISA", dn.active_isa())
    assert dn.active_isa() in isas
