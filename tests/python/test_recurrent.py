"""nn.RNN, nn.LSTM and nn.GRU beyond one forward and backward: states, padding, truncation, streaming, threads."""

import numpy as np
import pytest

import deepnet as dn
from checks import assert_close, assert_same_bits, gradients, normal, run_python
from deepnet import nn, optim

KINDS = ["RNN", "LSTM", "GRU"]
every_kind = pytest.mark.parametrize("kind", KINDS)

# What the batch, the steps, the features, H and the options are. Odd widths; one to three layers; both directions.
STACKS = [
    (1, 1, 1, 1, {}),
    (2, 5, 3, 4, {}),
    (3, 12, 7, 17, {}),
    (17, 9, 5, 33, {}),
    (40, 6, 8, 16, {}),
    (2, 100, 4, 9, {}),
    (1, 300, 16, 32, {}),
    (4, 7, 5, 6, {"num_layers": 2}),
    (5, 6, 4, 31, {"num_layers": 3}),
    (3, 8, 5, 7, {"bidirectional": True}),
    (19, 5, 6, 15, {"num_layers": 2, "bidirectional": True}),
    (3, 6, 4, 5, {"num_layers": 3, "bidirectional": True, "bias": False}),
    (2, 90, 40, 70, {"bidirectional": True}),
]
every_stack = pytest.mark.parametrize("stack", STACKS, ids=lambda s: "x".join(map(str, s[:4])) + "".join(s[4]))


def make(kind, stack, torch=None, **options):
    """A layer and, where torch is given, PyTorch's, in float64 with the same weights."""
    _, _, features, hidden, stack_options = stack
    layer = getattr(nn, kind)(features, hidden, **stack_options, **options)
    if torch is None:
        return layer
    module = getattr(torch.nn, kind)(features, hidden, **stack_options, batch_first=True)
    module.load_state_dict({name: torch.from_numpy(w) for name, w in layer.state_dict().items()})
    return layer, module.double()


def initial_state(rng, kind, stack):
    n, _, _, hidden, options = stack
    rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    states = [normal(rng, (rows, n, hidden)) for _ in range(2 if kind == "LSTM" else 1)]
    return states if kind == "LSTM" else states[0]


def as_list(state):
    return list(state) if isinstance(state, (list, tuple)) else [state]


def wide(torch, state):
    """The state as PyTorch's layers take it, in float64 and with gradients."""
    tensors = [torch.from_numpy(s).double().requires_grad_() for s in as_list(state)]
    return tuple(tensors) if len(tensors) > 1 else tensors[0]


