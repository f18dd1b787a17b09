"""Who keeps what alive: layers, networks, parameters, results; and that nothing is kept for good."""

import gc
import os
import sys
import weakref

import numpy as np
import pytest

import deepnet as dn
from checks import address, assert_close, assert_same_bits, normal
from deepnet import nn, optim


class Scale(nn.Layer):
    """y = factor x"""

    def __init__(self, factor):
        super().__init__()
        self.factor = np.float32(factor)

    def forward(self, x):
        return self.factor * x

    def backward(self, dy):
        return self.factor * dy


def conv_net():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 64, 10)
    )


def test_network_keeps_its_layers_alive(rng):
    x = normal(rng, (2, 4))
    net = nn.Sequential(nn.Sequential(Scale(2.0)), nn.Sequential(nn.ReLU(), Scale(0.5)))
    gc.collect()
    assert_same_bits(net(x), np.maximum(x, 0))
    assert_same_bits(net.backward(x), np.where(x > 0, x, 0))


def test_layers_die_with_their_network():
    scale = Scale(2.0)
    alive = weakref.ref(scale)
    net = nn.Sequential(nn.Linear(4, 4), scale)
    net.backward(net(np.ones((2, 4))))
    dn.Trainer(net, nn.MSELoss(), optim.SGD(lr=0.1)).step(np.ones((2, 4)), np.ones((2, 4)))
    del scale, net
    gc.collect()
    assert alive() is None, "a reference cycle through native memory keeps the layer"


def test_parameter_arrays_outlive_their_layer():
    layer = nn.Linear(300, 200)
    data, grad = layer.parameters()["weight"].data, layer.parameters()["weight"].grad
    parameter = layer.parameters()["bias"]
    copy, bias = data.copy(), parameter.data.copy()
    del layer
    gc.collect()
    rubbish = [np.full((200, 300), 7.0, np.float32) for _ in range(20)]
    assert_same_bits(data, copy)
    assert_same_bits(parameter.data, bias)
    assert not grad.any()
    assert rubbish
    data[...] = grad[...] = 1


def test_parameter_arrays_are_views():
    layer = nn.Conv2d(2, 3, 3)
    p = layer.parameters()["weight"]
    for name in ("data", "grad"):
        array = getattr(p, name)
        assert array.flags.writeable
        assert not array.flags.owndata
        assert array.dtype == np.float32
        assert array.shape == (3, 2, 3, 3)
        assert address(array) == address(getattr(layer.parameters()["weight"], name))


def test_results_are_new_arrays(rng):
    """Later calls do not write into arrays handed out before."""
    net = conv_net()
    inputs = [normal(rng, (4, 3, 16, 16)) for _ in range(3)]
    results = [net(x) for x in inputs]
    copies = [y.copy() for y in results]
    errors = [net.backward(y) for y in results]
    error_copies = [dx.copy() for dx in errors]
    net(inputs[0])
    net.backward(results[0])
    for kept, copy in zip(results + errors, copies + error_copies, strict=True):
        assert_same_bits(kept, copy)
    assert len({address(array) for array in results + errors}) == 6


def test_backward_after_the_input_is_gone(rng):
    net = nn.Linear(512, 64)
    x, dy = normal(rng, (256, 512)), normal(rng, (256, 64))
    want = np.float64(dy).T @ x
    net(x.copy())
    gc.collect()
    rubbish = [np.full((256, 512), 1e30, np.float32) for _ in range(4)]
    net.backward(dy)
    assert_close(net.parameters()["weight"].grad, want, 256)
    assert rubbish


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="ASan keeps freed memory for a while")
def test_memory_does_not_grow(rng):
    """Hundreds of calls of every kind keep less than a quarter of what one input kept by each would be."""
    net, x, labels = conv_net(), normal(rng, (16, 3, 16, 16)), rng.integers(0, 10, 16)
    trainer, loss = dn.Trainer(net, nn.CrossEntropyLoss(), optim.SGD(lr=0.01)), nn.CrossEntropyLoss()

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def work(times):
        for _ in range(times):
            loss(net(x), labels)
            net.backward(loss.backward())
            trainer.step(x, labels)
            net.predict(x)
            net.parameters()["0.weight"].data, net.state_dict()

    work(30)
    gc.collect()
    before = resident()
    work(100)
    gc.collect()
    assert resident() - before < 100 * x.nbytes / 4
