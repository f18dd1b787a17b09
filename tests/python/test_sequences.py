"""Masks, lengths and what layers show, on their way through networks: predict, evaluate, fit, Trainer.step."""

import numpy as np
import pytest

import deepnet as dn
from checks import assert_close, assert_same_bits, integers, normal, weights
from deepnet import nn, optim

T = 7


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.fixture
def data(rng):
    """Ten sequences of different lengths, NaN where they have ended; per-step labels; last-step targets."""
    lengths = np.array([7, 3, 1, 5, 7, 2, 4, 6, 1, 3])
    x = normal(rng, (10, T, 3))
    padding = np.arange(T) >= lengths[:, None]
    x[padding] = np.nan
    labels = rng.integers(0, 4, (10, T))
    labels[padding] = -100
    return x, lengths, ~padding, labels


def tagger():
    """A label for every step."""
    return nn.Sequential(nn.Recurrent(nn.GRUCell(3, 5)), nn.Tanh(), nn.Linear(5, 4))


def reader():
    """One answer for the whole sequence."""
    return nn.Sequential(nn.Recurrent(nn.LSTMCell(3, 5), return_sequences=False), nn.Linear(5, 2))


def alone(net, x, lengths):
    """The network's answer to each sequence by itself."""
    return [net.predict(x[n : n + 1, :length])[0] for n, length in enumerate(lengths)]


# --- predict and evaluate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 10, 256])
def test_predict(batch_size, data):
    x, lengths, mask, _ = data
    net = reader()
    y = net.predict(x, batch_size, lengths=lengths)
    assert_close(y, np.stack(alone(net, x, lengths)), length=60)
    assert_same_bits(net.predict(x, batch_size, mask=mask), y)
    net.eval()
    assert_close(net(x, lengths=lengths), y)
    assert net.predict(zeros(0, T, 3), lengths=np.zeros(0, int)).shape == (0, 2)


def test_evaluate(data):
    """Loss and accuracy are means over the steps there are."""
    x, lengths, mask, labels = data
    net = tagger()
    outputs = alone(net, x, lengths)
    flat, flat_labels = np.concatenate(outputs), labels[mask]
    want = {
        "loss": pytest.approx(nn.CrossEntropyLoss()(flat, flat_labels), rel=1e-5),
        "accuracy": np.mean(flat.argmax(1) == flat_labels),
    }
    loss = nn.CrossEntropyLoss(axis=-1)
    for batch_size in (1, 4, 256):
        assert net.evaluate(x, labels, loss=loss, batch_size=batch_size, lengths=lengths) == want
    assert net.evaluate(x, labels, loss=loss, mask=mask) == want
    batches = [(x[:4], labels[:4], lengths[:4]), (x[4:], labels[4:], mask[4:])]
    assert net.evaluate(batches, loss=loss) == want


# --- training ---------------------------------------------------------------------------------------------------------


def test_trainer_step(data):
    """The gradients are those of the sequences one by one."""
    x, lengths, mask, labels = data
    net, loss = tagger(), nn.CrossEntropyLoss(axis=-1)
    net.zero_grad()
    for n, length in enumerate(lengths):
        y = net(x[n : n + 1, :length])
        loss(y, labels[n : n + 1, :length])
        net.backward(loss.backward() * length / mask.sum())
    want = {name: p.grad.copy() for name, p in net.parameters().items()}
    trainer = dn.Trainer(net, loss, optim.SGD(lr=0.0))
    first = trainer.step(x, labels, lengths=lengths)
    for name, parameter in net.parameters().items():
        assert_close(parameter.grad, want[name], length=60, what=name)
    assert trainer.step(x, labels, mask=mask) == first
    assert trainer.last_counted == mask.sum()
    assert trainer.last_correct == round(net.evaluate(x, labels, loss=loss, mask=mask)["accuracy"] * mask.sum())
    assert_same_bits(trainer.step(np.nan_to_num(x), labels, lengths=lengths), first)


