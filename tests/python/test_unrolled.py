"""nn.Recurrent, which unrolls any cell: built-in ones and cells written in Python, against PyTorch's whole layers."""

import numpy as np
import pytest

import deepnet as dn
from checks import assert_close, assert_same_bits, gradients, normal, seeded_rng
from deepnet import nn, optim

RELATIVE = 2e-5  # of the largest entry; the sums run over at most 40 steps
KINDS = ["RNN", "LSTM", "GRU"]


def assert_near(got, want, what, relative=RELATIVE):
    want = want.detach().numpy() if hasattr(want, "detach") else np.asarray(want)
    assert got.shape == want.shape, f"{what}: {got.shape}, expected {want.shape}"
    worst = float(np.abs(got - want).max())
    assert worst <= relative * max(float(np.abs(want).max()), 1e-30), f"{what} is off by {worst}"


def states_of(kind, rng, shape):
    return [normal(rng, shape) for _ in range(2 if kind == "LSTM" else 1)]


def packed(arrays):
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def unpacked(state):
    return list(state) if isinstance(state, tuple) else [state]


# --- cells in Python --------------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


class Weighted(nn.Layer):
    """Weights of PyTorch's layout for `gates` sums a unit."""

    def __init__(self, features, hidden, gates):
        super().__init__()
        rng = np.random.default_rng(7)
        self.state_size = hidden
        for name, shape in [
            ("weight_ih", (gates * hidden, features)),
            ("weight_hh", (gates * hidden, hidden)),
            ("bias_ih", (gates * hidden,)),
            ("bias_hh", (gates * hidden,)),
        ]:
            setattr(self, name, dn.Parameter(rng.uniform(-0.5, 0.5, shape)))

    def sums(self, x, h):
        a = x @ self.weight_ih.data.T + self.bias_ih.data
        return a, h @ self.weight_hh.data.T + self.bias_hh.data

    def add_gradients(self, x, h, d_a, d_b):
        """dE/dW from dE/da and dE/db; returns dE/dx and dE/dh."""
        self.weight_ih.grad += d_a.T @ x
        self.weight_hh.grad += d_b.T @ h
        self.bias_ih.grad += d_a.sum(0)
        self.bias_hh.grad += d_b.sum(0)
        return d_a @ self.weight_ih.data, d_b @ self.weight_hh.data


class PythonRNN(Weighted):
    def __init__(self, features, hidden):
        super().__init__(features, hidden, 1)

    def forward(self, x, h):
        a, b = self.sums(x, h)
        self.x, self.h, self.new = x, h, np.tanh(a + b)
        return self.new

    def backward(self, d):
        d = d * (1 - self.new**2)
        return self.add_gradients(self.x, self.h, d, d)


class PythonGRU(Weighted):
    def __init__(self, features, hidden):
        super().__init__(features, hidden, 3)

    def forward(self, x, h):
        a, b = self.sums(x, h)
        (a_r, a_z, a_n), (b_r, b_z, b_n) = np.split(a, 3, 1), np.split(b, 3, 1)
        r, z = sigmoid(a_r + b_r), sigmoid(a_z + b_z)
        n = np.tanh(a_n + r * b_n)
        self.kept = x, h, r, z, n, b_n
        return (1 - z) * n + z * h

    def backward(self, d):
        x, h, r, z, n, b_n = self.kept
        d_n = d * (1 - z) * (1 - n**2)
        d_r, d_z = d_n * b_n * r * (1 - r), d * (h - n) * z * (1 - z)
        dx, dh = self.add_gradients(x, h, np.hstack([d_r, d_z, d_n]), np.hstack([d_r, d_z, d_n * r]))
        return dx, dh + d * z


