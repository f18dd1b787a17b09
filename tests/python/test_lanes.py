"""Networks whose convolutions keep images in the lanes of vectors, on batches that fill them, against PyTorch in
float64: whole numbers must come out exactly, others within rounding, and Winograd's tiles of 6 x 6 cells within a
stated bound.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

import deepnet as dn
from checks import HERE, assert_close, build, gradients, integers, normal, seeded_rng

LANES = {"avx512": 16, "avx2": 8, "neon": 4, "generic": 4}[dn.active_isa()]
ACTIVATIONS = ["Sigmoid", "Tanh", "GELU", "Softplus"]


def output_side(side, kernel, stride, padding, dilation=1):
    return (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


class Network:
    """The same random network in deepnet and, in float64, in PyTorch. `exact`: no rounding on small whole numbers."""

    def __init__(self, seed, torch, exact):
        rng = self.rng = seeded_rng(f"{seed} {exact}")
        batches = [LANES, 2 * LANES, 3 * LANES, 2 * LANES - 1, 3 * LANES - 2]
        h, w = sides = [int(n) for n in rng.integers(7, 20, 2)]
        c = channels = int(rng.choice([1, 3, 8, 13, 20]))
        layers = []
        for _ in range(int(rng.integers(1, 3 if exact else 4))):
            r, s, stride_h, stride_w, pad_h, pad_w, dilate_h, dilate_w = self.window(exact)
            out = output_side(h, r, stride_h, pad_h, dilate_h), output_side(w, s, stride_w, pad_w, dilate_w)
            if min(out) < 1:
                continue
            h, w = out
            filters = int(rng.choice([1, 4, 9, 16, 33]))
            options = (stride_h, stride_w), (pad_h, pad_w), (dilate_h, dilate_w)
            layers.append(("Conv2d", (c, filters, (r, s), *options)))
            c = filters
            layers.append(("ReLU" if exact else str(rng.choice(ACTIVATIONS)), ()))
            kind = rng.choice(["none", "even", "overlapping"])
            if kind != "none" and min(h, w) >= 3:
                kernel, stride, padding = (2, 2, 0) if kind == "even" else (3, 2, 1)
                layers.append(("MaxPool2d" if exact else "AvgPool2d", (kernel, stride, padding)))
                h, w = (output_side(n, kernel, stride, padding) for n in (h, w))
        if not layers or rng.integers(3) == 0:
            layers.append(("Conv2d", (c, 5, 1)))  # not in lanes: the network's output
        else:
            layers += [("Flatten", ()), ("Linear", (c * h * w, 5))]
        self.specification = layers
        self.x = self.values((int(rng.choice(batches)), channels, *sides), exact)
        self.make(torch, exact)

    def make(self, torch, exact):
        self.ours, self.theirs = build(self.specification), build(self.specification, torch.nn).double()
        for ours, theirs in zip(self.ours, self.theirs, strict=True):
            for name, p in ours.parameters().items():
                p.data[...] = integers(self.rng, p.data.shape, -2, 2) if exact else p.data
                getattr(theirs, name).data[...] = torch.from_numpy(np.float64(p.data))

    def window(self, exact):
        """Kernel, stride, padding and dilation: one in two as Winograd's algorithm takes them, not if exact."""
        sizes, strides, paddings = self.rng.integers(1, 6, 2), self.rng.integers(1, 4, 2), self.rng.integers(0, 3, 2)
        dilations = self.rng.integers(1, 3, 2)
        if not exact and self.rng.integers(2):
            size = int(self.rng.choice([3, 5]))
            sizes, strides, dilations = (size, size), (1, 1), (1, 1)
        elif exact and tuple(sizes) in ((3, 3), (5, 5)):
            strides = strides + 1
        return [int(n) for n in (*sizes, *strides, *paddings, *dilations)]

    def values(self, shape, exact):
        return integers(self.rng, shape, -2, 2) if exact else normal(self.rng, shape)

    def run(self, torch, exact):
        """(name, ours, theirs) of the output and every gradient."""
        x = torch.from_numpy(np.float64(self.x)).requires_grad_()
        want = self.theirs(x)
        y = self.ours(self.x)
        dy = self.values(y.shape, exact)
        want.backward(torch.from_numpy(np.float64(dy)))
        dx = self.ours.backward(dy)
        results = [("y", y, want.detach().numpy()), ("dE/dx", dx, x.grad.numpy())]
        theirs = dict(self.theirs.named_parameters())
        return results + [(name, grad, theirs[name].grad.numpy()) for name, grad in gradients(self.ours).items()]