def some_lengths(rng, n, steps):
    """Of every length, the longest and the shortest among them."""
    lengths = rng.integers(1, steps, n, endpoint=True)
    lengths[0], lengths[-1] = steps, max(1, steps // 3)
    return lengths


def rounding(stack):
    """Terms that an error grows with: every product of every step that it goes through, an LSTM's four gates and about
    eight products and nonlinearities between them, which are all there is of a state of one number."""
    _, steps, features, hidden, options = stack
    width = hidden * (2 if options.get("bidirectional") else 1)
    return (4 * (max(features, width) + width) + 8) * steps * options.get("num_layers", 1)


# --- the state in and out --------------------------------------------------------------------------------------------


@every_kind
@every_stack
def test_state_agrees_with_pytorch(kind, stack, torch, rng):
    """Output, final state, dE/dx, dE/dh0 (dE/dc0) and every weight's gradient, from a given initial state."""
    layer, module = make(kind, stack, torch)
    n, steps, features, _, _ = stack
    x, state = normal(rng, (n, steps, features)), initial_state(rng, kind, stack)
    y = layer(x, state)
    dy = normal(rng, y.shape)
    dx, d_state = layer.backward(dy)

    x_t, state_t = torch.from_numpy(x).double().requires_grad_(), wide(torch, state)
    y_t, final_t = module(x_t, state_t)
    y_t.backward(torch.from_numpy(dy).double())
    terms = rounding(stack)
    assert_close(y, y_t.detach().numpy(), terms, "y")
    assert_close(dx, x_t.grad.numpy(), terms, "dE/dx")
    for got, want in zip(as_list(layer.state), as_list(final_t), strict=True):
        assert_close(got, want.detach().numpy(), terms, "state")
    for got, want in zip(as_list(d_state), as_list(state_t), strict=True):
        assert_close(got, want.grad.numpy(), terms, "dE/dstate")
    for name, p in module.named_parameters():
        assert_close(layer.parameters()[name].grad, p.grad.numpy(), terms * n, f"dE/d{name}")


@every_kind
def test_state_of_zeros_is_the_default(kind, rng):
    stack = STACKS[10]
    layer, x = make(kind, stack), normal(rng, (19, 5, 6))
    y, dx = layer(x), layer.backward(np.ones((19, 5, 30)))
    zeros = [np.zeros((4, 19, 15))] * (2 if kind == "LSTM" else 1)
    assert_same_bits(layer(x, zeros if kind == "LSTM" else zeros[0]), y)
    assert_same_bits(layer.backward(np.ones((19, 5, 30)))[0], dx)


@every_kind
def test_backward_may_be_called_again(kind, rng):
    layer = make(kind, STACKS[10])
    y = layer(normal(rng, (19, 5, 6)))
    dy = normal(rng, y.shape)
    first, grads = layer.backward(dy), gradients(layer)
    layer.zero_grad()
    assert_same_bits(layer.backward(dy), first)
    for name, g in gradients(layer).items():
        assert_same_bits(g, grads[name], name)
    layer.backward(dy)
    for name, g in gradients(layer).items():
        np.testing.assert_allclose(g, 2 * grads[name], rtol=2e-6, atol=1e-5 * np.abs(g).max(), err_msg=name)


@every_kind
def test_predict_gives_what_a_call_gives(kind, rng):
    for stack in STACKS:
        layer, x = make(kind, stack), normal(rng, stack[:3])
        assert_same_bits(layer.predict(x), layer(x))


@pytest.mark.parametrize("kind", ["RNN", "GRU"])
def test_gradcheck_with_state(kind, rng):
    layer = getattr(nn, kind)(3, 4, num_layers=2, bidirectional=True)
    dn.gradcheck(layer, normal(rng, (2, 3, 3)), normal(rng, (4, 2, 4)))


# --- padding ---------------------------------------------------------------------------------------------------------


@every_kind
@every_stack
@pytest.mark.parametrize("sequences", [True, False], ids=["sequences", "last"])
def test_lengths_agree_with_packed_sequences(kind, stack, sequences, torch, rng):
    layer, module = make(kind, stack, torch, return_sequences=sequences)
    n, steps, features, _, options = stack
    x, state, lengths = normal(rng, (n, steps, features)), initial_state(rng, kind, stack), some_lengths(rng, n, steps)
    padding = np.arange(steps) >= lengths[:, None]
    x[padding] = np.nan
    y = layer(x, state, lengths=lengths)
    dy = normal(rng, y.shape)
    if sequences:
        assert not y[padding].any()
        dy[padding] = np.nan
    dx, d_state = layer.backward(dy)
    assert not dx[padding].any()

    x_t = torch.from_numpy(np.where(padding[:, :, None], 0, x)).double().requires_grad_()
    state_t = wide(torch, state)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x_t, lengths, batch_first=True, enforce_sorted=False)
    y_t, final_t = module(packed, state_t)
    y_t, _ = torch.nn.utils.rnn.pad_packed_sequence(y_t, batch_first=True, total_length=steps)
    if not sequences:
        h = as_list(final_t)[0]
        y_t = torch.cat(list(h[-2:] if options.get("bidirectional") else h[-1:]), dim=1)
    dy_t = np.where(padding[:, :, None], 0, dy) if sequences else dy
    y_t.backward(torch.from_numpy(dy_t).double())
    terms = rounding(stack)
    assert_close(y, y_t.detach().numpy(), terms, "y")
    assert_close(dx, x_t.grad.numpy(), terms, "dE/dx")
    for got, want in zip(as_list(layer.state), as_list(final_t), strict=True):
        assert_close(got, want.detach().numpy(), terms, "state")
    for got, want in zip(as_list(d_state), as_list(state_t), strict=True):
        assert_close(got, want.grad.numpy(), terms, "dE/dstate")
    for name, p in module.named_parameters():
        assert_close(layer.parameters()[name].grad, p.grad.numpy(), terms * n, f"dE/d{name}")