@pytest.mark.parametrize("given", ["lengths", "mask"])
def test_fit_gathers_masks_with_their_rows(given, data):
    """Shuffled native training equals steps on the rows in that order."""
    x, lengths, mask, labels = data
    loss, options = nn.CrossEntropyLoss(axis=-1), {"optimizer": optim.SGD(lr=0.5), "epochs": 3, "batch_size": 4}
    fitted, stepped = tagger(), tagger()
    stepped.load_state_dict(fitted.state_dict())
    padding = {"lengths": lengths} if given == "lengths" else {"mask": mask}
    history = fitted.fit(x, labels, loss=loss, seed=5, progress=False, **padding, **options)

    trainer, rng = dn.Trainer(stepped, nn.CrossEntropyLoss(axis=-1), optim.SGD(lr=0.5)), np.random.default_rng(5)
    correct = counted = 0
    for epoch in range(3):
        order, total, counted, correct = rng.permutation(10), 0.0, 0, 0
        for rows in (order[:4], order[4:8], order[8:]):
            total += trainer.step(x[rows], labels[rows], lengths=lengths[rows]) * trainer.last_counted
            counted, correct = counted + trainer.last_counted, correct + trainer.last_correct
        assert counted == mask.sum()
        assert history["loss"][epoch] == pytest.approx(total / counted)
        assert history["accuracy"][epoch] == correct / counted
    for name, weight in weights(fitted).items():
        assert_same_bits(weight, weights(stepped)[name], name)


def test_fit_on_batches_and_validation_data(data):
    x, lengths, mask, labels = data
    loss = nn.CrossEntropyLoss(axis=-1)
    batches = [(x[:5], labels[:5], lengths[:5]), [x[5:], labels[5:], mask[5:]]]
    forms = [(x, labels, lengths), (x, labels, mask), batches]
    scores = []
    for validation_data in forms:
        dn.manual_seed(3)
        net = tagger()
        history = net.fit(batches, loss=loss, epochs=2, validation_data=validation_data, progress=False)
        assert history["val_loss"][1] == pytest.approx(net.evaluate(x, labels, loss=loss, lengths=lengths)["loss"])
        scores.append((history["val_loss"], history["val_accuracy"]))
    assert scores[0] == scores[1]
    assert scores[2][0] == pytest.approx(scores[0][0])
    assert scores[2][1] == scores[0][1]


def test_layers_without_time_ignore_the_mask(rng):
    x = normal(rng, (4, 6))
    net = nn.Sequential(nn.Linear(6, 3), nn.ReLU())
    assert_same_bits(net(x, lengths=[1, 2, 3, 4]), net(x))
    assert_same_bits(net.predict(x, lengths=[1, 2, 3, 4]), net(x))


def test_python_layers_see_no_padding(rng):
    """A layer that is run to learn its output's shape is given what it gets in the run itself."""
    seen = []

    class Watch(nn.Layer):
        def forward(self, x):
            seen.append(np.isfinite(x).all())
            return x

        def backward(self, dy):
            return dy

    x = np.full((2, 4, 3), np.nan, np.float32)
    x[:, :2] = 1
    net = nn.Sequential(nn.Recurrent(nn.RNNCell(3, 3)), Watch())
    net(x, lengths=[2, 2])
    net.predict(x, lengths=[2, 2])
    assert seen
    assert all(seen)


# --- what layers show -------------------------------------------------------------------------------------------------


def test_state_and_norms_of_a_layer_in_a_network(rng):
    """As of the layer alone, after a call, Trainer.step and fit."""
    layer = nn.Recurrent(nn.LSTMCell(3, 5))
    head = nn.Linear(5, 2)
    net, twin = nn.Sequential(nn.Tanh(), nn.Sequential(layer), head), nn.Recurrent(layer.cell)
    x, y = normal(rng, (4, 6, 3)), normal(rng, (4, 6, 2))
    twin(np.tanh(x))
    net(x)
    for got, want in zip(layer.state, twin.state, strict=True):
        assert_close(got, want, length=8)
    loss = nn.MSELoss()
    loss(net(x), y)
    net.backward(loss.backward())
    twin.backward(loss.backward() @ head.weight.data)
    want = twin.state_gradient_norms
    assert_close(layer.state_gradient_norms, want, length=20)

    trainer = dn.Trainer(net, nn.MSELoss(), optim.SGD(lr=0.0))
    trainer.step(x, y)
    assert_close(layer.state_gradient_norms, want, length=20)
    del trainer  # and its memory
    assert_close(layer.state_gradient_norms, want, length=20)
    assert_close(layer.state[0], twin.state[0], length=8)

    net.fit(x, y, loss="mse", optimizer=optim.SGD(lr=0.0), batch_size=3, shuffle=False, progress=False)
    twin(np.tanh(x[3:]))  # the last batch
    assert_close(layer.state[1], twin.state[1], length=8)


