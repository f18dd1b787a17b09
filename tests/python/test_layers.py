"""Every layer on every shape of cases.py: forward, dE/dx and dE/dW against the definition and against PyTorch."""

import numpy as np
import pytest

import cases
import deepnet as dn
from checks import assert_close, assert_same_bits, gradients, normal, seeded_rng, weights
from deepnet import _core, nn

every_case = pytest.mark.parametrize("case", cases.CASES, ids=str)


def run(case):
    """The layer, x, y, dE/dy and dE/dx of one forward and backward on seeded numbers."""
    rng, layer = seeded_rng(case), case.build()
    x = normal(rng, case.shape)
    y = layer(x)
    dy = normal(rng, y.shape)
    return layer, x, y, dy, layer.backward(dy)


def test_every_layer_has_a_row_of_twenty_shapes():
    kinds = [kind for kind in vars(nn).values() if isinstance(kind, type) and issubclass(kind, nn.Layer)]
    # Cells take states beside their input: they have tests of their own, and so has what unrolls them.
    names = {kind.__name__ for kind in kinds if not issubclass(kind, (_core.RecurrentCell, nn.Recurrent))}
    assert names - {"Layer", "Sequential"} == {row.layer for row in cases.ROWS}
    for row in cases.ROWS:
        assert len({str(case) for case in cases.cases_of(row)}) >= 20, row.layer


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # PyTorch may copy: its own affair
@every_case
def test_agrees_with_pytorch(case, torch):
    """PyTorch computes in float64, so that only this library's rounding is measured."""
    layer, x, y, dy, dx = run(case)
    module = case.row.torch_module(torch, case.arguments).train(case.row.training)
    module.load_state_dict({name: torch.from_numpy(w) for name, w in layer.state_dict().items()}, strict=True)
    module.double()
    x_t = torch.from_numpy(x).double().requires_grad_()
    y_t = module(x_t)
    y_t.backward(torch.from_numpy(dy).double())

    lengths = case.lengths(y.shape)
    assert_close(y, y_t.detach().numpy(), lengths.forward, "y")
    assert_close(dx, x_t.grad.numpy(), lengths.dx, "dE/dx")
    for name, p in module.named_parameters():
        assert_close(layer.parameters()[name].grad, p.grad.numpy(), lengths.parameters, f"dE/d{name}")


@pytest.mark.parametrize(("rows", "i", "o"), [(300_000, 3, 2), (300_000, 1, 40), (1, 300_000, 5), (2, 300_000, 1)])
def test_long_sums_of_equal_terms_stay_accurate(rows, i, o, rng):
    """One running float sum of n positive terms is off by up to n 2^-24 of itself: 1 % where n is some 10^5."""
    layer = nn.Linear(i, o)
    row, weight = 0.1 + rng.random(i).astype(np.float32), 0.1 + rng.random((o, i)).astype(np.float32)
    layer.load_state_dict({"weight": weight, "bias": np.zeros(o, np.float32)})
    x, dy = np.tile(row, (rows, 1)), np.full((rows, o), 0.3, np.float32)
    y = layer(x)
    np.testing.assert_allclose(y, np.float64(x) @ np.float64(weight).T, rtol=3e-5)
    for passes in (1, 2):  # the second is added to the first
        layer.backward(dy)
        dw, db = (layer.parameters()[name].grad for name in ("weight", "bias"))
        np.testing.assert_allclose(dw, passes * np.float64(dy).T @ np.float64(x), rtol=3e-5)
        np.testing.assert_allclose(db, passes * np.float64(dy).sum(0), rtol=3e-5)


