"""Layers written in Python: alone, in networks and in training; their arrays, their errors and their mistakes."""

import traceback
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import deepnet as dn
from checks import address, assert_close, assert_same_bits, normal, weights
from deepnet import nn, optim


class Scale(nn.Layer):
    """y = factor x, and a record of what was called with what."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor
        self.calls = []

    def forward(self, x):
        self.calls.append(("forward", x, x.shape))
        self.y = (self.factor * x).astype(np.float32)
        return self.y

    def backward(self, dy):
        self.calls.append(("backward", dy, dy.shape))
        self.dx = (self.factor * dy).astype(np.float32)
        return self.dx


class Upsample(nn.Layer):
    """Each cell twice along both axes: the output has another shape than the input."""

    def forward(self, x):
        return x.repeat(2, axis=2).repeat(2, axis=3)

    def backward(self, dy):
        n, c, h, w = dy.shape
        return dy.reshape(n, c, h // 2, 2, w // 2, 2).sum(axis=(3, 5))


def test_python_layer_alone(rng):
    layer, x = Scale(3.0), normal(rng, (2, 5))
    assert_same_bits(layer(x), 3 * x)
    assert_same_bits(layer.backward(x), 3 * x)
    assert [name for name, *_ in layer.calls] == ["forward", "backward"]
    assert layer.parameters() == {}
    assert layer.training


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_python_layer_inside_a_network(place, rng):
    """In any place: the same answers as the native net between two scalings."""
    natives = [nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)]
    scale = Scale(2.0)
    net = nn.Sequential(*natives[:place], scale, *natives[place:])
    x, dy = normal(rng, (6, 5)), normal(rng, (6, 3))
    y, dx = net(x), net.backward(dy)
    assert [name for name, *_ in scale.calls] == ["forward", "backward"]
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for _, array, _ in scale.calls)

    value = x
    layers = [*natives[:place], Scale(2.0), *natives[place:]]
    for layer in layers:
        value = layer(value)
        layer.zero_grad()
    assert_close(y, value, 10)
    error = dy
    for layer in reversed(layers):
        error = layer.backward(error)
    assert_close(dx, error, 10)


def test_python_layer_may_change_the_shape(rng):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), Upsample(), nn.Conv2d(2, 1, 3))
    x = normal(rng, (2, 1, 6, 6))
    y = net(x)
    assert y.shape == (2, 1, 6, 6)
    assert net.backward(np.ones_like(y)).shape == x.shape
    assert net(normal(rng, (1, 1, 8, 5))).shape == (1, 1, 10, 4)
    dn.gradcheck(net, normal(rng, (1, 1, 5, 4)))


def test_python_layer_trains(rng):
    x, labels = normal(rng, (16, 5)), rng.integers(0, 3, 16)
    layers = [nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)]
    native, mixed = nn.Sequential(*layers), nn.Sequential(nn.Linear(5, 8), Scale(1.0), nn.ReLU(), nn.Linear(8, 3))
    mixed.load_state_dict(dict(zip(mixed.parameters(), native.state_dict().values(), strict=True)))
    trainers = [dn.Trainer(net, nn.CrossEntropyLoss(), optim.SGD(lr=0.1, momentum=0.9)) for net in (native, mixed)]
    for _ in range(5):
        a, b = [trainer.step(x, labels) for trainer in trainers]
        assert a == pytest.approx(b, rel=1e-5)
    for a, b in zip(weights(native).values(), weights(mixed).values(), strict=True):
        assert_close(a, b, 10)
    mixed.fit(x, labels, loss=nn.CrossEntropyLoss(), optimizer=optim.SGD(lr=0.1), epochs=1, progress=False)


def test_python_layer_is_called_once_a_step(rng):
    """Also where the batch size changes, and where the output's shape was not known before."""
    layer = Scale(1.0)
    net = nn.Sequential(nn.Linear(5, 8), layer, nn.Linear(8, 3))
    trainer = dn.Trainer(net, nn.CrossEntropyLoss(), optim.SGD(lr=0.1))
    for n in (4, 4, 7, 1, 4, 7):
        layer.calls.clear()
        trainer.step(normal(rng, (n, 5)), rng.integers(0, 3, n))
        assert [(name, shape) for name, _, shape in layer.calls] == [("forward", (n, 8)), ("backward", (n, 8))]
    layer.calls.clear()
    net.predict(normal(rng, (10, 5)), batch_size=4)
    assert [shape for _, _, shape in layer.calls] == [(4, 8), (4, 8), (2, 8)]


