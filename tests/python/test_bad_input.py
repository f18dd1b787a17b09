"""Wrong input is refused with an error that says what was expected and what came; odd input that is right works."""

import numpy as np
import pytest

import deepnet as dn
from checks import assert_same_bits, normal, weights
from deepnet import nn, optim


def zeros(*shape):
    return np.zeros(shape, np.float32)


def small_net():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def trainer(net=None, loss=None):
    return dn.Trainer(net or small_net(), loss or nn.CrossEntropyLoss(), optim.SGD(lr=0.1))


def fit(x, y, net=None, **options):
    options = {"loss": nn.CrossEntropyLoss(), "optimizer": optim.SGD(lr=0.1), "progress": False, **options}
    return (net or small_net()).fit(x, y, **options)


def back(layer, x_shape, dy_shape):
    """A backward with an error of this shape after a forward of an input of that."""
    layer(zeros(*x_shape))
    return layer.backward(zeros(*dy_shape))


BIG = 2**40
CONV_INPUT = "(N, 3, H, W)"

# name -> (attempt, exception, what the message must contain beside "expected" and "got")
SHAPES_AND_SIZES = {
    # Inputs
    "conv: channels": (lambda: nn.Conv2d(3, 4, 3)(zeros(8, 1, 28, 28)), dn.ShapeError, ["[Conv2d]", CONV_INPUT]),
    "conv: three axes": (lambda: nn.Conv2d(3, 4, 3)(zeros(3, 8, 8)), dn.ShapeError, ["[Conv2d]", "(3, 8, 8)"]),
    "conv: five axes": (lambda: nn.Conv2d(3, 4, 3)(zeros(1, 1, 3, 8, 8)), dn.ShapeError, ["[Conv2d]", CONV_INPUT]),
    "conv: no axes": (lambda: nn.Conv2d(3, 4, 3)(np.float32(1)), dn.ShapeError, ["[Conv2d]"]),
    "conv: NHWC": (lambda: nn.Conv2d(3, 4, 3)(zeros(1, 8, 8, 3)), dn.ShapeError, ["[Conv2d]", "(1, 8, 8, 3)"]),
    "conv: kernel too large": (lambda: nn.Conv2d(1, 1, 5)(zeros(1, 1, 4, 9)), dn.ShapeError, ["[Conv2d]"]),
    "conv: padded, too small": (lambda: nn.Conv2d(1, 1, 9, padding=1)(zeros(1, 1, 6, 6)), dn.ShapeError, ["[Conv2d]"]),
    "conv: dilated": (lambda: nn.Conv2d(1, 1, 3, dilation=4)(zeros(1, 1, 8, 9)), dn.ShapeError, ["[Conv2d]"]),
    "conv: empty image": (lambda: nn.Conv2d(1, 1, 1)(zeros(1, 1, 0, 5)), dn.ShapeError, ["[Conv2d]"]),
    "linear: features": (lambda: nn.Linear(4, 2)(zeros(8, 5)), dn.ShapeError, ["[Linear]", "(8, 5)", "4"]),
    "linear: no axes": (lambda: nn.Linear(1, 2)(np.float32(1)), dn.ShapeError, ["[Linear]"]),
    "maxpool: three axes": (lambda: nn.MaxPool2d(2)(zeros(3, 8, 8)), dn.ShapeError, ["[MaxPool2d]"]),
    "maxpool: kernel too large": (lambda: nn.MaxPool2d(3)(zeros(1, 1, 2, 8)), dn.ShapeError, ["[MaxPool2d]"]),
    "avgpool: kernel too large": (lambda: nn.AvgPool2d((1, 9))(zeros(1, 1, 8, 8)), dn.ShapeError, ["[AvgPool2d]"]),
    "globalpool: two axes": (lambda: nn.GlobalAvgPool2d()(zeros(8, 8)), dn.ShapeError, ["[GlobalAvgPool2d]"]),
    "globalpool: empty image": (lambda: nn.GlobalAvgPool2d()(zeros(1, 2, 0, 0)), dn.ShapeError, ["[GlobalAvgPool2d]"]),
    "softmax: axis": (lambda: nn.Softmax(axis=2)(zeros(3, 4)), ValueError, ["[Softmax]", "2"]),
    "softmax: negative axis": (lambda: nn.Softmax(axis=-3)(zeros(3, 4)), ValueError, ["[Softmax]", "-3"]),
    "log softmax: axis": (lambda: nn.LogSoftmax(axis=1)(zeros(3)), ValueError, ["[LogSoftmax]"]),
    "flatten: no axes": (lambda: nn.Flatten()(np.float32(1)), dn.ShapeError, ["[Flatten]"]),
    "nine axes": (lambda: nn.ReLU()(zeros(1, 1, 1, 1, 1, 1, 1, 1, 1)), dn.ShapeError, []),
    "network: layers do not fit": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 2))(zeros(2, 1, 4, 4)), dn.ShapeError, ["[Linear]", "(2, 16)"]
    ),
    "predict: features": (lambda: small_net().predict(zeros(8, 5)), dn.ShapeError, ["[Linear]"]),
    # Constructors
    "conv: stride 0": (lambda: nn.Conv2d(1, 1, 3, stride=0), ValueError, ["[Conv2d]", "stride"]),
    "conv: stride negative": (lambda: nn.Conv2d(1, 1, 3, stride=(1, -2)), ValueError, ["[Conv2d]", "stride"]),
    "conv: dilation 0": (lambda: nn.Conv2d(1, 1, 3, dilation=0), ValueError, ["[Conv2d]", "dilation"]),
    "conv: dilation negative": (lambda: nn.Conv2d(1, 1, 3, dilation=-1), ValueError, ["[Conv2d]", "dilation"]),
    "conv: groups 0": (lambda: nn.Conv2d(1, 1, 3, groups=0), ValueError, ["[Conv2d]", "groups"]),
    "conv: groups negative": (lambda: nn.Conv2d(4, 4, 3, groups=-2), ValueError, ["[Conv2d]", "groups"]),
    "conv: groups do not divide input": (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, ["[Conv2d]", "groups"]),
    "conv: groups do not divide output": (lambda: nn.Conv2d(4, 3, 3, groups=2), ValueError, ["[Conv2d]", "groups"]),
    "conv: padding negative": (lambda: nn.Conv2d(1, 1, 3, padding=-1), ValueError, ["[Conv2d]", "padding"]),
    "conv: padding unknown": (lambda: nn.Conv2d(1, 1, 3, padding="full"), ValueError, ["[Conv2d]", "padding", "full"]),
    "conv: same with stride": (lambda: nn.Conv2d(1, 1, 3, 2, padding="same"), ValueError, ["[Conv2d]", "same"]),
    "conv: kernel 0": (lambda: nn.Conv2d(1, 1, 0), ValueError, ["[Conv2d]", "kernel_size"]),
    "conv: kernel negative": (lambda: nn.Conv2d(1, 1, (3, -3)), ValueError, ["[Conv2d]", "kernel_size"]),
    "conv: no input channels": (lambda: nn.Conv2d(0, 1, 3), ValueError, ["[Conv2d]", "in_channels"]),
    "conv: output channels negative": (lambda: nn.Conv2d(1, -1, 3), ValueError, ["[Conv2d]", "out_channels"]),
    "linear: features negative": (lambda: nn.Linear(-1, 3), ValueError, ["[Linear]", "in_features"]),
    "linear: outputs negative": (lambda: nn.Linear(3, -1), ValueError, ["[Linear]", "out_features"]),
    "maxpool: kernel 0": (lambda: nn.MaxPool2d(0), ValueError, ["[MaxPool2d]", "kernel_size"]),
    "maxpool: stride 0": (lambda: nn.MaxPool2d(2, 0), ValueError, ["[MaxPool2d]", "stride"]),
    "maxpool: stride negative": (lambda: nn.MaxPool2d(2, (2, -1)), ValueError, ["[MaxPool2d]", "stride"]),
    "maxpool: padding negative": (lambda: nn.MaxPool2d(2, 2, -1), ValueError, ["[MaxPool2d]", "padding"]),
    "maxpool: padding above half": (lambda: nn.MaxPool2d(3, 1, 2), ValueError, ["[MaxPool2d]", "padding"]),
    "avgpool: padding above half": (lambda: nn.AvgPool2d(2, 1, (1, 2)), ValueError, ["[AvgPool2d]", "padding"]),
    "avgpool: stride 0": (lambda: nn.AvgPool2d(2, stride=0), ValueError, ["[AvgPool2d]", "stride"]),
    "dropout: above 1": (lambda: nn.Dropout(1.5), ValueError, ["[Dropout]", "1.5"]),
    "dropout: negative": (lambda: nn.Dropout(-0.1), ValueError, ["[Dropout]"]),
    "dropout: nan": (lambda: nn.Dropout(float("nan")), ValueError, ["[Dropout]", "nan"]),
    "softplus: beta 0": (lambda: nn.Softplus(0.0), ValueError, ["[Softplus]", "beta"]),
    "softplus: beta nan": (lambda: nn.Softplus(float("nan")), ValueError, ["[Softplus]", "beta"]),
    "sgd: lr negative": (lambda: optim.SGD(lr=-0.1), ValueError, ["[SGD]", "lr"]),
    "sgd: lr nan": (lambda: optim.SGD(lr=float("nan")), ValueError, ["[SGD]", "lr"]),
    "sgd: momentum negative": (lambda: optim.SGD(lr=0.1, momentum=-1), ValueError, ["[SGD]", "momentum"]),
    "sgd: decay negative": (lambda: optim.SGD(lr=0.1, weight_decay=-1), ValueError, ["[SGD]", "weight_decay"]),
    "sgd: nesterov without momentum": (lambda: optim.SGD(lr=0.1, nesterov=True), ValueError, ["[SGD]", "momentum"]),
    # Sizes: the error names the largest too
    "conv: kernel beyond": (lambda: nn.Conv2d(1, 1, 2**29), ValueError, ["kernel_size in 1 ... 536870911"]),
    "conv: stride beyond": (lambda: nn.Conv2d(1, 1, 3, stride=2**29), ValueError, ["stride in 1 ... 536870911"]),
    "pool: stride beyond": (lambda: nn.MaxPool2d(2, 2**29), ValueError, ["[MaxPool2d]", "stride in 1 ... 536870911"]),
    "im2col: stride beyond": (
        lambda: dn.image.im2col(zeros(1, 1, 4, 4), 3, stride=2**29), ValueError, ["stride in 1 ... 536870911"]
    ),
    "softplus: beta": (lambda: nn.Softplus(beta=1e-39), ValueError, ["[Softplus]", "beta", "1e-39"]),
    # The error that comes back
    "linear: dy shape": (lambda: back(nn.Linear(4, 2), (3, 4), (3, 4)), dn.ShapeError, ["(3, 2)"]),
    "linear: dy rows": (lambda: back(nn.Linear(4, 2), (3, 4), (1, 2)), dn.ShapeError, ["(3, 2)"]),
    "conv: dy": (lambda: back(nn.Conv2d(1, 2, 3), (1, 1, 5, 5), (1, 2, 5, 5)), dn.ShapeError, ["(1, 2, 3, 3)"]),
    "relu: dy would broadcast": (lambda: back(nn.ReLU(), (3, 4), (4,)), dn.ShapeError, ["(3, 4)"]),
    "network: dy shape": (lambda: back(small_net(), (2, 4), (2, 4)), dn.ShapeError, ["(2, 3)"]),
    # Training
    "step: label too large": (lambda: trainer().step(zeros(2, 4), [0, 3]), ValueError, ["CrossEntropyLoss", "3"]),
    "step: label negative": (lambda: trainer().step(zeros(2, 4), [0, -1]), ValueError, ["CrossEntropyLoss", "-1"]),
    "step: rows": (lambda: trainer().step(zeros(2, 4), [0, 1, 2]), dn.ShapeError, []),
    "step: features": (lambda: trainer().step(zeros(2, 5), [0, 1]), dn.ShapeError, ["[Linear]"]),
    "step: batch of 0": (lambda: trainer().step(zeros(0, 4), np.zeros(0, int)), ValueError, []),
    "step: target shape": (lambda: trainer(None, nn.MSELoss()).step(zeros(2, 4), zeros(2)), dn.ShapeError, ["MSELoss"]),
    "fit: batch of 0": (lambda: fit(zeros(0, 4), np.zeros(0, int)), ValueError, ["fit"]),
    "fit: rows": (lambda: fit(zeros(5, 4), [0, 1, 2, 0]), ValueError, ["fit", "5", "4"]),
    "fit: label too large": (lambda: fit(zeros(5, 4), [0, 1, 2, 0, 3]), ValueError, ["3"]),
    "fit: label negative": (lambda: fit(zeros(5, 4), [0, 1, 2, 0, -101]), ValueError, ["-101"]),
    "fit: features": (lambda: fit(zeros(5, 3), [0, 1, 2, 0, 1]), dn.ShapeError, ["[Linear]"]),
    "fit: epochs 0": (lambda: fit(zeros(2, 4), [0, 1], epochs=0), ValueError, ["fit", "epochs"]),
    "fit: batch_size 0": (lambda: fit(zeros(2, 4), [0, 1], batch_size=0), ValueError, ["fit", "batch_size"]),
    "fit: validation rows": (
        lambda: fit(zeros(2, 4), [0, 1], validation_data=(zeros(3, 4), [0, 1])), ValueError, ["3", "2"]
    ),
    "fit: unknown loss": (lambda: fit(zeros(2, 4), [0, 1], loss="hinge"), ValueError, ["hinge"]),
    "fit: no batches": (lambda: small_net().fit([], progress=False), ValueError, ["fit"]),
    "predict: batch_size 0": (lambda: small_net().predict(zeros(2, 4), batch_size=0), ValueError, ["batch_size"]),
    "evaluate: nothing": (lambda: small_net().evaluate(zeros(0, 4), np.zeros(0, int)), ValueError, ["evaluate"]),
    "threads: 0": (lambda: dn.set_num_threads(0), ValueError, ["0"]),
    "threads: 1025": (lambda: dn.set_num_threads(1025), ValueError, ["1024", "1025"]),
    "threads: scope of 1025": (lambda: dn.threads(1025).__enter__(), ValueError, ["1024", "1025"]),
    "threads: negative": (lambda: dn.threads(-1).__enter__(), ValueError, ["-1"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES_AND_SIZES)
def test_refused_with_expectation(name):
    attempt, error, words = SHAPES_AND_SIZES[name]
    with pytest.raises(error) as info:
        attempt()
    message = str(info.value)
    for word in ["expected", "got", *words]:
        assert word in message, message
    assert issubclass(dn.ShapeError, ValueError)


def test_message_is_the_documented_one():
    with pytest.raises(dn.ShapeError) as info:
        nn.Conv2d(3, 16, 3, padding=1)(zeros(8, 1, 28, 28))
    assert str(info.value) == "[Conv2d] expected input of shape (N, 3, H, W), got (8, 1, 28, 28)"


# --- types -----------------------------------------------------------------------------------------------------------

WRONG_ARRAYS = {
    "complex64": np.zeros((2, 4), np.complex64),
    "complex128": np.zeros((2, 4), complex),
    "objects": np.full((2, 4), None),
    "numbers as objects": np.zeros((2, 4), object),
    "str": np.full((2, 4), "1"),
    "bytes": np.full((2, 4), b"1"),
    "datetime": np.zeros((2, 4), "M8[s]"),
    "record": np.zeros((2, 4), [("a", "f4")]),
    "None": None,
    "text": "abcd",
    "dict": {"x": 1},
    "function": len,
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
@pytest.mark.parametrize("use", ["forward", "backward", "step", "predict", "target", "load_state_dict"])
def test_arrays_of_wrong_type(name, use):
    array, layer, relu = WRONG_ARRAYS[name], nn.Linear(4, 2), nn.ReLU()
    relu(zeros(2, 4))
    uses = {
        "forward": lambda: layer(array),
        "backward": lambda: relu.backward(array),
        "step": lambda: trainer().step(array, [0, 1]),
        "predict": lambda: layer.predict(array),
        "target": lambda: nn.MSELoss()(zeros(2, 4), array),
        "load_state_dict": lambda: layer.load_state_dict({"weight": array, "bias": zeros(2)}),
    }
    with pytest.raises(TypeError):
        uses[use]()


WRONG_TYPES = {
    "float channels": lambda: nn.Conv2d(3.5, 4, 3),
    "string channels": lambda: nn.Conv2d("3", 4, 3),
    "no channels": lambda: nn.Conv2d(),
    "kernel of three": lambda: nn.Conv2d(3, 4, (3, 3, 3)),
    "kernel of floats": lambda: nn.Conv2d(3, 4, (3.0, 2.5)),
    "kernel None": lambda: nn.MaxPool2d(None),
    "unknown argument": lambda: nn.Conv2d(3, 4, 3, strides=2),
    "layer in place of array": lambda: nn.ReLU()(nn.ReLU()),
    "array in place of layer": lambda: nn.Sequential(zeros(2, 2)),
    "class in place of layer": lambda: nn.Sequential(nn.ReLU),
    "two inputs for one": lambda: nn.Linear(4, 2)(zeros(2, 4), zeros(2, 4)),
    "no input": lambda: nn.Linear(4, 2)(),
    "trainer without layer": lambda: dn.Trainer(None, nn.MSELoss(), optim.SGD(lr=0.1)),
    "trainer without loss": lambda: dn.Trainer(small_net(), "mse", optim.SGD(lr=0.1)),
    "trainer without optimizer": lambda: dn.Trainer(small_net(), nn.MSELoss(), 0.1),
    "optimizer steps an array": lambda: optim.SGD(lr=0.1).step(zeros(3)),
    "lr of text": lambda: optim.SGD(lr="fast"),
    "fit with float labels": lambda: fit(zeros(2, 4), np.array([0.0, 1.0])),
    "step with float labels": lambda: trainer().step(zeros(2, 4), np.array([0.0, 1.0])),
    "fit with optimizer class": lambda: fit(zeros(2, 4), [0, 1], optimizer=optim.SGD),
    "state dict of a list": lambda: nn.Linear(4, 2).load_state_dict([zeros(2, 4), zeros(2)]),
    "threads of text": lambda: dn.set_num_threads("two"),
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_arguments_of_wrong_type(name):
    """Some of these are wrong counts as well as wrong types: ValueError will do."""
    with pytest.raises((TypeError, ValueError)):
        WRONG_TYPES[name]()


# --- sizes beyond memory or int64 ------------------------------------------------------------------------------------

HUGE = {
    "linear: product overflows": lambda: nn.Linear(2**31, 2**31),
    "linear: product overflows to 0": lambda: nn.Linear(2**32, 2**32),
    "linear: bytes overflow": lambda: nn.Linear(2**31, 2**30),
    "linear: memory": lambda: nn.Linear(2**24, 2**24),
    "conv: product overflows": lambda: nn.Conv2d(2**31, 2**31, 3),
    "conv: product overflows to 0": lambda: nn.Conv2d(2**16, 2**16, 2**16),
    "conv: kernel beyond memory": lambda: nn.Conv2d(1, 1, 2**25),
    "conv: padding": lambda: nn.Conv2d(1, 1, 3, padding=BIG)(zeros(1, 1, 8, 8)),
    "conv: padding overflows": lambda: nn.Conv2d(1, 1, 3, padding=2**63 - 1)(zeros(1, 1, 8, 8)),
    "conv: dilation": lambda: nn.Conv2d(1, 1, 3, dilation=BIG)(zeros(1, 1, 8, 8)),
    "conv: dilation overflows": lambda: nn.Conv2d(1, 1, 3, dilation=2**62)(zeros(1, 1, 8, 8)),
    "conv: dilation overflows same": lambda: nn.Conv2d(1, 1, 5, dilation=2**62, padding="same")(zeros(1, 1, 8, 8)),
    "conv: beyond int64": lambda: nn.Conv2d(1, 1, 3, stride=2**64)(zeros(1, 1, 8, 8)),
    "maxpool: kernel": lambda: nn.MaxPool2d(2**62, 1, 2**61)(zeros(1, 1, 8, 8)),
    "avgpool: kernel area overflows": lambda: nn.AvgPool2d(2**32, 1, 2**31)(zeros(1, 1, 8, 8)),
    "input seen 2^60 times": lambda: nn.ReLU()(np.broadcast_to(np.float32(0), (2**30, 2**30))),
    "lstm cell: gates overflow": lambda: nn.LSTMCell(1, 2**62),
    "gru cell: gates overflow to below 0": lambda: nn.GRUCell(1, 2**62),
    "lstm: layers": lambda: nn.LSTM(1, 1, 2**62),
    "threads": lambda: dn.set_num_threads(2**31),
}


@pytest.mark.parametrize("name", HUGE)
def test_huge_sizes(name):
    """An error at once: no wrapped product, no attempt to fill memory."""
    with pytest.raises((ValueError, MemoryError, OverflowError, TypeError)):
        HUGE[name]()


@pytest.mark.parametrize("make", [lambda: nn.Linear(2**31, 2**31), lambda: nn.Conv2d(2**31, 2**31, 3)])
def test_a_weight_beyond_addresses_names_its_layer(make):
    with pytest.raises(dn.ShapeError, match=r"^\[(Linear|Conv2d)\] a weight of shape \(2147483648, .* too large"):
        make()


def test_stride_beyond_the_image_is_a_stride(rng):
    layer = nn.Conv2d(1, 1, 3, stride=1000)
    assert layer(normal(rng, (1, 1, 8, 8))).shape == (1, 1, 1, 1)


# --- calls at the wrong time -----------------------------------------------------------------------------------------

LAYERS = {
    "Linear": (lambda: nn.Linear(4, 2), (3, 4), (3, 2)),
    "Conv2d": (lambda: nn.Conv2d(1, 2, 3), (1, 1, 5, 5), (1, 2, 3, 3)),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), (1, 1, 4, 4), (1, 1, 2, 2)),
    "ReLU": (nn.ReLU, (2, 3), (2, 3)),
    "Softmax": (nn.Softmax, (2, 3), (2, 3)),
    "Dropout": (nn.Dropout, (2, 3), (2, 3)),
    "Flatten": (nn.Flatten, (2, 3, 4), (2, 12)),
    "Sequential": (small_net, (2, 4), (2, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_backward_before_forward(name):
    make, _, dy = LAYERS[name]
    with pytest.raises(RuntimeError, match="forward"):
        make().backward(zeros(*dy))


@pytest.mark.parametrize("name", LAYERS)
def test_backward_after_a_refused_forward_is_not_wrong(name):
    make, shape, dy = LAYERS[name]
    layer = make()
    with pytest.raises((ValueError, TypeError)):
        layer(np.zeros(shape, complex))
    with pytest.raises(RuntimeError):
        layer.backward(zeros(*dy))
    layer(np.ones(shape))
    assert layer.backward(np.ones(dy)).shape == shape


def test_pool_indices_before_forward():
    with pytest.raises(RuntimeError, match="MaxPool2d"):
        _ = nn.MaxPool2d(2).indices


# --- state dicts -----------------------------------------------------------------------------------------------------

GOOD = {"weight": np.ones((2, 4), np.float32), "bias": np.ones(2, np.float32)}
BAD_STATE = {
    "missing": ({"weight": GOOD["weight"]}, (ValueError, KeyError), "bias"),
    "unexpected": ({**GOOD, "scale": zeros(2)}, (ValueError, KeyError), "scale"),
    "renamed": ({"weight": GOOD["weight"], "Bias": GOOD["bias"]}, (ValueError, KeyError), "ias"),
    "empty": ({}, (ValueError, KeyError), "weight"),
    "transposed": ({**GOOD, "weight": GOOD["weight"].T}, dn.ShapeError, "(4, 2)"),
    "bias would broadcast": ({**GOOD, "bias": zeros(1)}, dn.ShapeError, "bias"),
    "more axes": ({**GOOD, "weight": zeros(1, 2, 4)}, dn.ShapeError, "(1, 2, 4)"),
    "complex": ({**GOOD, "bias": GOOD["bias"] * 1j}, TypeError, ""),
}


@pytest.mark.parametrize("name", BAD_STATE)
def test_bad_state_dict_changes_nothing(name):
    state, error, word = BAD_STATE[name]
    layer = nn.Linear(4, 2)
    before = weights(layer)
    with pytest.raises(error) as info:
        layer.load_state_dict(state)
    assert word in str(info.value)
    for key, w in before.items():
        assert_same_bits(layer.state_dict()[key], w, key)


# --- values that are not finite --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["input", "weight of layer 2", "target"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("how", ["step", "fit"])
def test_loss_that_is_not_finite(where, value, how):
    net, x, y = small_net(), np.ones((6, 4), np.float32), np.ones((6, 3), np.float32)
    if where == "input":
        x[3, 2] = value
    elif where == "target":
        y[1, 0] = value
    else:
        net.parameters()["2.weight"].data[1, 1] = value
        net.parameters()["0.bias"].data[...] = 1e3  # so that no ReLU hides it
    before = weights(net)
    with pytest.raises(FloatingPointError) as info:
        trainer(net, nn.MSELoss()).step(x, y) if how == "step" else fit(x, y, net, loss=nn.MSELoss(), batch_size=6)
    message = str(info.value)
    named = {"input": ["input"], "weight of layer 2": ["Linear", "2"], "target": ["target"]}[where]
    assert any(word in message for word in named), message
    if how == "fit":
        assert "batch" in message
    for name, w in before.items():
        assert_same_bits(net.parameters()[name].data, w, name)


def test_fit_stops_before_the_bad_batch():
    """The weights left behind are those of the batches before it."""
    x, y = np.ones((6, 4), np.float32), np.array([0, 1, 2, 0, 1, 2])
    x[4:] = np.nan
    dn.manual_seed(0)
    net, twin = small_net(), small_net()
    twin.load_state_dict(net.state_dict())
    with pytest.raises(FloatingPointError):
        fit(x, y, net, batch_size=2, shuffle=False)
    by_hand = trainer(twin)
    by_hand.step(x[:2], y[:2])
    by_hand.step(x[2:4], y[2:4])
    for name, w in weights(twin).items():
        assert_same_bits(net.parameters()[name].data, w, name)


def test_optimizer_state_survives_a_refused_step():
    x, y = np.ones((2, 4), np.float32), [0, 1]
    net, twin = small_net(), small_net()
    twin.load_state_dict(net.state_dict())
    trainers = [dn.Trainer(n, nn.CrossEntropyLoss(), optim.SGD(lr=0.1, momentum=0.9)) for n in (net, twin)]
    trainers[0].step(x, y)
    with pytest.raises(FloatingPointError):
        trainers[0].step(x * np.nan, y)
    trainers[0].step(x, y)
    trainers[1].step(x, y)
    trainers[1].step(x, y)
    for name, w in weights(twin).items():
        assert_same_bits(net.parameters()[name].data, w, name)