def test_what_is_shown_is_of_the_last_run(rng):
    layer, x = nn.Recurrent(nn.GRUCell(3, 4)), normal(rng, (2, 5, 3))
    net = nn.Sequential(layer, nn.Linear(4, 4))
    layer(x)
    alone = layer.state
    net(2 * x)
    assert not np.array_equal(layer.state, alone)
    layer(x)
    assert_same_bits(layer.state, alone)
    layer(x[:1])
    assert layer.state.shape == (1, 1, 4)
    net.predict(2 * x)  # keeps nothing
    assert layer.state.shape == (1, 1, 4)
    copy = layer.state
    layer(3 * x[:1])
    assert not np.array_equal(layer.state, copy)  # what was given out stays as it was


def test_two_layers_in_one_network(rng):
    a, b = nn.Recurrent(nn.RNNCell(3, 4)), nn.Recurrent(nn.RNNCell(4, 2), reverse=True)
    net = nn.Sequential(a, b)
    x = normal(rng, (2, 5, 3))
    y = net(x)
    assert_same_bits(b.state[0], y[:, 0])
    assert_same_bits(a.state[0], nn.Recurrent(a.cell)(x)[:, -1])
    net.backward(np.ones_like(y))
    assert a.state_gradient_norms.shape == b.state_gradient_norms.shape == (1, 5)
    trainer = dn.Trainer(net, nn.MSELoss(), optim.SGD(lr=0.0))
    trainer.step(x, y)  # a loss of 0: no error goes back
    assert not a.state_gradient_norms.any()
    assert not b.state_gradient_norms.any()


def test_max_pool_indices_in_a_network(rng):
    pool, conv = nn.MaxPool2d(2), nn.Conv2d(1, 3, 3)
    net = nn.Sequential(conv, pool, nn.Flatten(), nn.Linear(27, 2))
    x, twin = integers(rng, (2, 1, 8, 8)), nn.MaxPool2d(2)
    with pytest.raises(RuntimeError, match="MaxPool2d"):
        _ = pool.indices
    twin(conv(x))
    net(x)
    assert_same_bits(pool.indices, twin.indices)
    net.backward(np.ones((2, 2)))
    assert_same_bits(pool.indices, twin.indices)
    twin(conv(x[:1]))
    net.fit(x[:1], np.array([1]), optimizer=optim.SGD(lr=0.0), progress=False)
    assert_same_bits(pool.indices, twin.indices)


# --- what is refused --------------------------------------------------------------------------------------------------


def trainer():
    return dn.Trainer(tagger(), nn.CrossEntropyLoss(axis=-1), optim.SGD(lr=0.1))


X, LABELS = zeros(2, 5, 3), np.zeros((2, 5), int)


def fit(x, y=None, **options):
    return tagger().fit(x, y, loss=nn.CrossEntropyLoss(axis=-1), progress=False, **options)