class Shift(nn.Layer):
    """y = x + shift, with a parameter of its own."""

    def __init__(self, features):
        super().__init__()
        self.shift = dn.Parameter(np.zeros(features))

    def forward(self, x):
        return x + self.shift.data

    def backward(self, dy):
        self.shift.grad[...] += dy.sum(axis=0)
        return dy


def test_python_layer_with_a_parameter(rng):
    """A bias in Python is trained as a native one."""
    x, labels = normal(rng, (16, 5)), rng.integers(0, 3, 16)
    native = nn.Sequential(nn.Linear(5, 3))
    mixed = nn.Sequential(nn.Linear(5, 3, bias=False), Shift(3))
    assert list(mixed.parameters()) == ["0.weight", "1.shift"]
    mixed.load_state_dict(dict(zip(mixed.parameters(), native.state_dict().values(), strict=True)))
    trainers = [dn.Trainer(net, nn.CrossEntropyLoss(), optim.SGD(lr=0.5, momentum=0.9)) for net in (native, mixed)]
    for _ in range(5):
        for trainer in trainers:
            trainer.step(x, labels)
    assert_close(weights(mixed)["1.shift"], weights(native)["0.bias"], 16)
    dn.gradcheck(mixed, x)


def test_python_layer_in_several_threads(rng):
    net = nn.Sequential(nn.Linear(5, 8), Scale(2.0), nn.Tanh())
    net.eval()
    inputs = [normal(rng, (1 + i % 3, 5)) for i in range(6)]
    answers = [net(x) for x in inputs]

    def ask(i):
        for _ in range(50):
            assert_same_bits(net.predict(inputs[i]), answers[i])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(6)))


def test_arrays_are_not_copied(rng):
    """Between two Python layers the very memory goes on; a native layer's output comes as a view of its memory."""
    first, second = Scale(2.0), Scale(3.0)
    net = nn.Sequential(first, second)
    x, dy = normal(rng, (64, 33)), normal(rng, (64, 33))
    net(x)
    net.backward(dy)
    (_, seen_x, _), (_, seen_d_first, _) = first.calls
    (_, seen_y, _), (_, seen_dy, _) = second.calls
    assert address(seen_x) == address(x), "the network's input"
    assert address(seen_y) == address(first.y), "from layer to layer"
    assert address(seen_dy) == address(dy), "the network's dE/dy"
    assert address(seen_d_first) == address(second.dx), "from layer to layer, backwards"

    after_native = Scale(1.0)
    net = nn.Sequential(nn.Linear(33, 8), after_native)
    net(x)
    assert not after_native.calls[0][1].flags.owndata