@pytest.mark.parametrize(
    ("channels", "shape", "stride"),
    [
        (1, (7, 8), 100_000),
        (6, (7, 8), 100_000),
        (6, (7, 1), (3, 2)),
        (6, (1, 9), (100_000, 2)),
        (6, (9, 2), (2, 100_000)),
    ],
)
def test_conv_stride_beyond_the_image(channels, shape, stride, torch, rng):
    """No work, time or memory for steps that no cell is at; of several channels, each has a kernel of its own."""
    layer = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels)
    x = normal(rng, (2, channels, *shape))
    y = layer(x)
    dy = normal(rng, y.shape)
    dx = layer.backward(dy)
    x_t = torch.from_numpy(x).double().requires_grad_()
    w_t, b_t = (torch.from_numpy(p.data).double().requires_grad_() for p in layer.parameters().values())
    y_t = torch.nn.functional.conv2d(x_t, w_t, b_t, stride=stride, padding=1, groups=channels)
    y_t.backward(torch.from_numpy(dy).double())
    assert_close(y, y_t.detach().numpy(), 9, "y")
    assert_close(dx, x_t.grad.numpy(), 9, "dE/dx")
    assert_close(layer.parameters()["weight"].grad, w_t.grad.numpy(), dy.size, "dE/dweight")


@every_case
def test_agrees_with_definition(case):
    """Forward element by element; backward along a random direction v of input and weights together:
    dE/d(x, W) . v against the central difference of E = sum(dy * reference), in float64."""
    layer, x, y, dy, dx = run(case)
    state = weights(layer)
    assert_close(y, case.reference(x, state), case.lengths(y.shape).forward, "y")

    rng, step = seeded_rng(f"direction {case}"), 1e-6
    v_x, v_w = rng.standard_normal(x.shape), {name: rng.standard_normal(w.shape) for name, w in state.items()}

    def error(t):
        moved = {name: np.float64(w) + t * v_w[name] for name, w in state.items()}
        return np.sum(dy * case.reference(np.float64(x) + t * v_x, moved))

    terms = [(dx * v_x).ravel(), *[(g * v_w[name]).ravel() for name, g in gradients(layer).items()]]
    terms = np.concatenate(terms)
    difference = (error(step) - error(-step)) / (2 * step)
    # Independent errors of the terms' size; 1e-7 covers the difference itself.
    scale = np.linalg.norm(terms) + np.linalg.norm(dy) * np.linalg.norm(y) * 1e-3
    assert abs(terms.sum() - difference) <= 1e-5 * scale + 1e-7, (terms.sum(), difference)


@pytest.mark.parametrize("row", cases.ROWS, ids=lambda row: f"{row.layer}{row.inputs[0][1] or ''}")
def test_gradcheck_passes(row):
    small = [case for case in cases.cases_of(row) if np.prod(case.shape) <= 200][:3]
    assert small
    for case in small:
        dn.gradcheck(case.build(), normal(seeded_rng(case), case.shape))


BAD_SHAPES = [(row, shape) for row in cases.ROWS for shape in row.bad]


@pytest.mark.parametrize(("row", "shape"), BAD_SHAPES, ids=[f"{row.layer}-{shape}" for row, shape in BAD_SHAPES])
def test_bad_shape_is_refused(row, shape):
    layer = cases.cases_of(row)[0].build()
    with pytest.raises(dn.ShapeError) as info:
        layer(np.zeros(shape, np.float32))
    message = str(info.value)
    assert message.startswith(f"[{row.layer}]")
    assert "expected" in message
    assert f"{shape}" in message


# --- parameters ------------------------------------------------------------------------------------------------------

with_parameters = pytest.mark.parametrize(
    "case", [case for row in (cases.LINEAR, cases.CONV2D, *cases.RECURRENT) for case in cases.cases_of(row)], ids=str
)


@with_parameters
def test_state_dict_is_pytorchs(case, torch):
    """Names, order, shapes and dtype; and PyTorch's weights come in unchanged."""
    layer, module = case.build(), case.row.torch_module(torch, case.arguments)
    theirs = {name: w.numpy() for name, w in module.state_dict().items()}
    ours = layer.state_dict()
    assert list(ours) == list(theirs) == list(layer.parameters())
    assert [w.shape for w in ours.values()] == [w.shape for w in theirs.values()]

    layer.load_state_dict(theirs)
    for name, w in theirs.items():
        assert_same_bits(layer.state_dict()[name], w, name)
        assert_same_bits(layer.parameters()[name].data, w, name)


