"""RNNCell, LSTMCell, GRUCell, alone: against PyTorch's cells, by differences, and what they refuse."""

import numpy as np
import pytest

import deepnet as dn
from checks import assert_close, assert_same_bits, gradients, normal, seeded_rng
from deepnet import nn

KINDS = ["RNNCell", "LSTMCell", "GRUCell"]
# (N, F, H): ones, odd widths, sizes on both sides of vectors' and tiles' widths
SIZES = [(1, 1, 1), (2, 3, 5), (7, 1, 9), (5, 17, 16), (8, 16, 33), (3, 40, 7), (33, 8, 24), (64, 31, 65)]
RELATIVE = 2e-5  # gates in a row; the largest entry counts


def states_of(kind, rng, shape):
    """h, or h and c."""
    return [normal(rng, shape) for _ in range(2 if kind == "LSTMCell" else 1)]


def packed(arrays):
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def unpacked(state):
    return list(state) if isinstance(state, tuple) else [state]


def assert_near(got, want, what):
    want = want.detach().numpy()
    assert got.shape == want.shape, what
    assert got.dtype == np.float32, what
    worst = float(np.abs(got - want).max())
    assert worst <= RELATIVE * np.abs(want).max(), f"{what} is off by {worst}"


def torch_cell(torch, cell, **options):
    """PyTorch's cell of the same class, with the same weights."""
    twin = getattr(torch.nn, cell.kind)(cell.input_size, cell.hidden_size, **options)
    twin.load_state_dict({name: torch.tensor(value) for name, value in cell.state_dict().items()})
    return twin


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", KINDS)
def test_cell_agrees_with_torch(kind, bias, size, torch):
    batch, features, hidden = size
    rng = seeded_rng((kind, bias, size))
    cell = getattr(nn, kind)(features, hidden, bias=bias)
    twin = torch_cell(torch, cell, bias=bias)
    x, states = normal(rng, (batch, features)), states_of(kind, rng, (batch, hidden))
    d_states = states_of(kind, rng, (batch, hidden))

    torch_x = torch.tensor(x, requires_grad=True)
    torch_states = [torch.tensor(state, requires_grad=True) for state in states]
    torch_new = unpacked(twin(torch_x, packed(torch_states)))
    torch.autograd.backward(torch_new, [torch.tensor(d) for d in d_states])

    new = unpacked(cell(x, packed(states)))
    dx, d_before = cell.backward(packed(d_states))
    for got, want in zip(new, torch_new, strict=True):
        assert_near(got, want, "new state")
    assert_near(dx, torch_x.grad, "dE/dx")
    for got, want in zip(unpacked(d_before), torch_states, strict=True):
        assert_near(got, want.grad, "dE/dstate")
    for name, gradient in gradients(cell).items():
        assert_near(gradient, getattr(twin, name).grad, name)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "sigmoid", "softplus"])