BAD = {
    "step: length": (lambda: trainer().step(X, LABELS, lengths=[5, 6]), ValueError, ["[Trainer]", "T = 5", "6"]),
    "step: mask": (lambda: trainer().step(X, LABELS, mask=zeros(2, 4)), dn.ShapeError, ["[Trainer]", "(2, 5)"]),
    "step: both": (lambda: trainer().step(X, LABELS, lengths=[5, 5], mask=zeros(2, 5)), ValueError, ["both"]),
    "step: values": (lambda: trainer().step(X, LABELS, mask=np.full((2, 5), 3)), ValueError, ["0 and 1", "3"]),
    "fit: lengths": (lambda: fit(X, LABELS, lengths=[5, 5, 5]), dn.ShapeError, ["[fit]", "2 lengths", "(3,)"]),
    "fit: mask": (lambda: fit(X, LABELS, mask=zeros(3, 5)), dn.ShapeError, ["(2, 5)", "(3, 5)"]),
    "fit: values": (lambda: fit(X, LABELS, mask=np.full((2, 5), -1)), ValueError, ["0 and 1", "-1"]),
    "fit: lengths beside batches": (
        lambda: fit([(X, LABELS)], lengths=[5, 5]),
        ValueError,
        ["[fit]", "(x, y, lengths)"],
    ),
    "fit: four in a batch": (lambda: fit([(X, LABELS, [5, 5], 1)]), TypeError, ["[fit]", "batch 1"]),
    "fit: validation": (
        lambda: fit(X, LABELS, validation_data=(X, LABELS, [0, 1])),
        ValueError,
        ["validation_data", "T = 5"],
    ),
    "predict: lengths": (lambda: tagger().predict(X, lengths=[1]), dn.ShapeError, ["[Sequential]", "2 lengths"]),
    "predict: floats": (lambda: tagger().predict(X, lengths=[1.5, 2]), TypeError, ["[Sequential]", "integers"]),
    "evaluate: mask": (
        lambda: tagger().evaluate(X, LABELS, loss=nn.CrossEntropyLoss(axis=-1), mask=zeros(2, 5, 1)),
        dn.ShapeError,
        ["(2, 5)", "(2, 5, 1)"],
    ),
    "evaluate: lengths beside batches": (
        lambda: tagger().evaluate([(X, LABELS)], lengths=[5, 5]),
        ValueError,
        ["[evaluate]", "(x, y, lengths)"],
    ),
    "state for a network": (lambda: tagger()(X, state=zeros(1, 2, 5)), TypeError, ["[Sequential]", "no state"]),
    "all labels ignored": (lambda: trainer().step(X, LABELS - 100), ValueError, ["CrossEntropyLoss", "-100"]),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name):
    attempt, error, words = BAD[name]
    with pytest.raises(error) as info:
        attempt()
    for word in [*words, "expected"]:
        assert word in str(info.value)


# --- where a loss stopped being finite --------------------------------------------------------------------------------


def test_nan_in_the_middle_of_a_sequence_is_named(data):
    x, _, _, labels = data
    x, labels = np.nan_to_num(x), np.where(labels < 0, 0, labels)
    x[6, 3, 1] = np.nan
    with pytest.raises(FloatingPointError, match=r"input .* not finite, the first in x\[6\] at step 3"):
        trainer().step(x, labels)
    with pytest.raises(FloatingPointError, match=r"x\[6\] at step 3 \(epoch 1 of 2, batch \d\)"):  # whatever the order
        fit(x, labels, epochs=2, batch_size=2)
    fit(x, labels, mask=np.arange(T) < np.where(np.arange(10) == 6, 3, 7)[:, None])  # padding may hold anything


def test_the_layer_and_step_of_an_overflow_are_named(rng):
    class Explode(nn.Layer):
        state_size = 2

        def forward(self, x, state):
            return np.where(x == 9, np.float32(np.inf), x + state)

        def backward(self, d_state):
            return d_state, d_state

    x = np.ones((3, 8, 2), np.float32)
    x[2, 5] = 9
    net = nn.Sequential(nn.Recurrent(Explode()), nn.Linear(2, 2))
    with pytest.raises(FloatingPointError, match=r"layer 0 \(Recurrent\) .*first.*x\[2\] at step 5"):
        dn.Trainer(net, nn.MSELoss(), optim.SGD(lr=0.1)).step(x, zeros(3, 8, 2))


def test_rows_without_steps_are_named(rng):
    x = normal(rng, (5, 3))
    x[4, 2] = np.inf
    net = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(FloatingPointError, match=r"the first in x\[4\]$"):
        dn.Trainer(net, nn.MSELoss(), optim.SGD(lr=0.1)).step(x, zeros(5, 2))