@every_kind
@every_stack
def test_padded_batch_equals_its_sequences_one_by_one(kind, stack, rng):
    """Outputs, states, dE/dx and dE/dstate bit by bit, for a sequence's sums do not depend on its neighbours; weight
    gradients, which add up over the batch in another order, within 1e-6 of their largest entry."""
    layer = make(kind, stack)
    n, steps, features, _, _ = stack
    x, state, lengths = normal(rng, (n, steps, features)), initial_state(rng, kind, stack), some_lengths(rng, n, steps)
    y = layer(x, state, lengths=lengths)
    dy = normal(rng, y.shape)
    dx, d_state = layer.backward(dy)
    final, batch_gradients = as_list(layer.state), gradients(layer)
    layer.zero_grad()
    for i, length in enumerate(lengths):
        own = [np.ascontiguousarray(s[:, i : i + 1]) for s in as_list(state)]
        part = np.s_[i : i + 1, :length]
        assert_same_bits(layer(x[part], own if kind == "LSTM" else own[0]), y[part], f"y[{i}]")
        own_dx, own_d_state = layer.backward(dy[part])
        assert_same_bits(own_dx, dx[part], f"dE/dx[{i}]")
        for got, want in zip(as_list(layer.state), final, strict=True):
            assert_same_bits(got, want[:, i : i + 1], f"state of {i}")
        for got, want in zip(as_list(own_d_state), as_list(d_state), strict=True):
            assert_same_bits(got, want[:, i : i + 1], f"dE/dstate of {i}")
    for name, g in gradients(layer).items():
        np.testing.assert_allclose(batch_gradients[name], g, rtol=0, atol=1e-6 * max(np.abs(g).max(), 1), err_msg=name)


@every_kind
def test_mask_with_gaps_leaves_steps_out(kind, rng):
    """A mask may have zeros anywhere: the result is that of the sequence without those steps."""
    layer = getattr(nn, kind)(3, 5, num_layers=2, bidirectional=True)
    x, mask = normal(rng, (1, 8, 3)), np.array([[0, 1, 1, 0, 0, 1, 1, 0]])
    kept = np.flatnonzero(mask[0])
    y = layer(x, mask=mask)
    dx = layer.backward(np.ones_like(y))
    assert_same_bits(layer(np.ascontiguousarray(x[:, kept])), y[:, kept])
    assert not y[:, mask[0] == 0].any()
    assert_same_bits(layer.backward(np.ones((1, 4, 10))), dx[:, kept])


# --- truncation and carried states -----------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("truncate", [1, 3, 4, 5, 100])
def test_truncate_agrees_with_detaching(kind, truncate, torch, rng):
    stack = (3, 10, 4, 7, {"num_layers": 2})
    layer, module = make(kind, stack, torch, truncate=truncate)
    x, state = normal(rng, (3, 10, 4)), initial_state(rng, kind, stack)
    y = layer(x, state)
    dy = normal(rng, y.shape)
    dx, d_state = layer.backward(dy)

    x_t, first = torch.from_numpy(x).double().requires_grad_(), wide(torch, state)
    chunks, carried = [], first
    for begin in range(0, 10, truncate):
        out, carried = module(x_t[:, begin : begin + truncate], carried)
        carried = tuple(s.detach() for s in carried) if kind == "LSTM" else carried.detach()
        chunks.append(out)
    torch.cat(chunks, dim=1).backward(torch.from_numpy(dy).double())
    terms = rounding(stack)
    assert_close(dx, x_t.grad.numpy(), terms, "dE/dx")
    for got, want in zip(as_list(d_state), as_list(first), strict=True):
        assert_close(got, want.grad.numpy(), terms, "dE/dstate")
    for name, p in module.named_parameters():
        assert_close(layer.parameters()[name].grad, p.grad.numpy(), 3 * terms, f"dE/d{name}")