@pytest.mark.parametrize("seed", range(24))
def test_whole_numbers_are_exact(seed, torch):
    network = Network(seed, torch, exact=True)
    for name, got, want in network.run(torch, exact=True):
        assert np.abs(want).max() < 2**24, "the test's own numbers would be rounded"
        np.testing.assert_array_equal(got, want, err_msg=f"{name} of {network.specification} on {network.x.shape}")


@pytest.mark.parametrize("seed", range(24))
def test_networks_agree_with_torch(seed, torch):
    network = Network(seed, torch, exact=False)
    for name, got, want in network.run(torch, exact=False):
        what = f"{name} of {network.specification} on {network.x.shape}"
        assert_close(got, want, length=2000, what=what)


# Batches that go through the first layers in tiles, the last of which is cut off.
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "rounded"])
@pytest.mark.parametrize("seed", range(8))
def test_predictions_agree_with_torch(seed, exact, torch):
    network = Network(f"predict {seed}", torch, exact)
    x = network.values((int(network.rng.integers(70, 200)), *network.x.shape[1:]), exact)
    want = network.theirs(torch.from_numpy(np.float64(x))).detach().numpy()
    got = network.ours.predict(x, batch_size=150)
    if exact:
        np.testing.assert_array_equal(got, want)
    else:
        assert_close(got, want, length=2000, what=str(network.specification))


# Of the largest entry. On normally distributed numbers 7e-7 was measured for 8 channels, 2e-6 for 64 and 3.5e-6 for
# 256; direct sums have 3e-7, and for dE/dW, over all pixels, as much as these.
WINOGRAD_BOUND = 5e-6


@pytest.mark.parametrize("rest", [[("Flatten", ())], []], ids=["in a network", "alone"])
@pytest.mark.parametrize("channels", [8, 64, 256])
@pytest.mark.parametrize("side", [8, 17])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (5, 2)])
def test_error_of_winograd_is_bounded(kernel, padding, channels, side, rest, torch):
    rng = seeded_rng(f"{channels} {side}")
    convolution = ("Conv2d", (channels, channels, kernel, 1, padding))
    check_winograd([convolution, *rest], (2 * LANES - 1, channels, side, side), rng, torch)


# All paddings that dE/dx may meet, and tiles that overhang.
@pytest.mark.parametrize("rest", [[("Flatten", ())], []], ids=["in a network", "alone"])
@pytest.mark.parametrize("padding", range(6))
def test_5x5_convolutions_agree_with_torch(padding, rest, torch):
    rng = seeded_rng(f"5x5 {padding}")
    convolution = ("Conv2d", (20, 17, 5, 1, padding))
    check_winograd([convolution, *rest], (2 * LANES - 1, 20, 11, 12 + padding), rng, torch)


def test_error_of_winograd_is_bounded_where_few_images_are_turned_at_once(torch):
    check_winograd([("Conv2d", (16, 16, 3, 1, 1))], (4 * LANES - 1, 16, 151, 149), seeded_rng("blocks"), torch)


