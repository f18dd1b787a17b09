"""Input that is unusual but right works: any strides, byte order, alignment, real type, and batches of nothing."""

import numpy as np
import pytest

import cases
import deepnet as dn
from checks import assert_same_bits, normal
from deepnet import nn, optim


def zeros(*shape):
    return np.zeros(shape, np.float32)


def misaligned(x):
    raw = np.empty(x.nbytes + 1, np.uint8)[1:]
    view = raw.view(x.dtype).reshape(x.shape)
    view[...] = x
    assert not view.flags.aligned
    return view


def readonly(x):
    x = x.copy()
    x.flags.writeable = False
    return x


VIEWS = {
    "Fortran order": np.asfortranarray,
    "every second": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "negative strides": lambda x: np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1],
    "byte-swapped": lambda x: x.astype(">f4"),
    "byte-swapped float64": lambda x: x.astype(">f8"),
    "misaligned": misaligned,
    "read-only": readonly,
    "memory map": lambda x: x.view(np.memmap),
    "float16": lambda x: x.astype(np.float16),
    "float64": lambda x: x.astype(np.float64),
    "long double": lambda x: x.astype(np.longdouble),
    **{f"{u}int{bits}": lambda x, t=f"{u}int{bits}": x.astype(t) for u in ("", "u") for bits in (8, 16, 32, 64)},
    "bool": lambda x: x.astype(bool),
    "nested lists": lambda x: x.tolist(),
    "tuple of arrays": tuple,
    "memoryview": memoryview,
}


@pytest.mark.parametrize("view", VIEWS)
def test_any_real_array_works(view, rng):
    """The same bits as from the float32 array of the same values, forward and backward."""
    low, high = (0, 2) if view == "bool" else (0, 9) if "int" in view else (-9, 9)
    x = rng.integers(low, high, (2, 3, 6, 7)).astype(np.float32)
    dy = rng.integers(low, high, (2, 4, 6, 7)).astype(np.float32)
    plain, odd = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
    odd.load_state_dict(plain.state_dict())
    assert_same_bits(odd(VIEWS[view](x)), plain(x))
    assert_same_bits(odd.backward(VIEWS[view](dy)), plain.backward(dy))
    for name, p in plain.parameters().items():
        assert_same_bits(odd.parameters()[name].grad, p.grad, name)
    assert_same_bits(odd.predict(VIEWS[view](x)), plain.predict(x))


@pytest.mark.parametrize("view", VIEWS)
def test_training_takes_any_real_array(view, rng):
    x, labels = rng.integers(0, 2, (6, 1, 5, 4)).astype(np.float32), rng.integers(0, 3, 6)
    results = []
    for images in (x, VIEWS[view](x)):
        dn.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(12, 3))
        loss = dn.Trainer(net, nn.CrossEntropyLoss(), optim.SGD(lr=0.1)).step(images, labels)
        results.append((loss, net.state_dict()))
    assert results[0][0] == results[1][0]
    for name, w in results[0][1].items():
        assert_same_bits(results[1][1][name], w, name)


def test_contiguous_float32_is_not_changed(rng):
    x, dy = normal(rng, (5, 4)), normal(rng, (5, 4))
    kept_x, kept_dy = x.copy(), dy.copy()
    for layer in (nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Dropout(0.5), nn.Flatten(), nn.Softmax()):
        y = layer(x)
        dx = layer.backward(dy)
        assert not np.shares_memory(y, x)
        assert not np.shares_memory(dx, dy)
        y[...] = dx[...] = 1e9
        assert_same_bits(x, kept_x, "x")
        assert_same_bits(dy, kept_dy, "dy")


SHAPELESS = ["ReLU", "Sigmoid", "Tanh", "Softplus", "LeakyReLU", "ELU", "GELU", "SiLU", "Softmax", "LogSoftmax"]


@pytest.mark.parametrize("kind", SHAPELESS)
def test_what_is_written_to_the_output_does_not_reach_backward(kind, rng):
    x, dy = normal(rng, (70, 64)), normal(rng, (70, 64))
    for layers in ([], [nn.Linear(64, 64)], [nn.Tanh()]):
        net = nn.Sequential(*layers, getattr(nn, kind)())
        net(x)
        want = net.backward(dy)
        net(x)[...] = 1e9
        assert_same_bits(net.backward(dy), want, kind)


@pytest.mark.parametrize("row", cases.ROWS, ids=lambda row: row.layer)
def test_batch_of_nothing_works_in_inference(row):
    case = cases.cases_of(row)[0]
    layer = case.build()
    layer.eval()
    want = (0, *layer(zeros(*case.shape)).shape[1:])
    y = layer(zeros(0, *case.shape[1:]))
    assert y.shape == want
    assert y.dtype == np.float32
    assert layer.predict(zeros(0, *case.shape[1:])).shape == want


def test_batch_of_nothing_has_no_gradient():
    layer = nn.Conv2d(1, 2, 3)
    layer(zeros(0, 1, 5, 5))
    assert layer.backward(zeros(0, 2, 3, 3)).shape == (0, 1, 5, 5)
    assert not any(p.grad.any() for p in layer.parameters().values())


def test_sizes_as_numpy_integers_and_lists(rng):
    layer = nn.Conv2d(np.int64(3), np.int32(4), [3, 2], stride=(np.int8(1), 2))
    assert layer(normal(rng, (1, 3, 5, 5))).shape == (1, 4, 3, 2)


class Refuses:
    def __init__(self, error):
        self.error = error

    def __array__(self, dtype=None, copy=None):
        raise self.error


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_exceptions_of_objects_that_would_be_arrays_go_on(kind):
    error = kind("mine")
    with pytest.raises(kind) as info:
        nn.ReLU()(Refuses(error))
    assert info.value is error


@pytest.mark.parametrize(
    ("odd", "text"), [(Refuses(ValueError("mine")), "got a Refuses.*mine"), ([[1.0], [1.0, 2.0]], "got a list.*shape")]
)
def test_what_numpy_says_of_an_object_is_told(odd, text):
    with pytest.raises(TypeError, match=rf"\[ReLU\] expected an array, {text}"):
        nn.ReLU()(odd)


def test_numbers_too_large_for_float32_are_refused():
    with pytest.raises(ValueError, match=r"\[Linear\] expected numbers that float32 can hold.*float64"):
        nn.Linear(2, 1)(np.array([[1.0, 1e300]]))
    y = nn.ReLU()(np.array([np.inf, -np.inf, 3e38, 1e-300]))
    assert_same_bits(y, np.array([np.inf, 0, 3e38, 0], np.float32))


def test_padding_that_dwarfs_the_image():
    """Of all rows of outputs one reaches the image, with its first tap; the others lie 2^31 floats away and more."""
    layer = nn.Conv2d(1, 2, (9, 1), stride=(18000, 1), padding=(180000, 0), bias=False)
    layer.weight.data[...] = 3.0
    want = np.zeros((24, 2, 20, 800))
    want[:, :, 10] = 3.0
    np.testing.assert_array_equal(layer(np.ones((24, 1, 1, 800), np.float32)), want)
    np.testing.assert_array_equal(layer.backward(np.ones(want.shape, np.float32)), np.full((24, 1, 1, 800), 6.0))