def test_nonlinearities(nonlinearity, rng):
    """Against the definition."""
    f = {
        "tanh": np.tanh,
        "relu": lambda a: np.maximum(a, 0),
        "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
        "softplus": lambda a: np.log1p(np.exp(a)),
    }[nonlinearity]
    cell = nn.RNNCell(4, 6, nonlinearity=nonlinearity)
    x, h = normal(rng, (5, 4)), normal(rng, (5, 6))
    w = {name: p.data.astype(np.float64) for name, p in cell.parameters().items()}
    want = f(x @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"])
    assert_close(cell(x, h), want, length=10)
    dn.gradcheck(cell, x, h)
    assert cell.nonlinearity == nonlinearity


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_without_a_state(kind, rng):
    report = dn.gradcheck(getattr(nn, kind)(3, 4), normal(rng, (2, 3)))
    assert [tensor.name for tensor in report][:2] == ["input 0", "input 1"], "the state's gradient, at zeros, too"


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, rng):
    """A pair of states may come as one array."""
    states = states_of(kind, rng, (2, 4))
    dn.gradcheck(getattr(nn, kind)(3, 4), normal(rng, (2, 3)), states[0] if len(states) == 1 else np.stack(states))


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_state_it_starts_from_zeros(kind, rng):
    cell, x = getattr(nn, kind)(3, 4), normal(rng, (2, 3))
    zeros = packed([np.zeros((2, 4))] * (2 if kind == "LSTMCell" else 1))
    for got, want in zip(unpacked(cell(x)), unpacked(cell(x, zeros)), strict=True):
        assert_same_bits(got, want)
    for got, want in zip(unpacked(cell(x, state=zeros)), unpacked(cell(x)), strict=True):
        assert_same_bits(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_backward_adds_up_and_can_be_repeated(kind, rng):
    cell, x = getattr(nn, kind)(3, 4), normal(rng, (2, 3))
    d = packed(states_of(kind, rng, (2, 4)))
    cell(x)
    first = cell.backward(d)[0]
    once = gradients(cell)
    assert_same_bits(cell.backward(d)[0], first)
    for name, gradient in gradients(cell).items():
        assert_close(gradient, 2 * once[name], what=name)


@pytest.mark.parametrize("kind", KINDS)
def test_initial_weights_and_repr(kind):
    cell = getattr(nn, kind)(30, 25)
    for name, parameter in cell.parameters().items():
        assert np.abs(parameter.data).max() <= 0.2, name  # 1/sqrt(25)
        assert np.abs(parameter.data).max() > 0.15, name
    assert list(cell.parameters()) == ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    assert (cell.input_size, cell.hidden_size) == (30, 25)
    assert repr(cell).startswith(f"{kind}(bias=True, hidden_size=25, input_size=30")
    assert cell.weight_hh.shape[1] == 25
    assert getattr(nn, kind)(3, 2, bias=False).bias_ih is None


def cell_called(kind, *arguments, **options):
    return lambda: getattr(nn, kind)(3, 4)(*arguments, **options)


def zeros(*shape):
    return np.zeros(shape, np.float32)


def lstm_backward(d_state):
    cell = nn.LSTMCell(3, 4)
    cell(zeros(2, 3))
    return cell.backward(d_state)


BAD = {
    "features": (cell_called("GRUCell", zeros(2, 5)), dn.ShapeError, ["[GRUCell]", "(N, 3)", "(2, 5)"]),
    "rank": (cell_called("LSTMCell", zeros(2, 7, 3)), dn.ShapeError, ["[LSTMCell]", "(N, 3)", "(2, 7, 3)"]),
    "no axes": (cell_called("RNNCell", np.float32(1)), dn.ShapeError, ["[RNNCell]"]),
    "state's batch": (cell_called("RNNCell", zeros(2, 3), zeros(3, 4)), dn.ShapeError, ["(2, 4)", "(3, 4)"]),
    "state's width": (cell_called("GRUCell", zeros(2, 3), zeros(2, 5)), dn.ShapeError, ["(2, 4)", "(2, 5)"]),
    "one state of two": (cell_called("LSTMCell", zeros(2, 3), zeros(3, 4)), TypeError, ["[LSTMCell]", "2 arrays"]),
    "no sequence": (cell_called("LSTMCell", zeros(2, 3), 5), TypeError, ["[LSTMCell]", "2 arrays", "int"]),
    "widths of two": (
        cell_called("LSTMCell", zeros(2, 3), (zeros(2, 4), zeros(2, 5))),
        dn.ShapeError,
        ["[LSTMCell]", "(2, 5)"],
    ),
    "three arguments": (cell_called("RNNCell", zeros(2, 3), zeros(2, 4), zeros(2, 4)), TypeError, ["[RNNCell]", "3"]),
    "state twice": (cell_called("RNNCell", zeros(2, 3), zeros(2, 4), state=zeros(2, 4)), TypeError, ["[RNNCell]"]),
    "nothing": (cell_called("RNNCell"), TypeError, ["[RNNCell]", "0"]),
    "mask": (cell_called("RNNCell", zeros(2, 3), mask=zeros(2, 3)), TypeError, ["[RNNCell]", "mask"]),
    "complex": (cell_called("RNNCell", zeros(2, 3) * 1j), TypeError, ["[RNNCell]", "complex"]),
    "input_size": (lambda: nn.RNNCell(0, 4), ValueError, ["[RNNCell]", "input_size"]),
    "hidden_size": (lambda: nn.LSTMCell(3, -1), ValueError, ["[LSTMCell]", "hidden_size", "-1"]),
    "nonlinearity": (lambda: nn.RNNCell(3, 4, nonlinearity="cos"), ValueError, ["[RNNCell]", "cos", "softplus"]),
    "backward: one of two": (lambda: lstm_backward(zeros(2, 4)[:1]), TypeError, ["LSTMCell.backward", "2 arrays"]),
    "in a Sequential": (lambda: nn.Sequential(nn.GRUCell(3, 4)), ValueError, ["[Sequential]", "GRUCell"]),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name):
    attempt, error, words = BAD[name]
    with pytest.raises(error) as info:
        attempt()
    for word in [*words, "expected"]:
        assert word in str(info.value)


def test_backward_before_forward():
    with pytest.raises(RuntimeError, match="GRUCell"):
        nn.GRUCell(3, 4).backward(np.zeros((2, 4)))


def test_state_for_a_layer_that_has_none():
    with pytest.raises(TypeError, match=r"\[Linear\] expected no state"):
        nn.Linear(3, 4)(np.zeros((2, 3)), state=np.zeros((2, 4)))
