"""What every layer is tested on: one row a layer, with constructor arguments and input shapes.

A new layer is a new row; test_layers.py then checks its forward against `reference` and PyTorch, its dE/dx and dE/dW
against PyTorch and against differences of `reference`, its parameters' names and shapes, dn.gradcheck, and that the
`bad` shapes are refused.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import numpy as np

import reference
from deepnet import nn


class Lengths(NamedTuple):
    """How many terms add up to one element of y, dE/dx and dE/dW: what rounding errors may grow with."""

    forward: int = 1
    dx: int = 1
    parameters: int = 1


@dataclass(frozen=True)
class Row:
    layer: str  # its name in deepnet.nn
    reference: Callable  # (x, parameters, **arguments) -> y in float64
    inputs: list  # (input shape, arguments), at least 20
    bad: list  # input shapes that the first of `inputs`' arguments must refuse
    lengths: Callable = lambda x_shape, y_shape, arguments: Lengths()
    torch: Callable | None = None  # (torch, **arguments) -> module; by default torch.nn's layer of the same name
    training: bool = True

    def torch_module(self, torch, arguments):
        return self.torch(torch, **arguments) if self.torch else getattr(torch.nn, self.layer)(**arguments)


@dataclass(frozen=True)
class Case:
    row: Row = field(repr=False)
    shape: tuple
    arguments: dict

    def __str__(self):
        options = ",".join(f"{name}={value}".replace(" ", "") for name, value in self.arguments.items())
        return f"{self.row.layer}({options})-{'x'.join(map(str, self.shape))}"

    def build(self):
        layer = getattr(nn, self.row.layer)(**self.arguments)
        if not self.row.training:
            layer.eval()
        return layer

    def reference(self, x, parameters):
        """y in float64 by the definition; parameters a dict of arrays."""
        wide = {name: np.asarray(p, np.float64) for name, p in parameters.items()}
        return self.row.reference(np.asarray(x, np.float64), wide, **self.arguments)

    def lengths(self, y_shape):
        return self.row.lengths(self.shape, y_shape, self.arguments)


# --- Linear and Conv2d -----------------------------------------------------------------------------------------------


def linear(shape, out_features, **options):
    return shape, {"in_features": shape[-1], "out_features": out_features, **options}


def linear_lengths(x_shape, y_shape, arguments):
    return Lengths(x_shape[-1], y_shape[-1], prod(x_shape[:-1]))


# Sizes on both sides of 4, 8, 16, 32 and 48 in each of batch, in and out features: the widths of vectors and tiles.
LINEAR = Row(
    "Linear",
    lambda x, p, **_: reference.linear(x, p["weight"], p.get("bias")),
    [
        *[linear((n, i), o) for n, i, o in [(1, 1, 1), (1, 4, 3), (8, 4, 24), (8, 24, 3), (2, 3, 5), (5, 7, 9)]],
        *[linear((n, i), o) for n, i, o in [(7, 8, 9), (9, 7, 8), (8, 9, 7), (15, 16, 17), (17, 15, 16), (16, 17, 15)]],
        *[linear((n, i), o) for n, i, o in [(31, 32, 33), (33, 31, 32), (32, 33, 31), (13, 47, 49), (14, 49, 47)]],
        *[linear((n, i), o) for n, i, o in [(1, 1000, 10), (64, 784, 100), (3, 513, 257), (1, 257, 1025)]],
        linear((6, 300), 200, bias=False),
        linear((1, 33), 65, bias=False),
        linear((2, 5, 11), 7),
        linear((3, 4, 5, 9), 17, bias=False),
        linear((1, 1, 2), 3),
        linear((500, 10), 10),
        linear((129, 65), 1),
        linear((300, 1100), 60),
        linear((70, 1024), 66),
    ],
    bad=[(), (8, 5), (8, 0), (2, 3, 8)],
    lengths=linear_lengths,
)


def conv(shape, out_channels, kernel_size, **options):
    return shape, {"in_channels": shape[1], "out_channels": out_channels, "kernel_size": kernel_size, **options}


def conv_lengths(x_shape, y_shape, arguments):
    kernel, groups = prod(reference.pair(arguments["kernel_size"])), arguments.get("groups", 1)
    pixels = y_shape[0] * y_shape[2] * y_shape[3]
    return Lengths(x_shape[1] // groups * kernel, y_shape[1] // groups * kernel, pixels)


CONV2D = Row(
    "Conv2d",
    lambda x, p, in_channels=0, out_channels=0, kernel_size=0, bias=True, **o: reference.conv2d(
        x, p["weight"], p.get("bias"), **o
    ),
    [
        # Plain, from one cell up; output widths of 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33.
        conv((2, 3, 9, 9), 8, 3),
        conv((1, 1, 1, 1), 1, 1),
        conv((1, 1, 3, 3), 1, 3),
        conv((8, 1, 28, 28), 20, 5),
        conv((3, 2, 5, 6), 3, (2, 3)),
        conv((1, 5, 7, 7), 7, 3, padding=1),
        conv((2, 4, 8, 8), 16, 3, padding=1),
        conv((1, 3, 9, 9), 15, 3, padding=1, bias=False),
        conv((2, 7, 5, 15), 17, (1, 3), padding=(0, 1)),
        conv((1, 8, 16, 16), 32, 3, padding=1),
        conv((1, 9, 6, 17), 33, (3, 1), padding=(1, 0)),
        conv((2, 16, 4, 31), 31, 3, padding=1),
        conv((1, 3, 32, 32), 8, 5, padding=2),
        conv((1, 6, 3, 33), 5, 3, padding=1),
        # A 1x1 kernel is a matrix product; many channels; a kernel as large as the image.
        conv((2, 32, 7, 7), 64, 1),
        conv((1, 257, 5, 5), 31, 1),
        conv((1, 512, 4, 4), 129, 3, padding=1),
        # Rows of whole vectors, read where they lie; some channels at a time; of groups.
        conv((3, 20, 12, 20), 40, 1),
        conv((1, 400, 12, 28), 9, 1),
        conv((2, 10, 12, 20), 6, 1, groups=2),
        # Few images, whose dE/dW threads share.
        conv((1, 16, 24, 24), 17, 3, padding=1),
        conv((2, 64, 12, 12), 70, 3, padding=1),
        conv((1, 20, 12, 12), 50, 5),
        conv((1, 3, 30, 30), 16, 3, stride=2),
        conv((2, 65, 6, 5), 130, 3, padding=1, bias=False),
        conv((3, 11, 4, 6), 13, (4, 6)),
        # Strides, also larger than the kernel or leaving rows unread, and padding wider than the kernel.
        conv((2, 3, 11, 10), 6, 3, stride=2, padding=1),
        conv((1, 4, 13, 17), 9, 5, stride=(2, 3), padding=(2, 1)),
        conv((2, 3, 12, 12), 5, 2, stride=3),
        conv((1, 8, 15, 15), 24, 1, stride=2),
        conv((1, 2, 9, 9), 3, 7, stride=4, padding=3),
        conv((1, 1, 9, 9), 1, 3, stride=2, padding=2, bias=False),
        conv((1, 2, 4, 4), 3, 2, padding=3),
        conv((1, 2, 7, 9), 3, 3, stride=(3, 1), padding=(0, 4)),
        # Dilation.
        conv((2, 3, 13, 14), 4, 3, dilation=2),
        conv((1, 4, 17, 16), 8, 3, dilation=3, padding=3),
        conv((1, 3, 15, 12), 7, (3, 2), dilation=(2, 4), stride=2, padding=(1, 2)),
        conv((2, 2, 9, 9), 3, 3, dilation=4),
        # Groups, down to one channel each.
        conv((2, 4, 9, 9), 6, 3, groups=2),
        conv((1, 9, 8, 7), 12, 3, groups=3, padding=1, stride=2),
        conv((2, 8, 10, 9), 8, 3, groups=8, padding=1),
        conv((1, 5, 7, 7), 15, 3, groups=5, bias=False),
        conv((1, 32, 6, 6), 32, 5, groups=32, padding=2, stride=2),
        conv((1, 34, 5, 5), 66, 1, groups=2),
        conv((1, 6, 13, 13), 9, 3, groups=3, dilation=2, stride=2, padding=2),
        # "same" puts the odd cell of an even kernel below and right.
        conv((2, 3, 8, 9), 4, 3, padding="same"),
        conv((1, 2, 7, 8), 5, (2, 4), padding="same"),
        conv((1, 4, 9, 6), 6, (4, 3), padding="same", dilation=(1, 2), groups=2),
        conv((2, 3, 8, 9), 4, (3, 5), padding="valid"),
        # Many images: an image in every lane of a vector.
        conv((24, 1, 8, 8), 6, 5, padding=2),
        conv((31, 5, 9, 7), 15, 3, padding=1),
        conv((64, 4, 10, 10), 8, 3),
        conv((30, 3, 11, 12), 7, 5, stride=2, padding=2),
        conv((47, 2, 9, 8), 5, (3, 4), stride=(1, 2), dilation=(2, 1)),
        conv((24, 6, 7, 9), 9, 3, groups=3, padding=(0, 1)),
        conv((32, 20, 8, 8), 18, 5),
        conv((28, 3, 9, 9), 5, 7, padding=3, bias=False),
        conv((24, 1, 1, 8), 2, (9, 1), stride=(180, 1), padding=(1800, 0)),
    ],
    bad=[(3, 9, 9), (9, 9), (2, 3, 9), (2, 4, 9, 9), (2, 3, 2, 9), (2, 3, 9, 2), (1, 2, 3, 9, 9), (2, 3, 0, 0)],
    lengths=conv_lengths,
)


# --- pooling ---------------------------------------------------------------------------------------------------------


def pool(shape, kernel_size, stride=None, padding=0):
    return shape, {"kernel_size": kernel_size, "stride": stride, "padding": padding}


POOLS = [
    pool((2, 3, 8, 8), 2),
    pool((1, 1, 1, 1), 1),
    pool((1, 1, 2, 2), 2),
    pool((2, 3, 7, 9), 2),
    pool((1, 2, 9, 9), 3),
    pool((2, 1, 11, 10), 3, 2),
    pool((1, 3, 10, 11), 3, 2, 1),
    pool((1, 2, 12, 13), 3, 1, 1),
    pool((2, 2, 9, 6), (2, 3)),
    pool((1, 2, 9, 17), (3, 2), (2, 1)),
    pool((1, 3, 13, 9), (4, 3), (3, 2), (2, 1)),
    pool((1, 5, 15, 15), 2, 3),
    pool((1, 2, 16, 33), (1, 4), (1, 4)),
    pool((1, 2, 33, 16), (4, 1), (2, 1)),
    pool((1, 64, 5, 5), 5),
    pool((1, 2, 6, 6), 6, 1, 3),
    pool((2, 17, 14, 31), 2),
    pool((1, 3, 7, 65), 3, (1, 3), (1, 0)),
    pool((3, 2, 5, 64), 2, 2, 1),
    pool((1, 128, 4, 4), 2),
    pool((4, 20, 24, 24), 2),
    pool((1, 1, 3, 40), (3, 7), 1, (0, 3)),
]
POOL_BAD = [(8, 8), (3, 8, 8), (2, 3, 1, 8), (2, 3, 8, 1), (1, 2, 3, 8, 8), (2, 3, 8, 0)]


def pool_lengths(x_shape, y_shape, arguments):
    # A cell of x gets at most one share from each window that covers it.
    cells = prod(reference.pair(arguments["kernel_size"]))
    return Lengths(cells, cells)


MAX_POOL = Row("MaxPool2d", lambda x, p, **o: reference.max_pool2d(x, **o)[0], POOLS, POOL_BAD, lengths=pool_lengths)
AVG_POOL = Row("AvgPool2d", lambda x, p, **o: reference.avg_pool2d(x, **o), POOLS, POOL_BAD, lengths=pool_lengths)

IMAGES = [
    *[(n, c, h, w) for n in (1, 3) for c, h, w in [(1, 1, 1), (2, 3, 3), (5, 1, 7), (3, 4, 4), (17, 5, 3), (8, 8, 8)]],
    *[(1, c, h, w) for c, h, w in [(1, 15, 1), (2, 4, 4), (1, 17, 16), (3, 31, 33), (512, 2, 2), (65, 7, 7)]],
    (1, 1, 1, 64),
    (2, 10, 24, 24),
    (4, 4, 6, 5),
]

GLOBAL_AVG_POOL = Row(
    "GlobalAvgPool2d",
    lambda x, p: x.mean(axis=(2, 3)),
    [(shape, {}) for shape in IMAGES],
    bad=[(3, 3), (2, 3, 3), (1, 2, 3, 3, 3)],
    lengths=lambda x_shape, y_shape, arguments: Lengths(prod(x_shape[2:])),
    torch=lambda torch: torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()),
)

# --- nonlinearities --------------------------------------------------------------------------------------------------

SIZES = [
    *[(1, f) for f in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65)],
    *[(7,), (3, 11), (2, 3, 5), (2, 3, 5, 7), (1, 64, 8, 8), (2, 1, 1, 1, 9), (129, 33), (40, 1001)],
]


def elementwise(layer, reference, bad=(), torch=None, **arguments):
    return Row(layer, lambda x, p, **o: reference(x, **o), [(s, arguments) for s in SIZES], list(bad), torch=torch)


# PyTorch goes over to y = x where beta x > 20, which differs in float64: here the exact form all along.
SOFTPLUS = elementwise(
    "Softplus", reference.softplus, torch=lambda torch, beta=1.0: torch.nn.Softplus(beta, threshold=1e9)
)
SOFTPLUS_3 = elementwise(
    "Softplus", reference.softplus, torch=lambda torch, beta: torch.nn.Softplus(beta, threshold=1e9), beta=3.0
)

ACTIVATIONS = [
    elementwise("ReLU", lambda x: np.maximum(x, 0)),
    elementwise("Sigmoid", reference.sigmoid),
    elementwise("Tanh", np.tanh),
    SOFTPLUS,
    SOFTPLUS_3,
    elementwise("LeakyReLU", lambda x, negative_slope=0.01: np.where(x > 0, x, negative_slope * x)),
    elementwise("LeakyReLU", lambda x, negative_slope: np.where(x > 0, x, negative_slope * x), negative_slope=0.3),
    elementwise("ELU", reference.elu),
    elementwise("ELU", reference.elu, alpha=0.4),
    elementwise("GELU", reference.gelu),
    elementwise("SiLU", lambda x: x * reference.sigmoid(x)),
]

AXES = [
    *[((2, f), {}) for f in (1, 2, 3, 4, 5, 7, 8, 9, 10, 15, 16, 17, 31, 33)],
    ((64, 10), {}),
    ((1, 1000), {"axis": -1}),
    ((3, 4), {"axis": 0}),
    ((33, 17), {"axis": 0}),
    ((2, 3, 4, 5), {"axis": 1}),
    ((2, 21, 7, 9), {"axis": 1}),
    ((2, 3, 4, 5), {"axis": 2}),
    ((2, 3, 4, 5), {"axis": -4}),
    ((3, 5, 9), {"axis": -2}),
    ((1, 8, 33), {"axis": 2}),
    ((9,), {"axis": 0}),
]


def softmax_row(layer, reference):
    return Row(
        layer,
        lambda x, p, axis=-1: reference(x, axis),
        AXES,
        bad=[],
        lengths=lambda x_shape, y_shape, arguments: Lengths(*2 * [x_shape[arguments.get("axis", -1)]]),
        torch=lambda torch, axis=-1: getattr(torch.nn, layer)(dim=axis),
    )


# --- the rest --------------------------------------------------------------------------------------------------------

FLATTEN = Row(
    "Flatten",
    lambda x, p: x.reshape(len(x), -1),
    [(shape, {}) for shape in [*IMAGES, (3, 4), (2, 3, 4)]],
    bad=[()],
)

# In evaluation; what training does is random, and tested in test_layers.py by its own laws.
DROPOUT = Row("Dropout", lambda x, parameters, **_: x, [(s, {"p": 0.3}) for s in SIZES], bad=[], training=False)

# --- recurrent layers ------------------------------------------------------------------------------------------------


def recurrent(shape, hidden_size, **options):
    return shape, {"input_size": shape[-1], "hidden_size": hidden_size, **options}


BOTH = {"bidirectional": True}
LAST = {"return_sequences": False}

# (N, T, F) and H: one to three layers, one direction and both, T from 1 to 300, widths around those of vectors.
SEQUENCES = [
    *[recurrent((n, t, f), h) for n, t, f, h in [(1, 1, 1, 1), (2, 3, 4, 5), (3, 1, 5, 7), (1, 6, 3, 2)]],
    *[
        recurrent(
            (
                n,
                4,
                f,
            ),
            h,
        )
        for n, f, h in [(5, 9, 8), (4, 8, 9), (7, 15, 16), (2, 17, 15), (9, 16, 17), (3, 33, 31)]
    ],
    *[recurrent((n, 3, 6), 32) for n in (4, 13, 14, 15, 16, 17, 33)],
    *[recurrent((2, 300, 9), 13), recurrent((1, 200, 16), 32), recurrent((3, 17, 5), 65), recurrent((2, 4, 7), 257)],
    *[recurrent((3, 5, 4), 6, num_layers=2), recurrent((2, 7, 3), 33, num_layers=3)],
    *[
        recurrent((3, 5, 4), 6, **BOTH),
        recurrent((17, 6, 8), 32, num_layers=3, **BOTH),
        recurrent((2, 1, 3), 5, **BOTH),
    ],
    *[recurrent((5, 9, 11), 33, num_layers=2, bias=False, **BOTH), recurrent((2, 3, 4), 5, bias=False)],
    *[recurrent((3, 5, 4), 6, **LAST), recurrent((4, 7, 3), 20, num_layers=2, **BOTH, **LAST)],
]


def recurrent_lengths(x_shape, y_shape, arguments):
    # An error made in one step goes through all later steps and, summed up with others, into every product there.
    width = arguments["hidden_size"] * (2 if arguments.get("bidirectional") else 1)
    through = (max(x_shape[2], width) + width) * x_shape[1] * arguments.get("num_layers", 1)
    return Lengths(through, through, through * x_shape[0])


def recurrent_module(torch, name, return_sequences=True, nonlinearity="tanh", **arguments):
    """PyTorch's layer, whose output is the sequence or the last states alone; softplus and sigmoid by its functions."""
    options = {"nonlinearity": nonlinearity} if nonlinearity in ("tanh", "relu") and name == "RNN" else {}

    class Module(getattr(torch.nn, name)):
        def forward(self, x):
            if name == "RNN" and not options:
                return self.unrolled(x)
            y, state = super().forward(x)
            if return_sequences:
                return y
            h = state[0] if name == "LSTM" else state
            return torch.cat(list(h[-2:] if self.bidirectional else h[-1:]), dim=1)

        def unrolled(self, x):
            f = getattr(torch.nn.functional, nonlinearity)
            for layer in range(self.num_layers):
                w_ih, w_hh, b_ih, b_hh = [getattr(self, f"{p}_l{layer}") for p in reference.RECURRENT_PARAMETERS]
                h, y = torch.zeros(x.shape[0], self.hidden_size, dtype=x.dtype), []
                for t in range(x.shape[1]):
                    h = f(x[:, t] @ w_ih.T + b_ih + h @ w_hh.T + b_hh)
                    y.append(h)
                x = torch.stack(y, dim=1)
            return x

    return Module(batch_first=True, **arguments, **options)