def test_network_exchanges_weights_with_pytorch(torch, rng):
    layers = [("Conv2d", (1, 4, 3)), ("ReLU", ()), ("Flatten", ()), ("Linear", (4 * 6 * 6, 10))]
    net = nn.Sequential(*[getattr(nn, name)(*arguments) for name, arguments in layers])
    module = torch.nn.Sequential(*[getattr(torch.nn, name)(*arguments) for name, arguments in layers])
    assert list(net.state_dict()) == list(module.state_dict()) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    net.load_state_dict({name: w.numpy() for name, w in module.state_dict().items()})
    x = normal(rng, (5, 1, 8, 8))
    assert_close(net(x), module(torch.from_numpy(x)).detach().numpy(), 144)


def test_initial_weights_are_distributed_as_pytorchs(torch):
    """Uniform in +-1/sqrt(fan_in): same range, mean and variance."""
    for name, arguments in [("Linear", (400, 300)), ("Conv2d", (32, 64, 5))]:
        ours = getattr(nn, name)(*arguments).state_dict()
        theirs = getattr(torch.nn, name)(*arguments).state_dict()
        bound = (400 if name == "Linear" else 800) ** -0.5
        w = ours["weight"]
        assert np.abs(ours["bias"]).max() <= bound
        assert 0.99 * bound <= np.abs(w).max() <= bound
        assert abs(w.mean()) < 5 * bound / np.sqrt(3 * w.size)
        assert np.isclose(w.std(), theirs["weight"].numpy().std(), rtol=0.02)


def test_state_dict_is_a_copy_and_parameter_data_is_not():
    layer = nn.Linear(3, 2)
    saved = layer.state_dict()["weight"]
    layer.parameters()["weight"].data[...] = 7
    assert (saved != 7).all()
    assert (layer.state_dict()["weight"] == 7).all()
    assert np.array_equal(layer(np.ones((1, 3))) - layer.parameters()["bias"].data, [[21, 21]])


# --- what single layers promise besides ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases.cases_of(cases.MAX_POOL), ids=str)
@pytest.mark.parametrize("values", ["distinct", "ties", "constant"])
def test_max_pool_indices_are_pytorchs(case, values, torch):
    """Maxima are chosen, not computed: values and positions agree exactly; errors go to the first maximum only."""
    rng = seeded_rng(case)
    x = {"distinct": normal(rng, case.shape), "constant": np.full(case.shape, -3, np.float32)}.get(values)
    if x is None:
        x = rng.integers(0, 3, case.shape).astype(np.float32)
    layer = case.build()
    y = layer(x)
    x_t = torch.from_numpy(x).requires_grad_()
    y_t, indices = torch.nn.functional.max_pool2d(x_t, **case.arguments, return_indices=True)
    assert_same_bits(y, y_t.detach().numpy())
    assert np.array_equal(layer.indices, indices.numpy())
    dy = rng.integers(-4, 5, y.shape).astype(np.float32)
    y_t.backward(torch.from_numpy(dy))
    assert np.array_equal(layer.backward(dy), x_t.grad.numpy())