class MineError(Exception):
    """An exception that only this file knows."""


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("kind", [MineError, ValueError, FloatingPointError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("use", ["by hand", "trainer"])
def test_exceptions_arrive_unchanged(direction, kind, use, rng):
    """The very object, neither wrapped nor chained, with a traceback that ends in the layer; no weight is changed."""
    error = kind("mine", 3)

    class Raises(nn.Layer):
        def forward(self, x):
            if direction == "forward":
                raise error
            return x

        def backward(self, dy):
            raise error

    net = nn.Sequential(nn.Linear(4, 4), Raises(), nn.Linear(4, 3))
    x, before = normal(rng, (5, 4)), weights(net)
    trainer = dn.Trainer(net, nn.CrossEntropyLoss(), optim.SGD(lr=0.1))
    with pytest.raises(kind) as info:
        net.backward(net(x)) if use == "by hand" else trainer.step(x, [0, 1, 2, 0, 1])
    assert info.value is error
    assert error.args == ("mine", 3)
    assert error.__cause__ is None
    assert error.__context__ is None
    assert traceback.extract_tb(error.__traceback__)[-1].name == direction
    for name, w in before.items():
        assert_same_bits(net.parameters()[name].data, w, name)


def test_network_works_again_after_an_exception(rng):
    class Fragile(nn.Layer):
        broken = True

        def forward(self, x):
            if self.broken:
                raise MineError
            return x

        def backward(self, dy):
            return dy

    fragile, linear = Fragile(), nn.Linear(4, 3)
    net, x = nn.Sequential(fragile, linear), normal(rng, (2, 4))
    with pytest.raises(MineError):
        net(x)
    with pytest.raises(RuntimeError):
        net.backward(np.ones((2, 3)))
    fragile.broken = False
    assert_same_bits(net(x), linear(x))


BAD_RESULTS = {
    "None": lambda x: None,
    "complex": lambda x: x * 1j,
    "text": lambda x: "y",
    "wrong features": lambda x: x[:, :1],
    "too many axes": lambda x: x.reshape(1, 1, 1, 1, 1, 1, 1, 1, *x.shape),
}


@pytest.mark.parametrize("name", BAD_RESULTS)
def test_bad_results_are_refused(name):
    class Odd(nn.Layer):
        def forward(self, x):
            return BAD_RESULTS[name](x)

        def backward(self, dy):
            return dy

    net = nn.Sequential(nn.Linear(4, 4), Odd(), nn.Linear(4, 3))
    with pytest.raises((TypeError, ValueError)):
        net(np.ones((2, 4)))


@pytest.mark.parametrize("name", ["None", "complex", "wrong features"])
def test_bad_errors_are_refused(name):
    class Odd(nn.Layer):
        def forward(self, x):
            return x

        def backward(self, dy):
            return BAD_RESULTS[name](dy)

    net = nn.Sequential(nn.Linear(4, 4), Odd(), nn.Linear(4, 3))
    net(np.ones((2, 4)))
    with pytest.raises((TypeError, ValueError)):
        net.backward(np.ones((2, 3)))


def test_python_layer_may_return_odd_arrays(rng):
    class Reverse(nn.Layer):
        def forward(self, x):
            return x.astype(np.float64)[:, ::-1]

        def backward(self, dy):
            return dy.astype(np.float64)[:, ::-1]

    x = normal(rng, (3, 5))
    net = nn.Sequential(Reverse(), nn.Tanh(), Reverse())
    assert_close(net(x), np.tanh(np.float64(x)))
    assert_close(net.backward(x), x * (1 - np.tanh(np.float64(x)) ** 2))


def test_layer_without_forward_says_so():
    class Empty(nn.Layer):
        pass

    with pytest.raises((NotImplementedError, TypeError), match="forward"):
        Empty()(np.ones((2, 2)))


def test_arrays_are_read_only(rng, tmp_path):
    """Changing one in place would change the caller's array, a mapped file or what another layer's backward reads."""

    class InPlace(nn.Layer):
        def forward(self, x):
            x *= 2
            return x

        def backward(self, dy):
            return dy

    class InPlaceBack(InPlace):
        def forward(self, x):
            return x

        def backward(self, dy):
            dy *= 2
            return dy

    x = normal(rng, (4, 3))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for net in (InPlace(), nn.Sequential(InPlace()), nn.Sequential(nn.Linear(3, 3), InPlace())):
        for given in (x, mapped):
            with pytest.raises(ValueError, match="read-only"):
                net(given)
            with pytest.raises(ValueError, match="read-only"):
                net.predict(given)
    assert_same_bits(x, np.load(tmp_path / "x.npy"))
    net = nn.Sequential(nn.Linear(3, 3), InPlaceBack(), nn.Tanh())
    with pytest.raises(ValueError, match="read-only"):
        net.backward(net(x))


class Block(nn.Layer):
    """tanh(x W1^T + b1) W2^T + b2 + shift, of layers in an attribute, a list and a dict, and a parameter of its own."""

    def __init__(self, features, hidden, first=None):
        super().__init__()
        self.lin = first or nn.Linear(features, hidden)
        self.rest = [nn.Tanh(), nn.Linear(hidden, features)]
        self.shift = dn.Parameter(np.zeros(features))
        self.named = {"scale": Scale(1.0)}
        self.itself = self
        self.modes = []

    def forward(self, x):
        self.modes.append((self.training, self.lin.training))
        for layer in (self.lin, *self.rest, self.named["scale"]):
            x = layer(x)
        return x + self.shift.data

    def backward(self, dy):
        self.shift.grad[...] += dy.sum(axis=0)
        for layer in (self.named["scale"], *self.rest[::-1], self.lin):
            dy = layer.backward(dy)
        return dy


def flat(block):
    """The same network of native layers."""
    names = {"lin.weight": "0.weight", "lin.bias": "0.bias", "rest.1.weight": "2.weight", "rest.1.bias": "2.bias"}
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
    net.load_state_dict({new: block.parameters()[old].data for old, new in names.items()})
    return net, names


def test_layers_inside_a_python_layer(rng):
    block, x = Block(4, 6), normal(rng, (8, 4))
    assert list(block.parameters()) == ["shift", "lin.weight", "lin.bias", "rest.1.weight", "rest.1.bias"]
    assert block.children() == [block.lin, *block.rest, block.named["scale"]]
    assert [line.strip() for line in repr(block).splitlines()[1:4:2]] == [
        "(lin): Linear(bias=True, in_features=4, out_features=6)",
        "(rest.1): Linear(bias=True, in_features=6, out_features=4)",
    ]
    state = block.state_dict()
    block.load_state_dict({name: 2 * array for name, array in state.items()})
    assert_same_bits(block.lin.weight.data, 2 * state["lin.weight"])
    assert not block.eval().lin.training
    assert block.train().rest[1].training
    dn.gradcheck(block, x)
    dn.gradcheck(nn.Sequential(nn.Linear(4, 4), block, nn.Linear(4, 2)), x)
    block.zero_grad()
    assert not block.lin.weight.grad.any()


def test_a_layer_that_knows_its_owner(rng):
    """An attribute that has the layer inside is no child of it: nothing turns in a circle."""
    inner = Shift(3)
    net = nn.Sequential(nn.Linear(3, 3), inner)
    inner.owner = net
    assert list(inner.parameters()) == ["shift"]
    assert list(net.eval().parameters()) == ["0.weight", "0.bias", "1.shift"]
    a, b = Shift(3), Shift(3)
    a.other, b.other = b, a
    assert list(a.parameters()) == ["shift"]
    assert "Shift" in repr(a)


def test_layers_inside_a_python_layer_train(rng):
    """As the same network of native layers, and in the mode of the run."""
    block, x, y = Block(4, 6), normal(rng, (8, 4)), normal(rng, (8, 4))
    native, names = flat(block)
    block.shift.data[...] = 0
    optimizers = [optim.SGD(lr=0.1), optim.SGD(lr=0.1)]
    trainers = [dn.Trainer(net, nn.MSELoss(), opt) for net, opt in zip((block.eval(), native), optimizers, strict=True)]
    for _ in range(3):
        block.shift.data[...] = 0  # which the native network has not
        a, b = [trainer.step(x, y) for trainer in trainers]
        assert a == pytest.approx(b, rel=1e-5)
    for old, new in names.items():
        assert_close(block.parameters()[old].data, native.parameters()[new].data, 16)
    assert block.modes == [(True, True)] * 3
    assert not block.training
    assert not block.lin.training
    block.train().predict(x)
    assert block.modes[-1] == (False, False)
    assert block.lin.training


@pytest.mark.parametrize("last", [False, True])
def test_shared_with_a_layer_inside_a_python_layer(last, rng):
    """Gradients of a shared parameter add up, of the others are the step's alone, wherever the shared layer stands."""
    shared = nn.Linear(4, 4)
    block = Block(4, 4, shared)
    net = nn.Sequential(block, shared) if last else nn.Sequential(shared, block)
    x, dy = normal(rng, (5, 4)), normal(rng, (5, 4))
    trainer = dn.Trainer(net, nn.MSELoss(), optim.SGD(lr=0.0))
    for _ in range(2):
        trainer.step(x, dy)
    trained = {name: parameter.grad.copy() for name, parameter in net.parameters().items()}
    net.zero_grad()
    loss = nn.MSELoss()
    loss(net(x), dy)
    net.backward(loss.backward())
    for name, parameter in net.parameters().items():
        assert_close(trained[name], parameter.grad, 16, what=name)


def test_python_layer_in_several_threads_keeps_its_mode(rng):
    block = Block(4, 6)
    x = normal(rng, (3, 4))
    wanted = block.predict(x)
    with ThreadPoolExecutor(4) as pool:
        for y in pool.map(lambda _: block.predict(x).shape, range(200)):
            assert y == wanted.shape
    assert set(block.modes) == {(False, False)}
    assert block.training
    assert block.lin.training


@pytest.mark.parametrize("method", ["forward", "backward"])
def test_a_forgotten_return_is_named(method, rng):
    class Forgets(nn.Layer):
        def forward(self, x):
            return None if method == "forward" else x

        def backward(self, dy):
            return None

    net = nn.Sequential(nn.Linear(3, 3), Forgets())
    trainer = dn.Trainer(net, nn.MSELoss(), optim.SGD(lr=0.1))
    with pytest.raises(TypeError, match=rf"\[Forgets\] expected {method} to return an array, got None"):
        trainer.step(normal(rng, (2, 3)), normal(rng, (2, 3)))