def check_winograd(specification, shape, rng, torch):
    ours, theirs = build(specification), build(specification, torch.nn).double()
    for name, p in ours[0].parameters().items():
        p.data[...] = normal(rng, p.data.shape)
        getattr(theirs[0], name).data[...] = torch.from_numpy(np.float64(p.data))
    x = normal(rng, shape)
    wide = torch.from_numpy(np.float64(x)).requires_grad_()
    want = theirs(wide)
    y = ours(x)
    dy = normal(rng, y.shape)
    want.backward(torch.from_numpy(np.float64(dy)))
    dx, d_weight = ours.backward(dy), ours[0].weight.grad
    for name, got, exact in [
        ("y", y, want.detach()),
        ("dE/dx", dx, wide.grad),
        ("dE/dW", d_weight, theirs[0].weight.grad),
    ]:
        error = np.abs(got - exact.numpy()).max() / np.abs(exact.numpy()).max()
        assert error < WINOGRAD_BOUND, f"{name}: {error:.2e}"


class DepthwiseNetwork(Network):
    """A convolution of one filter a channel between two that want lanes."""

    def __init__(self, seed, torch, exact):
        rng = self.rng = seeded_rng(f"depthwise {seed} {exact}")
        c, filters = int(rng.choice([2, 7, 8, 16, 33])), int(rng.choice([1, 5, 16]))
        sides = [int(n) for n in rng.integers(5, 20, 2)]
        r, s, *rest = self.window(exact=True)
        r, s = (3, 3) if rng.integers(2) else (r, s)
        stride, padding, dilation = rest[:2], rest[2:4], rest[4:] if (r, s) != (3, 3) else [1, 1]
        stride = [min(stride)] * 2 if rng.integers(2) else stride  # one kernel is for equal strides alone
        h, w = (output_side(*of) for of in zip(sides, (r, s), stride, padding, dilation, strict=True))
        if min(h, w) < 1:
            r = s = h = w = 1
            stride, padding, dilation, (h, w) = [1, 1], [0, 0], [1, 1], sides
        window = tuple(tuple(pair) for pair in ((r, s), stride, padding, dilation))
        activation = "ReLU" if exact or rng.integers(2) else str(rng.choice(ACTIVATIONS))
        self.specification = [
            ("Conv2d", (3, c, 1)),
            ("Conv2d", (c, c, *window, c, bool(rng.integers(2)))),
            (activation, ()),
            ("Conv2d", (c, filters, 1)),
            ("Flatten", ()),
            ("Linear", (filters * h * w, 3)),
        ]
        self.x = self.values((int(rng.choice([LANES, 2 * LANES - 1, 3 * LANES])), 3, *sides), exact)
        self.make(torch, exact)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "rounded"])
@pytest.mark.parametrize("seed", range(16))
def test_depthwise_convolutions_agree_with_torch(seed, exact, torch):
    network = DepthwiseNetwork(seed, torch, exact)
    for name, got, want in network.run(torch, exact):
        what = f"{name} of {network.specification} on {network.x.shape}"
        if exact:
            assert np.abs(want).max() < 2**24, "the test's own numbers would be rounded"
            np.testing.assert_array_equal(got, want, err_msg=what)
        else:
            assert_close(got, want, length=2000, what=what)


def test_empty_lanes_change_nothing(rng):
    """A batch that leaves lanes empty gives each image what it gets in a full one."""
    net = build([("Conv2d", (3, 8, 5)), ("ReLU", ()), ("MaxPool2d", (2,)), ("Flatten", ()), ("Linear", (8 * 36, 4))])
    x = normal(rng, (3 * LANES, 3, 16, 16))
    full = net(x)
    assert_close(net(x[: 3 * LANES - 1]), full[:-1], what="y")
    dy = normal(rng, full.shape)
    dy[-1] = 0
    net.backward(dy[:-1])
    some = gradients(net)
    net.zero_grad()
    net(x)
    net.backward(dy)
    for name, grad in gradients(net).items():
        assert_close(some[name], grad, length=100, what=name)