class PythonLSTM(Weighted):
    def __init__(self, features, hidden):
        super().__init__(features, hidden, 4)
        self.state_size = (hidden, hidden)

    def forward(self, x, state):
        h, c = state
        a, b = self.sums(x, h)
        i, f, g, o = np.split(a + b, 4, 1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        new = f * c + i * g
        self.kept = x, h, c, i, f, g, o, np.tanh(new)
        return o * np.tanh(new), new

    def backward(self, d_state):
        x, h, c, i, f, g, o, tanh = self.kept
        dh, dc = d_state
        dc = dc + dh * o * (1 - tanh**2)
        d = [dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g**2), dh * tanh * o * (1 - o)]
        dx, d_before = self.add_gradients(x, h, np.hstack(d), np.hstack(d))
        return dx, (d_before, dc * f)


PYTHON = {"RNN": PythonRNN, "LSTM": PythonLSTM, "GRU": PythonGRU}


def make_cell(kind, origin, features, hidden):
    return PYTHON[kind](features, hidden) if origin == "python" else getattr(nn, kind + "Cell")(features, hidden)


def torch_twin(torch, kind, cell, features, hidden):
    twin = getattr(torch.nn, kind)(features, hidden, batch_first=True)
    twin.load_state_dict({f"{name}_l0": torch.tensor(p.data.copy()) for name, p in cell.parameters().items()})
    return twin


# --- against PyTorch --------------------------------------------------------------------------------------------------