@every_kind
def test_stateful_calls_continue_one_sequence(kind, rng):
    layer = getattr(nn, kind)(3, 5, num_layers=2, stateful=True)
    x = normal(rng, (4, 9, 3))
    whole = layer(x)
    layer.reset_state()
    parts = [layer(x[:, :4]), layer.predict(x[:, 4:6]), layer(x[:, 6:])]
    assert_same_bits(np.concatenate(parts, axis=1), whole)
    with pytest.raises(dn.ShapeError, match=rf"\[{kind}\] expected a batch of 4 sequences.* got 3.*reset_state"):
        layer(x[:3])
    layer.reset_state()
    assert_same_bits(layer(x[:3]), whole[:3])


def recurrent(kind, features, hidden, **options):
    """A layer of one of the three kinds, or of a cell unrolled."""
    if kind in KINDS:
        return getattr(nn, kind)(features, hidden, **options)
    return nn.Recurrent(getattr(nn, kind)(features, hidden), **options)


any_recurrent = pytest.mark.parametrize("kind", [*KINDS, "LSTMCell", "GRUCell"])


@any_recurrent
def test_state_is_that_of_the_last_run_or_step(kind, rng):
    x = normal(rng, (2, 6, 3))
    layer = recurrent(kind, 3, 4)
    with pytest.raises(RuntimeError, match="state came before forward"):
        _ = layer.state
    for t in range(6):
        layer.step(x[:, t])
    stepped = as_list(layer.state)
    layer(x)
    for got, want in zip(stepped, as_list(layer.state), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    layer.predict(x[:1])
    assert as_list(layer.state)[0].shape == (1, 2, 4), "predict leaves none"
    layer.step(x[:, 0])  # goes on from the steps
    assert not np.array_equal(as_list(layer.state)[0], stepped[0])


@any_recurrent
def test_predict_goes_on_with_the_state_of_each_row(kind, rng):
    layer, x = recurrent(kind, 3, 4, stateful=True), normal(rng, (5, 8, 3))
    whole = layer(x)
    layer.reset_state()
    parts = [layer.predict(x[:, :3], batch_size=2), layer.predict(x[:, 3:5], batch_size=1)]
    carried = layer.state
    parts.append(nn.Sequential(layer).predict(x[:, 5:], 3))
    assert_same_bits(np.concatenate(parts, axis=1), whole)
    layer.reset_state()
    layer(x[:, :5])
    for got, want in zip(as_list(carried), as_list(layer.state), strict=True):
        assert_same_bits(got, want)


@any_recurrent
def test_evaluate_has_a_state_of_its_own(kind, rng):
    layer, x, y = recurrent(kind, 3, 4, stateful=True), normal(rng, (2, 6, 3)), normal(rng, (2, 6, 4))
    layer(x)
    second = layer(x)
    layer.reset_state()
    layer(x)
    in_parts = layer.evaluate([(x[:, :3], y[:, :3]), (x[:, 3:], y[:, 3:])], loss="mse")["loss"]
    layer.evaluate(x[:1], y[:1], loss="mse")
    assert_same_bits(layer(x), second)
    error = float(((recurrent_twin(layer, kind)(x) - y) ** 2).mean())
    assert in_parts == pytest.approx(error, rel=1e-5), "from batch to batch its state goes on"


def recurrent_twin(layer, kind):
    """The same layer, not stateful."""
    twin = recurrent(kind, 3, 4)
    twin.load_state_dict(layer.state_dict())
    return twin


@any_recurrent
def test_repr_shows_what_the_constructor_takes(kind):
    assert "truncate=None" in repr(recurrent(kind, 3, 4))
    assert "truncate=2" in repr(recurrent(kind, 3, 4, truncate=2))


@any_recurrent
def test_gradcheck_leaves_the_state(kind, rng):
    layer, x = recurrent(kind, 3, 4, stateful=True), normal(rng, (2, 3, 3))
    layer(x)
    before = as_list(layer.state)
    dn.gradcheck(nn.Sequential(layer), normal(rng, (3, 4, 3)), max_entries=20)
    for got, want in zip(as_list(layer.state), before, strict=True):
        assert_same_bits(got, want)


@any_recurrent
def test_every_epoch_begins_anew_and_validation_changes_nothing(kind, rng):
    x, y = normal(rng, (2, 9, 3)), normal(rng, (2, 9, 4))
    batches = [(x[:, t : t + 3], y[:, t : t + 3]) for t in range(0, 9, 3)]
    losses = []
    for validation in (None, (x[:1], y[:1]), [(np.concatenate([x, x]), np.concatenate([y, y]))]):
        dn.manual_seed(0)
        layer = recurrent(kind, 3, 4, stateful=True)
        rate = optim.SGD(lr=1e-30)
        history = layer.fit(batches, loss="mse", optimizer=rate, epochs=3, validation_data=validation, progress=False)
        losses.append(history["loss"])
        if validation:
            assert history["val_loss"][0] == history["val_loss"][2]
    assert losses[0] == losses[1] == losses[2]
    assert losses[0][0] == losses[0][1]
    assert losses[0][0] == pytest.approx(float(((recurrent_twin(layer, kind)(x) - y) ** 2).mean()), rel=1e-5)


@any_recurrent
def test_a_layer_at_two_places_carries_no_state(kind, rng):
    layer, x = recurrent(kind, 3, 3), normal(rng, (2, 4, 3))
    net = nn.Sequential(layer, nn.Sequential(nn.Tanh(), layer))
    assert net(x).shape == (2, 4, 3)
    with pytest.raises(
        ValueError, match=r"\] expected a layer that carries .* one place .* got 2.* make a layer for each"
    ):
        net.step(x[:, 0])
    layer = recurrent(kind, 3, 3, stateful=True)
    net = nn.Sequential(layer, layer)
    trainer = dn.Trainer(net, nn.MSELoss(), optim.SGD(lr=0.1))
    for call in (net, net.predict, lambda x: trainer.step(x, x)):
        with pytest.raises(ValueError, match=r"one place .* got 2"):
            call(x)
    assert layer(x).shape == (2, 4, 3)


@every_kind
def test_stateful_gradient_is_cut_between_calls(kind, rng):
    layer = getattr(nn, kind)(3, 5, stateful=True)
    twin = getattr(nn, kind)(3, 5)
    twin.load_state_dict(layer.state_dict())
    x = normal(rng, (2, 6, 3))
    layer(x[:, :3])
    carried = layer.state
    y = layer(x[:, 3:])
    dy = normal(rng, y.shape)
    assert_same_bits(twin(x[:, 3:], carried), y)
    assert_same_bits(layer.backward(dy), twin.backward(dy)[0])


@every_kind
def test_steps_give_what_the_sequence_gives(kind, rng):
    for stack in STACKS[:9]:
        layer, x = make(kind, stack), normal(rng, stack[:3])
        y = layer.predict(x)
        got = np.stack([layer.step(x[:, t]) for t in range(stack[1])], axis=1)
        assert_close(got, y, rounding(stack))
        assert not np.array_equal(layer.step(x[:, 0]), got[:, 0])
        layer.reset_state()
        assert_same_bits(layer.step(x[:, 0]), got[:, 0])


@every_kind
def test_step_sees_new_weights_and_goes_on_from_a_stateful_run(kind, rng):
    layer = getattr(nn, kind)(3, 5, stateful=True, dropout=0.5, num_layers=2)
    layer.eval()
    x = normal(rng, (2, 6, 3))
    layer(x[:, :5])
    got = layer.step(x[:, 5])
    layer.reset_state()
    np.testing.assert_allclose(got, layer(x)[:, 5], rtol=1e-5, atol=1e-6)


@every_kind
def test_step_sees_new_weights(kind, rng):
    layer, x = getattr(nn, kind)(3, 5), normal(rng, (2, 1, 3))
    before = layer.step(x[:, 0])
    layer.parameters()["weight_ih_l0"].data[...] += 1
    layer.reset_state()
    got = layer.step(x[:, 0])
    assert not np.array_equal(got, before)
    np.testing.assert_allclose(got, layer(x)[:, 0], rtol=1e-5, atol=1e-6)


# --- the gradient's way through time ---------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}], ids=str)
def test_state_gradient_norms(kind, options, torch, rng):
    """Against PyTorch's cells, unrolled by hand, each state keeping its gradient."""
    n, steps, features, hidden = 3, 6, 4, 7
    layer = getattr(nn, kind)(features, hidden, **options)
    x = normal(rng, (n, steps, features))
    y = layer(x)
    with pytest.raises(RuntimeError, match="backward"):
        _ = layer.state_gradient_norms
    dy = normal(rng, y.shape)
    layer.backward(dy)

    input_t, kept = torch.from_numpy(x).double(), []
    for number in range(options.get("num_layers", 1)):
        outputs = []
        for end in ("", "_reverse")[: 1 + bool(options.get("bidirectional"))]:
            cell = getattr(torch.nn, f"{kind}Cell")(input_t.shape[2], hidden)
            names = {name: layer.state_dict()[f"{name}_l{number}{end}"] for name, _ in cell.named_parameters()}
            cell.load_state_dict({name: torch.from_numpy(w) for name, w in names.items()})
            cell.double()
            states, state = [None] * steps, None
            for t in reversed(range(steps)) if end else range(steps):
                state = cell(input_t[:, t], state)
                states[t] = state[0] if kind == "LSTM" else state
                states[t].retain_grad()
            kept.append(states)
            outputs.append(torch.stack(states, dim=1))
        input_t = torch.cat(outputs, dim=2)
    input_t.backward(torch.from_numpy(dy).double())
    want = [[float(h.grad.norm()) for h in states] for states in kept]
    got = layer.state_gradient_norms
    assert got.shape == (len(kept), steps)
    assert_close(got, want, 1000)


def test_norms_fall_as_far_as_a_float_can():
    """A linear state that keeps a hundredth of itself: dE/dh(t) = 0.01^(T - 1 - t) dE/dh(T - 1)."""
    layer = nn.RNN(1, 3, nonlinearity="relu")
    layer.load_state_dict(
        {
            "weight_ih_l0": np.zeros((3, 1), np.float32),
            "weight_hh_l0": np.float32(0.01) * np.eye(3, dtype=np.float32),
            "bias_ih_l0": np.ones(3, np.float32),
            "bias_hh_l0": np.zeros(3, np.float32),
        }
    )
    dy = np.zeros((2, 19, 3), np.float32)
    dy[:, -1] = 1.0
    layer(np.zeros((2, 19, 1), np.float32))
    layer.backward(dy)
    want = np.sqrt(6.0) * 0.01 ** np.arange(18.0, -1.0, -1.0)
    np.testing.assert_allclose(layer.state_gradient_norms[0], want, rtol=1e-5)


def test_state_and_norms_come_after_their_runs():
    layer = nn.GRU(2, 3)
    with pytest.raises(RuntimeError, match=r"\[GRU\]"):
        _ = layer.state
    with pytest.raises(RuntimeError, match=r"\[GRU\]"):
        _ = layer.state_gradient_norms


# --- dropout ---------------------------------------------------------------------------------------------------------


@every_kind
def test_dropout_is_between_layers_and_in_training_only(kind, rng):
    x = normal(rng, (4, 6, 5))
    layer = getattr(nn, kind)(5, 8, num_layers=2, dropout=1.0)
    plain = getattr(nn, kind)(5, 8, num_layers=2)
    plain.load_state_dict(layer.state_dict())
    dropped = layer(x)
    second = getattr(nn, kind)(8, 8)
    second.load_state_dict({n.replace("l1", "l0"): w for n, w in layer.state_dict().items() if "l1" in n})
    assert_same_bits(dropped, second(np.zeros((4, 6, 8))))
    assert not layer.backward(np.ones_like(dropped)).any()
    assert_same_bits(layer.eval()(x), plain(x))

    single = getattr(nn, kind)(5, 8, dropout=1.0)
    single.load_state_dict({n: w for n, w in layer.state_dict().items() if "l0" in n})
    layer = getattr(nn, kind)(5, 8)
    layer.load_state_dict(single.state_dict())
    assert_same_bits(single(x), layer(x))


@every_kind
def test_dropout_gradient(kind, rng):
    """Against differences, the same mask drawn for every run."""
    layer = getattr(nn, kind)(4, 6, num_layers=3, dropout=0.4, bidirectional=True)
    x, v = normal(rng, (3, 5, 4)), normal(rng, (3, 5, 4))
    dy = normal(rng, (3, 5, 12))

    def run(x):
        dn.manual_seed(5)
        return layer(x)

    base = run(x)
    assert not np.array_equal(base, layer(x))
    run(x)
    slope = np.sum(np.float64(layer.backward(dy)) * v)
    step = 1e-2
    difference = np.sum(dy * (np.float64(run(x + step * v)) - run(x - step * v))) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=5e-3)