def recurrent_row(layer, step, inputs):
    def run(x, parameters, input_size=0, hidden_size=0, bias=True, nonlinearity=None, **options):
        return reference.recurrent(step, x, parameters, **options)

    return Row(
        layer,
        run,
        inputs,
        bad=[(), (3, 1), (2, 3, 4), (1, 2, 3, 1), (2, 0, 1)],
        lengths=recurrent_lengths,
        torch=lambda torch, **arguments: recurrent_module(torch, layer, **arguments),
    )


def nonlinear_rnn(name):
    plain = [(shape, arguments) for shape, arguments in SEQUENCES if arguments.keys() <= {"input_size", "hidden_size"}]
    stacked = [recurrent((3, 5, 4), 6, num_layers=2), recurrent((2, 7, 3), 33, num_layers=3)]
    inputs = [(shape, {**arguments, "nonlinearity": name}) for shape, arguments in [*plain, *stacked]]
    return recurrent_row("RNN", reference.rnn_step(reference.NONLINEARITIES[name]), inputs)


RECURRENT = [
    recurrent_row("RNN", reference.rnn_step(np.tanh), SEQUENCES),
    *[nonlinear_rnn(name) for name in ("relu", "sigmoid", "softplus")],
    recurrent_row("LSTM", reference.lstm_step, SEQUENCES),
    recurrent_row("GRU", reference.gru_step, SEQUENCES),
]

ROWS = [
    LINEAR,
    CONV2D,
    MAX_POOL,
    AVG_POOL,
    GLOBAL_AVG_POOL,
    *ACTIVATIONS,
    softmax_row("Softmax", reference.softmax),
    softmax_row("LogSoftmax", reference.log_softmax),
    FLATTEN,
    DROPOUT,
    *RECURRENT,
]


def cases_of(row):
    return [Case(row, shape, arguments) for shape, arguments in row.inputs]


CASES = [case for row in ROWS for case in cases_of(row)]