def test_max_pool_passes_nan_on_and_takes_minus_infinity(rng):
    x = normal(rng, (1, 2, 9, 21))
    x[0, 0, 4, 5] = np.nan
    layer = nn.MaxPool2d(3, stride=2, padding=1)
    padded = np.pad(x[0], ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    want = [[padded[c, i : i + 3, j : j + 3].max() for i in range(0, 9, 2) for j in range(0, 21, 2)] for c in (0, 1)]
    assert np.array_equal(layer(x).reshape(2, -1), want, equal_nan=True)

    x[:] = -np.inf
    assert (layer(x) == -np.inf).all()
    assert layer.indices[0, 0, 0, 0] == 0
    assert layer.indices[0, 0, 1, 1] == 1 * 21 + 1


EXTREMES = [0.0, -0.0, 1e-30, -1e-30, 20.0, -20.0, 88.0, -88.0, 90.0, -90.0, 105.0, -105.0, 1e4, -1e4, 3e38, -3e38]


@pytest.mark.parametrize("name", sorted({row.layer for row in cases.ACTIVATIONS}))
def test_activation_at_extremes(name, torch):
    """No overflow anywhere, forward and backward; NaN stays NaN."""
    x = np.array([EXTREMES], np.float32)
    layer, module = getattr(nn, name)(), getattr(torch.nn, name)()
    x_t = torch.from_numpy(x).double().requires_grad_()
    y_t = module(x_t)
    y_t.backward(torch.ones_like(y_t))
    y, dx = layer(x), layer.backward(np.ones_like(x))
    tiny = 200 * np.finfo(np.float32).tiny  # a factor of SiLU and GELU below tiny is flushed to zero, x is up to 105
    np.testing.assert_allclose(y, y_t.detach().numpy(), rtol=2e-6, atol=tiny)
    np.testing.assert_allclose(dx, x_t.grad.numpy(), rtol=1e-5, atol=1.3e-6)
    for column in range(40):  # every place in a vector and its tail
        x = np.ones((1, 40), np.float32)
        x[0, column] = np.nan
        assert np.isnan(layer(x)).tolist() == np.isnan(x).tolist()


@pytest.mark.parametrize("name", ["ReLU", "Sigmoid", "Tanh", "Softplus", "LeakyReLU", "ELU"])
def test_activation_at_infinity(name, torch):
    x = np.array([[np.inf, -np.inf, 1, -1, np.inf]], np.float32)
    want = getattr(torch.nn, name)()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(getattr(nn, name)()(x), want, rtol=2e-6)


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax"])
def test_softmax_of_large_logits(name, torch):
    x = np.array([[1e4, -1e4, 0, 9999], [1e38, -1e38, 1e38, 0], [-1e30, -1e30, -1e30, -1e30], [90, 91, 92, -90]])
    x = x.astype(np.float32)
    layer = getattr(nn, name)()
    want = getattr(torch.nn, name)(dim=-1)(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(layer(x), want, rtol=2e-6, atol=1e-37)
    assert np.isfinite(layer.backward(np.ones_like(x))).all()


def test_leaky_relu_of_negative_slope_is_right_or_refused(torch, rng):
    """Its output does not tell the sign of its input: a backward that only kept the output would be wrong."""
    x, dy = normal(rng, (4, 37)), normal(rng, (4, 37))
    try:
        layer = nn.LeakyReLU(negative_slope=-0.5)
    except ValueError:
        return
    y = layer(x)
    assert_close(y, np.where(x > 0, x, -0.5 * x))
    assert_close(layer.backward(dy), np.where(x > 0, dy, -0.5 * dy))


# --- dropout in training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1, 7), (100, 1001), (4, 8, 33, 31)], ids=str)
def test_dropout(p, shape, rng):
    layer = nn.Dropout(p)
    x, dy = np.abs(normal(rng, shape)) + 1, normal(rng, shape)
    y = layer(x)
    kept = y != 0
    np.testing.assert_allclose(y[kept], x[kept] / (1 - p), rtol=2e-7)
    deviation = np.sqrt(p * (1 - p) / x.size)
    assert abs(kept.mean() - (1 - p)) <= 5 * deviation

    want = np.where(kept, dy / (1 - p), 0)
    np.testing.assert_allclose(layer.backward(dy), want, rtol=2e-7)
    np.testing.assert_allclose(layer.backward(dy), want, rtol=2e-7)  # the same mask as often as asked


def test_dropout_masks_differ_between_calls_and_repeat_with_the_seed():
    layer, x = nn.Dropout(0.5), np.ones((10, 100), np.float32)
    dn.manual_seed(3)
    first, second = layer(x), layer(x)
    assert not np.array_equal(first, second)
    dn.manual_seed(3)
    assert_same_bits(layer(x), first)
    dn.manual_seed(4)
    assert not np.array_equal(layer(x), first)
    # Neighbours are independent: as many equal as unequal pairs, within 6 standard deviations.
    pairs = (first[:, 1:] > 0) == (first[:, :-1] > 0)
    assert abs(pairs.mean() - 0.5) < 6 * 0.5 / np.sqrt(pairs.size)


def test_dropout_of_nothing_and_of_everything(rng):
    x = normal(rng, (5, 9))
    assert np.array_equal(nn.Dropout(0.0)(x), x)
    layer = nn.Dropout(1.0)
    assert not layer(x).any()
    assert not layer.backward(x).any()
    layer = nn.Dropout(0.5)
    layer.eval()
    assert np.array_equal(layer(x), x)
    assert np.array_equal(layer.backward(x), x)