# --- gradients that are made anew, and added up ----------------------------------------------------------------------


@every_kind
@every_stack
def test_a_trainer_makes_the_gradients_that_backward_adds_up(kind, stack, rng):
    net = nn.Sequential(make(kind, stack))
    x = normal(rng, stack[:3])
    y = 1e4 * normal(rng, net(x).shape)  # so that gradients are large beside the weights
    loss, before = nn.MSELoss(), net.state_dict()
    for _ in range(2):
        loss(net(x), y)
        net.backward(loss.backward())
    twice = {name: parameter.grad.copy() for name, parameter in net.parameters().items()}
    dn.Trainer(net, loss, optim.SGD(lr=1.0)).step(x, y)
    for name, parameter in net.parameters().items():
        step = before[name] - parameter.data
        np.testing.assert_allclose(step, twice[name] / 2, rtol=0, atol=1e-5 * np.abs(step).max(), err_msg=name)


# --- bits ------------------------------------------------------------------------------------------------------------

BITS = """
import hashlib, sys
import numpy as np
import deepnet as dn
from deepnet import nn

digest = hashlib.sha256()
rng = np.random.default_rng(0)
for kind in ("RNN", "LSTM", "GRU"):
    for n, t, f, h, options in [(33, 7, 9, 65, {}), (1, 50, 16, 32, {}), (70, 4, 20, 130, dict(num_layers=2)),
                                (1, 130, 40, 70, {}), (5, 61, 30, 70, dict(bidirectional=True, num_layers=2)),
                                (9, 6, 5, 40, dict(bidirectional=True, num_layers=2, dropout=0.3))]:
        dn.manual_seed(1)
        layer = getattr(nn, kind)(f, h, **options)
        x = rng.standard_normal((n, t, f)).astype("f")
        lengths = rng.integers(1, t + 1, n)
        y = layer(x, lengths=lengths)
        dy = rng.standard_normal(y.shape).astype("f")
        for array in (y, layer.backward(dy), layer.state_gradient_norms, layer.step(x[:, 0]) if len(options) < 2 else y,
                      *[p.grad for p in layer.parameters().values()]):
            digest.update(np.ascontiguousarray(array).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.parametrize("isa", dn.available_isas())
def test_bits_do_not_depend_on_threads(isa):
    digests = {
        run_python(f"import deepnet\ndeepnet.set_num_threads({k})\n{BITS}", DEEPNET_ISA=isa) for k in (1, 2, 3, 5)
    }
    assert len(digests) == 1


# One shape of each kind against PyTorch, where every instruction set can be forced.
AGREES = """
import numpy as np, torch
import deepnet as dn
from deepnet import nn