@pytest.mark.parametrize("pool", [(2,), (2, 1), (2, 2, 1), (2, 3), (3, 2, 1), (3, 1)], ids=str)
def test_max_pooling_is_that_of_the_layer_alone(rng, pool):
    """Of whole numbers, so that windows hold equals, and NaN. What a network gives out is in no lanes: so Flatten."""
    x = rng.integers(-2, 3, (2 * LANES - 1, 2, 10, 11)).astype(np.float32)
    x[3, 1, 4, 5] = np.nan
    net = build([("Conv2d", (2, 3, 3)), ("MaxPool2d", pool), ("Flatten", ())])
    net.load_state_dict({name: rng.integers(-1, 2, v.shape).astype(np.float32) for name, v in net.state_dict().items()})
    y = net(x)
    inside = net[1].indices
    predicted = net.eval()(x)
    alone = dn.nn.MaxPool2d(*pool)
    want = alone(net[0](x))
    np.testing.assert_array_equal(y.reshape(want.shape), want)
    np.testing.assert_array_equal(predicted.reshape(want.shape), want)
    np.testing.assert_array_equal(inside, alone.indices)


@pytest.mark.parametrize("channels", [1, 5, 40])
@pytest.mark.parametrize("activation", ["ReLU", "GELU"])
def test_means_of_images_in_lanes(rng, channels, activation, torch):
    """Of a batch that leaves lanes empty; PyTorch has the layer as AdaptiveAvgPool2d."""
    ours = build([("Conv2d", (3, channels, 3)), (activation, ()), ("GlobalAvgPool2d", ()), ("Linear", (channels, 4))])
    conv, linear = torch.nn.Conv2d(3, channels, 3), torch.nn.Linear(channels, 4)
    pool = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    theirs = torch.nn.Sequential(conv, getattr(torch.nn, activation)(), *pool, linear).double()
    for layer, twin in ((ours[0], conv), (ours[3], linear)):
        for name, p in layer.parameters().items():
            getattr(twin, name).data[...] = torch.from_numpy(np.float64(p.data))
    x = normal(rng, (2 * LANES - 1, 3, 12, 9))
    wide = torch.from_numpy(np.float64(x)).requires_grad_()
    want, y = theirs(wide), ours(x)
    dy = normal(rng, y.shape)
    want.backward(torch.from_numpy(np.float64(dy)))
    assert_close(y, want.detach().numpy(), length=30, what="y")
    assert_close(ours.predict(x), want.detach().numpy(), length=30, what="prediction")
    assert_close(ours.backward(dy), wide.grad.numpy(), length=30, what="dE/dx")
    assert_close(ours[0].weight.grad, conv.weight.grad.numpy(), length=1000, what="dE/dW")


def test_dropout_of_images_in_lanes(rng):
    """What is dropped forward is dropped backward, and half of all; predictions drop nothing."""
    net = build([("Conv2d", (2, 6, 3)), ("Dropout", (0.5,)), ("Flatten", ())])
    x = normal(rng, (3 * LANES - 1, 2, 14, 15))
    whole = net.predict(x)
    y = net(x)
    kept = y != 0
    assert_close(y[kept], 2 * whole[kept], length=18, what="what is kept")
    assert abs(kept.mean() - 0.5) < 4 * 0.5 / np.sqrt(kept.size)
    net.backward(np.ones_like(y))
    per_channel = kept.reshape(len(x), 6, -1).sum(axis=(0, 2))
    np.testing.assert_allclose(net[0].bias.grad, 2.0 * per_channel, rtol=1e-6)
    assert not np.array_equal(net(x) != 0, kept)


@pytest.mark.parametrize("isa", dn.available_isas())
def test_lanes_on(isa):
    """The tests above, in a process where this instruction set is forced."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "not lanes_on"]
    result = subprocess.run(
        [*command, "test_lanes.py"],
        cwd=HERE,
        env={**os.environ, "DEEPNET_ISA": isa},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