SHAPES = [(1, 1, 1, 1), (2, 1, 3, 5), (1, 40, 4, 3), (3, 7, 5, 4), (5, 12, 17, 33), (17, 5, 8, 16), (4, 9, 1, 7)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("origin", ["native", "python"])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_torch(kind, origin, shape, torch):
    batch, steps, features, hidden = shape
    rng = seeded_rng((kind, shape))
    cell = make_cell(kind, origin, features, hidden)
    layer, twin = nn.Recurrent(cell), torch_twin(torch, kind, cell, features, hidden)
    x, dy = normal(rng, (batch, steps, features)), normal(rng, (batch, steps, hidden))
    states = states_of(kind, rng, (1, batch, hidden))

    torch_x = torch.tensor(x, requires_grad=True)
    torch_states = [torch.tensor(state, requires_grad=True) for state in states]
    torch_y, torch_final = twin(torch_x, packed(torch_states))
    torch_y.backward(torch.tensor(dy))

    y = layer(x, packed(states))
    dx, d_state = layer.backward(dy)
    assert_near(y, torch_y, "y")
    assert_near(dx, torch_x.grad, "dE/dx")
    for got, want in zip(unpacked(d_state), torch_states, strict=True):
        assert_near(got, want.grad, "dE/dstate")
    for got, want in zip(unpacked(layer.state), unpacked(torch_final), strict=True):
        assert_near(got, want, "state")
    for name, gradient in gradients(layer).items():
        assert_near(gradient, getattr(twin, name.removeprefix("cell.") + "_l0").grad, name)


@pytest.mark.parametrize("kind", KINDS)
def test_reverse_and_last_output(kind, torch, rng):
    """PyTorch's reverse direction, by flipping."""
    cell = make_cell(kind, "native", 3, 4)
    twin = torch_twin(torch, kind, cell, 3, 4)
    x = normal(rng, (2, 6, 3))
    want, final = twin(torch.tensor(np.flip(x, 1).copy()))
    assert_near(nn.Recurrent(cell, reverse=True)(x), np.flip(want.detach().numpy(), 1), "y")
    last = nn.Recurrent(cell, return_sequences=False, reverse=True)
    assert_near(last(x), want[:, -1], "the last output")
    assert_near(unpacked(last.state)[0], unpacked(final)[0], "state")
    dn.gradcheck(last, x)


@pytest.mark.parametrize("return_sequences", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, return_sequences, rng):
    states = states_of(kind, rng, (1, 2, 3))
    layer = nn.Recurrent(make_cell(kind, "native", 3, 3), return_sequences=return_sequences)
    dn.gradcheck(layer, normal(rng, (2, 5, 3)), states[0] if len(states) == 1 else np.stack(states))
    dn.gradcheck(nn.Sequential(layer, nn.Linear(3, 2)), normal(rng, (2, 4, 3)))


@pytest.mark.parametrize("kind", KINDS)
def test_python_cell_equals_native_cell_in_training(kind, rng):
    x, y = normal(rng, (12, 6, 3)), normal(rng, (12, 2))
    nets = []
    for origin in ("native", "python"):
        cell = make_cell(kind, origin, 3, 4)
        if origin == "native":
            cell.load_state_dict(make_cell(kind, "python", 3, 4).state_dict())
        dn.manual_seed(3)
        net = nn.Sequential(nn.Recurrent(cell, return_sequences=False), nn.Linear(4, 2))
        net.fit(x, y, loss="mse", optimizer=optim.SGD(lr=0.1), epochs=3, batch_size=4, progress=False)
        nets.append(net)
    assert_near(nets[0](x), nets[1](x), "y", 1e-4)


# --- gradients in time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_state_gradient_norms(kind, torch, rng):
    """|dE/dh(t)| is what PyTorch finds for the state after each step of its cell."""
    cell = make_cell(kind, "native", 3, 4)
    layer = nn.Recurrent(cell)
    x, dy = normal(rng, (2, 6, 3)), normal(rng, (2, 6, 4))
    layer(x)
    with pytest.raises(RuntimeError, match=r"Recurrent.*backward"):
        _ = layer.state_gradient_norms
    layer.backward(dy)

    twin = getattr(torch.nn, kind + "Cell")(3, 4)
    twin.load_state_dict({name: torch.tensor(value) for name, value in cell.state_dict().items()})
    state, outputs = None, []
    for t in range(6):
        new = twin(torch.tensor(x[:, t]), state)
        outputs.append(unpacked(new)[0])
        outputs[-1].retain_grad()
        state = new
    torch.autograd.backward(outputs, [torch.tensor(dy[:, t].copy()) for t in range(6)])
    want = [float(h.grad.norm()) for h in outputs]
    assert layer.state_gradient_norms.dtype == np.float32
    assert_near(layer.state_gradient_norms, [want], "norms")


@pytest.mark.parametrize("truncate", [1, 3, 4, 7, 8, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_truncated(kind, truncate, torch, rng):
    """As detaching the state every `truncate` steps."""
    cell = make_cell(kind, "native", 3, 4)
    twin = torch_twin(torch, kind, cell, 3, 4)
    x, dy = normal(rng, (2, 8, 3)), normal(rng, (2, 8, 4))
    h0 = states_of(kind, rng, (1, 2, 4))
    torch_x, torch_h0 = torch.tensor(x, requires_grad=True), [torch.tensor(h, requires_grad=True) for h in h0]
    state, outputs = packed(torch_h0), []
    for begin in range(0, 8, truncate):
        y, state = twin(torch_x[:, begin : begin + truncate], state)
        outputs.append(y)
        state = packed([s.detach() for s in unpacked(state)])
    torch.cat(outputs, 1).backward(torch.tensor(dy))

    layer = nn.Recurrent(cell, truncate=truncate)
    assert_near(layer(x, packed(h0)), torch.cat(outputs, 1), "y")
    dx, d_state = layer.backward(dy)
    assert_near(dx, torch_x.grad, "dE/dx")
    for got, want in zip(unpacked(d_state), torch_h0, strict=True):
        assert_near(got, want.grad, "dE/dstate")
    for name, gradient in gradients(cell).items():
        assert_near(gradient, getattr(twin, name + "_l0").grad, name)
    assert layer.truncate == truncate


def test_truncated_in_reverse_cuts_at_the_same_times(rng):
    """So that padding behind a sequence moves no cut."""
    layer = nn.Recurrent(nn.GRUCell(3, 4), reverse=True, truncate=3)
    x, dy = normal(rng, (1, 7, 3)), normal(rng, (1, 7, 4))
    layer(x)
    want = layer.backward(dy)
    layer(np.pad(x, ((0, 0), (0, 4), (0, 0))), lengths=[7])
    assert_same_bits(layer.backward(np.pad(dy, ((0, 0), (0, 4), (0, 0))))[:, :7], want)


# --- padding ----------------------------------------------------------------------------------------------------------

LENGTHS = [4, 9, 1, 6]


def one_by_one(layer, x, dy, states, lengths, return_sequences):
    """Outputs, states, dE/dx, dE/dstate and norms of each sequence alone; dE/dW added up."""
    results = []
    layer.zero_grad()
    for n, length in enumerate(lengths):
        y = layer(x[n : n + 1, :length], packed([s[:, n : n + 1] for s in states]))
        state = unpacked(layer.state)
        dx, d_state = layer.backward(dy[n : n + 1, :length] if return_sequences else dy[n : n + 1])
        results.append((y, state, dx, unpacked(d_state), layer.state_gradient_norms))
    return results, gradients(layer)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("return_sequences", [True, False], ids=["sequences", "last"])
@pytest.mark.parametrize("origin", ["native", "python"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind, origin, return_sequences, reverse, rng):
    layer = nn.Recurrent(make_cell(kind, origin, 3, 5), return_sequences=return_sequences, reverse=reverse)
    x, states = normal(rng, (4, 9, 3)), states_of(kind, rng, (1, 4, 5))
    dy = normal(rng, (4, 9, 5) if return_sequences else (4, 5))
    alone, d_weights = one_by_one(layer, x, dy, states, LENGTHS, return_sequences)

    for n, length in enumerate(LENGTHS):
        x[n, length:] = np.nan  # may be anything
    layer.zero_grad()
    y = layer(x, packed(states), lengths=LENGTHS)
    final = unpacked(layer.state)
    dx, d_state = layer.backward(dy)
    for n, (length, (y_n, state_n, dx_n, d_state_n, _)) in enumerate(zip(LENGTHS, alone, strict=True)):
        if return_sequences:
            assert_near(y[n : n + 1, :length], y_n, "y", 1e-6)
            assert not y[n, length:].any()
        else:
            assert_near(y[n : n + 1], y_n, "y", 1e-6)
        assert_near(dx[n : n + 1, :length], dx_n, "dE/dx", 2e-6)
        assert not dx[n, length:].any()
        for got, want in zip([*final, *unpacked(d_state)], [*state_n, *d_state_n], strict=True):
            assert_near(got[:, n : n + 1], want, "states", 2e-6)
    for name, gradient in gradients(layer).items():
        assert_near(gradient, d_weights[name], name, 2e-6)
    want = np.sqrt(sum(np.pad(norms[0], (0, 9 - norms.shape[1])) ** 2 for *_, norms in alone))
    assert_near(layer.state_gradient_norms, [want], "norms", 2e-6)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float32, np.float64])
def test_mask_and_lengths_are_the_same(dtype, rng):
    layer, x = nn.Recurrent(nn.GRUCell(3, 4)), normal(rng, (4, 9, 3))
    mask = np.arange(9) < np.array(LENGTHS)[:, None]
    assert_same_bits(layer(x, mask=mask.astype(dtype)), layer(x, lengths=LENGTHS))
    assert_same_bits(layer(x, mask=np.ones((4, 9))), layer(x))


def test_mask_with_holes_skips_steps(rng):
    """A masked step anywhere is as if it were not there."""
    layer, x = nn.Recurrent(nn.LSTMCell(3, 4)), normal(rng, (1, 6, 3))
    keep = [0, 2, 3, 5]
    mask = np.isin(np.arange(6), keep)[None]
    y, state = layer(x, mask=mask), layer.state
    dx = layer.backward(np.ones_like(y))
    assert_same_bits(y[:, keep], layer(x[:, keep]))
    assert_same_bits(np.stack(state), np.stack(layer.state))
    assert_same_bits(dx[:, keep], layer.backward(np.ones((1, 4, 4))))
    assert not y[:, [1, 4]].any()
    assert not dx[:, [1, 4]].any()


# --- states from call to call -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["native", "python"])
@pytest.mark.parametrize("kind", KINDS)
def test_stateful_goes_on(kind, origin, rng):
    cell, x = make_cell(kind, origin, 3, 4), normal(rng, (2, 9, 3))
    whole = nn.Recurrent(cell)(x)
    layer = nn.Recurrent(cell, stateful=True)
    assert_same_bits(np.concatenate([layer(x[:, :4]), layer(x[:, 4:7]), layer(x[:, 7:])], 1), whole)
    assert not np.array_equal(layer(x), whole)
    layer.reset_state()
    assert_same_bits(layer(x), whole)
    layer.reset_state()
    parts = [layer.predict(x[:, :5]), layer.predict(x[:, 5:])]  # without a backward, too
    assert_same_bits(np.concatenate(parts, 1), whole)


def test_stateful_in_training_and_another_batch_size(rng):
    cell = nn.GRUCell(3, 4)
    layer = nn.Recurrent(cell, stateful=True)
    net = nn.Sequential(layer, nn.Linear(4, 2))
    trainer = dn.Trainer(net, nn.MSELoss(), optim.SGD(lr=0.0))
    x = normal(rng, (2, 6, 3))
    want = nn.Recurrent(cell)(x)
    trainer.step(x[:, :3], np.zeros((2, 3, 2)))
    trainer.step(x[:, 3:], np.zeros((2, 3, 2)))
    assert_same_bits(layer.state[0], want[:, -1])
    with pytest.raises(dn.ShapeError, match=r"\[Recurrent\] expected a batch of 2 .* got 5: .*call reset_state"):
        net(normal(rng, (5, 3, 3)))
    net.reset_state()  # children's too
    assert net(normal(rng, (5, 3, 3))).shape == (5, 3, 2)


def test_stateful_does_not_count_rehearsals(rng):
    """A network with a Python layer is run once more, to learn its shapes; that must not move the state."""

    class Same(nn.Layer):
        def forward(self, x):
            return x

        def backward(self, dy):
            return dy

    cell, x = nn.RNNCell(3, 4), normal(rng, (2, 5, 3))
    net = nn.Sequential(nn.Recurrent(cell, stateful=True), Same())
    assert_same_bits(net(x), nn.Recurrent(cell)(x))


@pytest.mark.parametrize("origin", ["native", "python"])
@pytest.mark.parametrize("kind", KINDS)
def test_step(kind, origin, rng):
    cell, x = make_cell(kind, origin, 3, 4), normal(rng, (2, 6, 3))
    layer, head = nn.Recurrent(cell), nn.Linear(4, 5)
    net = nn.Sequential(layer, nn.Tanh(), nn.Dropout(0.5), head)
    want, want_net = layer(x), net.eval()(x)
    net.train()  # a step is evaluation all the same
    for _ in range(2):
        for t in range(6):
            assert_near(layer.step(x[:, t]), want[:, t], f"step {t}", 1e-6)
        net.reset_state()
        for t in range(6):
            assert_near(net.step(x[:, t]), want_net[:, t], f"step {t} of a network", 2e-6)
        layer.reset_state()


def test_step_of_networks_without_and_with_only_recurrent_layers(rng):
    x = normal(rng, (2, 3))
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    assert_same_bits(plain.step(x), plain.predict(x))
    layers = [nn.Recurrent(nn.GRUCell(3, 4)), nn.Recurrent(nn.LSTMCell(4, 2))]
    assert_same_bits(nn.Sequential(*layers).step(x), nn.Sequential(*layers).predict(x[:, None])[:, 0])


def test_step_refuses(rng):
    layer = nn.Recurrent(nn.GRUCell(3, 4))
    with pytest.raises(ValueError, match=r"\[Recurrent.step\] expected .*reverse=True"):
        nn.Recurrent(nn.GRUCell(3, 4), reverse=True).step(np.zeros((2, 3)))
    for shape in [(2, 4), (2, 5, 3), (3,)]:
        with pytest.raises(dn.ShapeError, match=r"\[Recurrent.step\] expected input of shape \(N, 3\), got"):
            layer.step(np.zeros(shape))
    layer.step(np.zeros((2, 3)))
    with pytest.raises(dn.ShapeError, match=r"batch of 2 .* got 3: .*call reset_state"):
        layer.step(np.zeros((3, 3)))
    layer.reset_state()
    assert layer.step(np.zeros((3, 3))).shape == (3, 4)


# --- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_for_any_number_of_threads(kind, rng):
    layer = nn.Recurrent(make_cell(kind, "native", 70, 130))
    x, dy = normal(rng, (40, 5, 70)), normal(rng, (40, 5, 130))
    results = []
    for threads in (1, 2, 3, 4):
        layer.zero_grad()
        with dn.threads(threads):
            y = layer(x, lengths=[5, 3] * 20)
            results.append([y, layer.backward(dy), layer.state_gradient_norms, *gradients(layer).values()])
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            assert_same_bits(got, want)


def test_one_cell_in_two_directions_adds_its_gradients_up(rng):
    """A cell that two layers share gets the deltas of both, in training too."""
    cell, x, y = nn.GRUCell(4, 4), normal(rng, (3, 5, 4)), normal(rng, (3, 5, 4))
    net = nn.Sequential(nn.Recurrent(cell), nn.Recurrent(cell, reverse=True))
    dn.gradcheck(net, x)
    loss = nn.MSELoss()
    loss(net(x), y)
    net.zero_grad()
    net.backward(loss.backward())
    want = gradients(cell)
    for _ in range(2):
        dn.Trainer(net, nn.MSELoss(), optim.SGD(lr=0.0)).step(x, y)
        for name, gradient in gradients(cell).items():
            assert_close(gradient, want[name], length=20, what=name)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind, tmp_path, rng):
    cell = getattr(nn, kind + "Cell")(3, 4)
    options = {"return_sequences": False, "stateful": True, "truncate": 5, "reverse": True}
    shared = nn.Recurrent(cell, truncate=None)
    net = nn.Sequential(shared, nn.Linear(4, 3), shared, nn.Linear(4, 3), nn.Recurrent(cell, **options))
    net.save(tmp_path / "net.safetensors")
    loaded, x = dn.load(tmp_path / "net.safetensors"), normal(rng, (2, 6, 3))
    assert_same_bits(loaded(x), net(x))
    assert repr(loaded) == repr(net)
    assert loaded[0] is loaded[2]
    assert loaded[4].cell is loaded[0].cell
    assert {name: getattr(loaded[4], name) for name in options} == options
    assert loaded[0].truncate is None


def test_a_python_cell_is_kept_and_cannot_be_saved(tmp_path):
    cell = PythonGRU(3, 4)
    layer = nn.Recurrent(cell)
    assert layer.cell is cell
    assert layer.children() == [cell]
    assert list(layer.parameters()) == ["cell.weight_ih", "cell.weight_hh", "cell.bias_ih", "cell.bias_hh"]
    with pytest.raises(TypeError, match="PythonGRU"):
        layer.save(tmp_path / "net.safetensors")
    layer.eval()
    assert not cell.training


def test_python_cells_alone(rng):
    """Called directly they are cells, too."""
    x, h, c = normal(rng, (2, 3)), normal(rng, (2, 4)), normal(rng, (2, 4))
    gru, lstm = PythonGRU(3, 4), PythonLSTM(3, 4)
    assert_same_bits(gru(x), gru(x, np.zeros((2, 4))))
    dn.gradcheck(gru, x, h)
    got = lstm(x, (h, c))
    native = nn.LSTMCell(3, 4)
    native.load_state_dict(lstm.state_dict())
    for a, b in zip(got, native(x, (h, c)), strict=True):
        assert_near(a, b, "state")
    dx, (dh, dc) = lstm.backward((h, c))
    native_dx, (native_dh, native_dc) = native.backward((h, c))
    for a, b in [(dx, native_dx), (dh, native_dh), (dc, native_dc)]:
        assert_near(a, b, "gradient")


def test_what_a_python_cell_keeps_outlives_the_network(rng):
    cell = PythonRNN(3, 4)
    layer = nn.Recurrent(cell)
    layer(normal(rng, (2, 50, 3)))
    layer.backward(np.ones((2, 50, 4)))
    kept, copy = cell.x, cell.x.copy()
    del layer
    assert_same_bits(kept, copy)
    assert kept.shape == (2, 3)


def test_python_layer_of_two_inputs(rng):
    class Product(nn.Layer):
        def forward(self, a, b):
            self.a, self.b = a, b
            return a * b

        def backward(self, dy):
            return dy * self.b, dy * self.a

    a, b = normal(rng, (2, 3)), normal(rng, (2, 3))
    dn.gradcheck(Product(), a, b)
    assert_same_bits(Product()(a, b), a * b)


class Decay(nn.Layer):
    """The smallest cell, to be broken in the tests below."""

    state_size = 3

    def forward(self, x, state):
        return 0.5 * state + x

    def backward(self, d_state):
        return d_state, 0.5 * d_state


def broken(forward=None, backward=None, **attributes):
    methods = {"forward": forward or Decay.forward, "backward": backward or Decay.backward}
    return type("Broken", (Decay,), {**methods, **attributes})


def fail(*arguments):
    raise KeyError("my own")


def run_both(cell):
    layer = nn.Recurrent(cell)
    layer(zeros(2, 4, 3))
    layer.backward(zeros(2, 4, 3))


def zeros(*shape):
    return np.zeros(shape, np.float32)


def gru(**options):
    return nn.Recurrent(nn.GRUCell(3, 4), **options)


BAD = {
    "no cell": (lambda: nn.Recurrent(nn.Linear(3, 4)), TypeError, ["[Recurrent]", "Linear", "state_size"]),
    "no layer": (lambda: nn.Recurrent(5), TypeError, ["[Recurrent]", "5"]),
    "a class": (lambda: nn.Recurrent(Decay), TypeError, ["[Recurrent]", "Decay"]),
    "no state_size": (lambda: nn.Recurrent(broken(state_size=None)()), TypeError, ["[Broken]", "state_size"]),
    "state_size 0": (lambda: nn.Recurrent(broken(state_size=0)()), ValueError, ["[Broken]", "state_size"]),
    "state_size of text": (lambda: nn.Recurrent(broken(state_size="3")()), TypeError, ["[Broken]", "'3'"]),
    "truncate 0": (lambda: gru(truncate=0), ValueError, ["[Recurrent]", "truncate", "0"]),
    "truncate negative": (lambda: gru(truncate=-2), ValueError, ["[Recurrent]", "truncate", "-2"]),
    "features": (lambda: gru()(zeros(2, 5, 4)), dn.ShapeError, ["[Recurrent]", "(N, T, 3)", "(2, 5, 4)"]),
    "two axes": (lambda: gru()(zeros(2, 3)), dn.ShapeError, ["[Recurrent]", "(N, T, 3)", "(2, 3)"]),
    "two axes, any features": (lambda: nn.Recurrent(Decay())(zeros(2, 3)), dn.ShapeError, ["(N, T, F)"]),
    "no steps": (lambda: gru()(zeros(2, 0, 3)), dn.ShapeError, ["[Recurrent]", "1 step", "(2, 0, 3)"]),
    "state's shape": (lambda: gru()(zeros(2, 5, 3), zeros(2, 4)), dn.ShapeError, ["(1, 2, 4)", "(2, 4)"]),
    "state's batch": (lambda: gru()(zeros(2, 5, 3), zeros(1, 3, 4)), dn.ShapeError, ["(1, 2, 4)", "(1, 3, 4)"]),
    "one state of two": (
        lambda: nn.Recurrent(nn.LSTMCell(3, 4))(zeros(2, 5, 3), zeros(1, 2, 4)),
        TypeError,
        ["[Recurrent]", "2 arrays"],
    ),
    "three arguments": (lambda: gru()(zeros(2, 5, 3), 1, 2), TypeError, ["[Recurrent]", "3"]),
    "length 0": (
        lambda: gru()(zeros(2, 5, 3), lengths=[5, 0]),
        ValueError,
        ["[Recurrent]", "T = 5", "0 at position 1"],
    ),
    "length > T": (lambda: gru()(zeros(2, 5, 3), lengths=[6, 1]), ValueError, ["[Recurrent]", "T = 5", "6"]),
    "count of lengths": (
        lambda: gru()(zeros(2, 5, 3), lengths=[5]),
        dn.ShapeError,
        ["[Recurrent]", "2 lengths", "(1,)"],
    ),
    "lengths of floats": (lambda: gru()(zeros(2, 5, 3), lengths=[5.0, 1.0]), TypeError, ["[Recurrent]", "integers"]),
    "mask's shape": (lambda: gru()(zeros(2, 5, 3), mask=zeros(2, 4)), dn.ShapeError, ["(2, 5)", "(2, 4)"]),
    "mask's values": (
        lambda: gru()(zeros(2, 5, 3), mask=np.full((2, 5), 0.5)),
        ValueError,
        ["0 and 1", "0.5", "[0, 0]"],
    ),
    "mask of NaN": (lambda: gru()(zeros(2, 5, 3), mask=np.full((2, 5), np.nan)), ValueError, ["0 and 1", "nan"]),
    "mask of text": (lambda: gru()(zeros(2, 5, 3), mask=np.full((2, 5), "a")), TypeError, ["[Recurrent]"]),
    "mask and lengths": (
        lambda: gru()(zeros(2, 5, 3), lengths=[1, 2], mask=zeros(2, 5)),
        ValueError,
        ["[Recurrent]", "both"],
    ),
    "lengths without steps": (lambda: nn.ReLU()(zeros(3), lengths=[1, 1, 1]), dn.ShapeError, ["[ReLU]", "(N, T, ...)"]),
    "mask for fewer steps": (
        lambda: nn.Sequential(Halve(), gru())(zeros(2, 6, 3), lengths=[6, 2]),
        dn.ShapeError,
        ["[Recurrent]", "(2, 3)"],
    ),
    "new state's shape": (
        lambda: run_both(broken(forward=lambda self, x, s: x[:, :2])()),
        dn.ShapeError,
        ["[Broken]", "(2, 3)", "(2, 2)"],
    ),
    "backward returns one": (
        lambda: run_both(broken(backward=lambda self, d: d)()),
        TypeError,
        ["[Broken]", "backward", "2 gradients"],
    ),
    "backward's shape": (
        lambda: run_both(broken(backward=lambda self, d: (d, d[:1]))()),
        dn.ShapeError,
        ["[Broken]", "(2, 3)", "(1, 3)"],
    ),
    "no tuple": (
        lambda: run_both(broken(state_size=(3, 3), forward=lambda self, x, s: x)()),
        dn.ShapeError,
        ["[Broken]"],
    ),
}


class Halve(nn.Layer):
    """Every other step."""

    def forward(self, x):
        return x[:, ::2]

    def backward(self, dy):
        return dy.repeat(2, 1)


@pytest.mark.parametrize("name", BAD)
def test_refused(name):
    attempt, error, words = BAD[name]
    with pytest.raises(error) as info:
        attempt()
    for word in [*words, "expected"]:
        assert word in str(info.value)


@pytest.mark.parametrize("method", ["forward", "backward"])
def test_a_cells_own_exceptions_come_through(method):
    with pytest.raises(KeyError, match="my own"):
        run_both(broken(**{method: fail})())


def test_state_before_any_run():
    for name in ("state", "state_gradient_norms"):
        with pytest.raises(RuntimeError, match="Recurrent"):
            getattr(gru(), name)