for kind in ("RNN", "LSTM", "GRU"):
    for n, t, f, h in [(3, 5, 7, 13), (16, 4, 33, 70), (1, 20, 5, 32), (2, 3, 4, 150)]:
        layer = getattr(nn, kind)(f, h, num_layers=2, bidirectional=True)
        module = getattr(torch.nn, kind)(f, h, 2, bidirectional=True, batch_first=True)
        module.load_state_dict({k: torch.from_numpy(v) for k, v in layer.state_dict().items()})
        module.double()
        rng = np.random.default_rng(0)
        x = rng.standard_normal((n, t, f)).astype("f")
        y = layer(x)
        dy = rng.standard_normal(y.shape).astype("f")
        x_t = torch.from_numpy(x).double().requires_grad_()
        y_t = module(x_t)[0]
        y_t.backward(torch.from_numpy(dy).double())
        pairs = [(y, y_t.detach()), (layer.backward(dy), x_t.grad)]
        pairs += [(layer.parameters()[name].grad, p.grad) for name, p in module.named_parameters()]
        for got, want in pairs:
            assert np.abs(got - want.numpy()).max() <= 2e-5 * want.abs().max(), (kind, n, t, f, h)
"""


@pytest.mark.parametrize("isa", dn.available_isas())
def test_every_isa_agrees_with_pytorch(isa, torch):
    run_python(AGREES, DEEPNET_ISA=isa, timeout=120)


# --- files and bad input ---------------------------------------------------------------------------------------------


@every_kind
def test_saved_network_is_the_same(kind, rng, tmp_path):
    options = {"num_layers": 2, "bidirectional": True, "bias": False, "dropout": 0.25, "truncate": 3}
    if kind == "RNN":
        options["nonlinearity"] = "softplus"
    net = nn.Sequential(getattr(nn, kind)(3, 5, **options), nn.Linear(10, 2))
    path = tmp_path / "net.safetensors"
    net.save(path)
    again = dn.load(path)
    x = normal(rng, (2, 4, 3))
    assert_same_bits(again.predict(x), net.predict(x))
    assert repr(again) == repr(net)


@every_kind
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3), "input_size"),
        ((3, 0), "hidden_size"),
        ((3, -1), "hidden_size"),
        ((3, 4, 0), "num_layers"),
        ({"dropout": 1.5}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
        ({"truncate": 0}, "truncate"),
        ({"truncate": -2}, "truncate"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(kind, arguments, message):
    build = getattr(nn, kind)
    positional, named = ((3, 4), arguments) if isinstance(arguments, dict) else (arguments, {})
    with pytest.raises(ValueError, match=rf"^\[{kind}\] expected .*{message}"):
        build(*positional, **named)


def test_unknown_nonlinearity_is_refused():
    with pytest.raises(
        ValueError, match=r"\[RNN\] expected a nonlinearity of tanh, relu, sigmoid, softplus, got 'cos'"
    ):
        nn.RNN(3, 4, nonlinearity="cos")
    with pytest.raises(TypeError):
        nn.LSTM(3, 4, nonlinearity="relu")


@every_kind
def test_bad_states_are_refused(kind):
    layer, x = getattr(nn, kind)(3, 4, num_layers=2), np.zeros((5, 6, 3))
    good = np.zeros((2, 5, 4))
    for shape in [(2, 4, 4), (1, 5, 4), (2, 5, 3), (5, 4), (2, 1, 4)]:
        bad = np.zeros(shape)
        for state in [(bad, good), (good, bad)] if kind == "LSTM" else [bad]:
            with pytest.raises(dn.ShapeError, match=rf"\[{kind}\] expected an initial state of shape \(2, 5, 4\)"):
                layer(x, state)
    y = layer(x, (good, good) if kind == "LSTM" else good)
    assert y.shape == (5, 6, 4)


@every_kind
def test_bad_steps_are_refused(kind):
    layer = getattr(nn, kind)(3, 4)
    for shape in [(3,), (2, 5, 3), (2, 4)]:
        with pytest.raises(dn.ShapeError, match=rf"\[{kind}.step\] expected input of shape \(N, 3\), got"):
            layer.step(np.zeros(shape))
    layer.step(np.zeros((2, 3)))
    with pytest.raises(dn.ShapeError, match=r"expected a batch of 2 sequences.* got 5.*reset_state"):
        layer.step(np.zeros((5, 3)))
    with pytest.raises(ValueError, match="one direction"):
        getattr(nn, kind)(3, 4, bidirectional=True).step(np.zeros((2, 3)))


@every_kind
def test_no_sequences_give_no_outputs(kind):
    layer = getattr(nn, kind)(3, 4, num_layers=2, bidirectional=True)
    y = layer(np.zeros((0, 5, 3)))
    assert y.shape == (0, 5, 8)
    assert layer.backward(y).shape == (0, 5, 3)
    assert all(not g.any() for g in gradients(layer).values())
    assert layer.state_gradient_norms.shape == (4, 5)
