"""fit, predict, evaluate, summary: batches, books, callbacks, progress, Ctrl-C, and what they refuse."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import deepnet as dn
from checks import assert_same_bits, attempt_python, normal, run_python, weights
from deepnet import callbacks, nn, optim


def mlp(features=4, classes=3):
    return nn.Sequential(nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, classes))


@pytest.fixture
def blobs(rng):
    """Three clouds of points that a small network tells apart."""
    y = rng.integers(0, 3, 100)
    return (rng.standard_normal((100, 4)) + 3 * np.eye(3, 4)[y]).astype(np.float32), y


def fit(net, *data, **options):
    return net.fit(*data, **{"progress": False, "optimizer": optim.SGD(0.1, 0.9), **options})


# --- batches and books -----------------------------------------------------------------------------------------------


def test_history_has_one_entry_an_epoch(blobs):
    net = mlp()
    history = fit(net, *blobs, epochs=4, validation_data=blobs)
    assert list(history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    assert all(len(values) == 4 for values in history.values())
    assert history.epochs == 4
    assert len(history.seconds) == 4
    assert history["val_accuracy"][-1] > 0.9
    assert history["loss"][-1] < history["loss"][0]
    assert net.history is history
    assert "4 epochs" in repr(history)


@pytest.mark.parametrize("batch_size", [1, 7, 32, 100, 1000])
def test_fit_is_trainer_steps_over_every_row(blobs, batch_size):
    """Each epoch takes the rows in the order of one generator; the last batch is smaller, and none is dropped."""
    x, y = blobs
    net, twin = mlp(), mlp()
    twin.load_state_dict(net.state_dict())
    history = fit(net, x, y, epochs=2, batch_size=batch_size, seed=5)
    trainer, random = dn.Trainer(twin, nn.CrossEntropyLoss(), optim.SGD(0.1, 0.9)), np.random.default_rng(5)
    for epoch in range(2):
        order, total, correct = random.permutation(100), 0.0, 0
        for begin in range(0, 100, batch_size):
            rows = order[begin : begin + batch_size]
            total += trainer.step(x[rows], y[rows]) * len(rows)
            correct += trainer.last_correct
        assert history["loss"][epoch] == pytest.approx(total / 100, rel=1e-12)
        assert history["accuracy"][epoch] == correct / 100
    for name, w in weights(twin).items():
        assert_same_bits(net.state_dict()[name], w)


def test_same_seed_same_weights_other_seed_others(blobs):
    results = []
    for seed in (1, 1, 2):
        dn.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 3))
        fit(net, *blobs, epochs=2, seed=seed)
        results.append(net.state_dict()["0.weight"])
    assert_same_bits(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_shuffle_off_keeps_the_order(blobs):
    x, y = blobs
    net, twin = mlp(), mlp()
    twin.load_state_dict(net.state_dict())
    fit(net, x, y, shuffle=False, batch_size=30)
    fit(twin, [(x[i : i + 30], y[i : i + 30]) for i in range(0, 100, 30)])
    for name, w in weights(twin).items():
        assert_same_bits(net.state_dict()[name], w)


def test_iterables_of_batches(blobs):
    x, y = blobs

    class Loader:
        walks = 0

        def __iter__(self):
            self.walks += 1
            return ([x[i : i + 40], y[i : i + 40]] for i in (0, 40, 80))

    loader = Loader()
    history = fit(mlp(), loader, epochs=3, validation_data=loader)
    assert loader.walks == 6
    assert len(history["val_accuracy"]) == 3
    assert fit(mlp(), ((x, y) for _ in range(4))).epochs == 1
    with pytest.raises(ValueError, match=r"\[fit\] expected batches that can be walked 2 times.*got a generator"):
        fit(mlp(), ((x, y) for _ in range(4)), epochs=2)


def test_float_targets_of_batches_are_numbers_not_labels(rng):
    """As those of arrays are: cross entropy over one class would be 0 whatever the network does."""
    x = normal(rng, (60, 4))
    y = 3 * x[:, :1] + 1
    of_arrays = fit(nn.Linear(4, 1), x, y, epochs=3, shuffle=False, batch_size=20)
    batches = [(x[i : i + 20], y[i : i + 20]) for i in (0, 20, 40)]
    for epochs, data in ((3, batches), (1, iter(batches))):
        net = nn.Linear(4, 1)
        history = fit(net, data, epochs=epochs)
        assert 0.2 < history["loss"][0] / of_arrays["loss"][0] < 5
        assert net.evaluate(iter(batches))["loss"] < history["loss"][0]
    for call in (
        lambda net: fit(net, x, y > 0),
        lambda net: fit(net, [(x, y > 0)]),
        lambda net: net.evaluate(x, y > 0),
    ):
        with pytest.raises(
            ValueError, match=r"two classes or more .* bool of shape \(60, 1\): pass loss='bce_with_logits'"
        ):
            call(nn.Linear(4, 1))


def test_batches_without_a_label_that_counts_are_left_out(rng):
    x, y = normal(rng, (50, 5)), np.full(50, -100)
    y[:5] = np.arange(5) % 3
    net, twin = nn.Linear(5, 3), nn.Linear(5, 3)
    twin.load_state_dict(net.state_dict())
    history = fit(net, x, y, batch_size=5, epochs=2, shuffle=False)
    wanted = fit(twin, x[:5], y[:5], batch_size=5, epochs=2, shuffle=False)
    assert history == wanted
    assert_same_bits(net.weight.data, twin.weight.data)
    scores = net.evaluate(x, y, batch_size=5)
    assert scores == pytest.approx(net.evaluate(x[:5], y[:5]))
    assert net.evaluate([(x[5:], y[5:]), (x[:5], y[:5])]) == pytest.approx(scores)
    for nothing in (lambda: fit(net, x[5:], y[5:]), lambda: net.evaluate([(x[5:], y[5:])])):
        with pytest.raises(ValueError, match="expected at least one label other than ignore_index -100, got none"):
            nothing()


class Stream:
    """What hosts put in the place of stderr."""

    def __init__(self, fails_after):
        self.lines, self.fails_after = [], fails_after

    def write(self, text):
        if len(self.lines) >= self.fails_after:
            raise OSError(28, "No space left on device")
        self.lines.append(text)


@pytest.mark.parametrize("fails_after", [0, 3, 1000])
def test_training_outlives_its_progress(fails_after, blobs, monkeypatch):
    stream = Stream(fails_after)
    monkeypatch.setattr("sys.stderr", stream)
    assert mlp().fit(*blobs, epochs=4).epochs == 4
    assert "".join(stream.lines).count("epoch") == min(fails_after // 2 + fails_after % 2, 4)


def test_weights_spoilt_by_the_last_step_are_found(blobs):
    epochs = []
    options = {
        "batch_size": 100,
        "optimizer": optim.SGD(lr=3e38),
        "callbacks": lambda epoch, logs: epochs.append(epoch),
    }
    with pytest.raises(FloatingPointError, match=r"expected finite weights, got nan or inf in .* after epoch 1 of 1"):
        fit(mlp(), 1e3 * blobs[0], blobs[1], **options)
    assert not epochs, "nobody is told of such weights as of good ones"


def test_parameters_may_be_infinite_from_the_start(blobs):
    class Masked(nn.Layer):
        def __init__(self):
            super().__init__()
            self.mask = dn.Parameter(np.array([0, 0, 0, -np.inf]))

        def forward(self, x):
            return np.exp(x + self.mask.data)

        def backward(self, dy):
            return dy

    assert fit(nn.Sequential(Masked(), nn.Linear(4, 3)), *blobs).epochs == 1


def test_errors_of_validation_data_say_so(blobs):
    x, y = blobs
    for data, message in (
        ((x, y + 7), r"\[CrossEntropyLoss\] expected labels"),
        ((x[:, :3], y), r"\[Linear\] expected input"),
    ):
        with pytest.raises(ValueError, match=message + r".* \(in validation_data, after epoch 1 of 2\)$"):
            fit(mlp(), x, y, epochs=2, validation_data=data)


def test_every_kind_of_array_trains_alike(blobs):
    x, y = np.round(blobs[0]), blobs[1]
    reference = mlp()
    start = reference.state_dict()
    fit(reference, x, y)
    frozen = x.copy()
    frozen.flags.writeable = False
    for other_x, other_y in [
        (x.astype(np.float64), y.astype(np.uint8)),
        (x.astype(np.int8), y.astype(">i4")),
        (np.asfortranarray(x), y.astype(np.int16)),
        (x.astype(">f4"), y[::-1].copy()[::-1]),
        (np.repeat(x, 2, axis=1)[:, ::2], y.tolist()),
        (x.tolist(), y.astype(np.uint64)),
        (frozen, y),
    ]:
        net = mlp()
        net.load_state_dict(start)
        fit(net, other_x, other_y)
        for name, w in weights(reference).items():
            assert_same_bits(net.state_dict()[name], w)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        ("mse", lambda y: np.eye(3)[y]),
        ("mse", lambda y: np.eye(3, dtype=np.int64)[y]),
        ("bce_with_logits", lambda y: np.eye(3)[y] > 0),
        ("cross_entropy", lambda y: np.eye(3)[y]),
        (nn.CrossEntropyLoss(), lambda y: 0.8 * np.eye(3)[y] + 0.2 / 3),
    ],
)
def test_targets_that_are_not_labels_have_no_accuracy(blobs, loss, target):
    net = mlp()
    history = fit(net, blobs[0], target(blobs[1]), loss=loss, epochs=6, validation_data=(blobs[0], target(blobs[1])))
    assert list(history) == ["loss", "val_loss"]
    assert history["loss"][-1] < history["loss"][0]
    assert list(net.evaluate(blobs[0], target(blobs[1]))) == ["loss"]


def test_defaults(blobs):
    net = mlp()
    history = net.fit(*blobs, progress=False)
    assert list(history) == ["loss", "accuracy"]
    regression = nn.Sequential(nn.Linear(4, 1)).fit(blobs[0], blobs[0][:, :1], progress=False)
    assert list(regression) == ["loss"]
    assert net.fit(*blobs, optimizer="sgd", loss="cross_entropy", progress=False).epochs == 1


def test_segmentation_counts_every_pixel(rng):
    y = rng.integers(0, 2, (8, 5, 5))
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    history = fit(net, y[:, None].astype(np.float32), y, epochs=30, batch_size=4)
    assert history["accuracy"][-1] == 1.0
    assert net.evaluate(y[:, None], y)["accuracy"] == 1.0


def test_evaluate_and_predict(blobs):
    x, y = blobs
    net = mlp()
    fit(net, x, y, epochs=3)
    scores = net.evaluate(x, y, batch_size=7)
    output = net.predict(x, batch_size=9)
    assert scores["accuracy"] == np.mean(output.argmax(axis=1) == y)
    assert scores["loss"] == pytest.approx(nn.CrossEntropyLoss()(output, y), rel=1e-6)
    assert net.evaluate([(x[:60], y[:60]), (x[60:], y[60:])])["loss"] == pytest.approx(scores["loss"], rel=1e-6)
    assert net.evaluate(x, np.eye(3)[y], loss="mse")["loss"] == pytest.approx(
        np.mean((output - np.eye(3)[y]) ** 2), 1e-5
    )
    assert net.predict(x[:0]).shape == (0, 3)


@pytest.mark.parametrize("kind", [tuple, list])
def test_validation_data_of_lists_are_arrays(kind):
    x, y = [[1.0, 2.0], [3.0, 4.0]], [0, 1]
    net = nn.Linear(2, 2)
    expected = net.evaluate(np.array(x), np.array(y), loss="cross_entropy")["loss"]
    kept = net.state_dict()
    for data in ((x, y), (np.array(x), y), (x, [[1.0, 0.0], [0.0, 1.0]]), ([*map(np.array, x)], y)):
        net.load_state_dict(kept)
        options = {"optimizer": optim.SGD(1e-30), "progress": False, "loss": "cross_entropy"}
        history = net.fit(np.array(x), np.array(y), validation_data=kind(data), **options)
        assert history["val_loss"][0] == pytest.approx(expected)


@pytest.mark.parametrize("outer", [tuple, list])
@pytest.mark.parametrize("inner", [tuple, list])
def test_validation_data_of_batches(blobs, outer, inner):
    x, y = blobs
    batches = outer(inner((x[i : i + 50], y[i : i + 50])) for i in (0, 50))
    net = mlp()
    history = fit(net, x, y, validation_data=batches)
    assert history["val_loss"][0] == pytest.approx(net.evaluate(x, y)["loss"], rel=1e-6)


# --- modes -----------------------------------------------------------------------------------------------------------


class Mode(nn.Layer):
    """Notes in which mode it runs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(self.training)
        return x

    def backward(self, dy):
        return dy


def test_modes_come_back(blobs):
    inner = nn.Sequential(nn.Dropout(0.5), nn.ReLU())
    net = nn.Sequential(nn.Linear(4, 8), inner, nn.Dropout(0.1), nn.Linear(8, 3))
    net.eval()
    inner[0].train()
    fit(net, *blobs)
    assert [net.training, inner.training, inner[0].training, inner[1].training, net[2].training] == [
        False, False, True, False, False
    ]  # fmt: skip
    net.train()
    net.predict(blobs[0])
    net.evaluate(*blobs)
    assert net.training


def test_python_layers_see_training_and_evaluation(blobs):
    mode = Mode()
    net = nn.Sequential(mode, nn.Linear(4, 3))
    fit(net, *blobs, batch_size=100, validation_data=blobs)
    assert mode.seen[0] is True
    assert mode.seen[-1] is False
    assert net.training


def test_predict_does_not_drop(blobs):
    net = nn.Sequential(nn.Dropout(0.9))
    assert_same_bits(net.predict(blobs[0]), blobs[0])


def test_predict_of_small_networks_is_that_of_large_ones(rng):
    """However it is called: a short way leads to brief predictions, and to no others."""
    net, x = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 3)), rng.standard_normal((8, 4), dtype=np.float32)
    expected = net.predict(np.repeat(x, 1000, axis=0))[::1000]
    sparse = np.zeros((8, 8), np.float32)
    sparse[:, ::2] = x
    for y in (
        net.predict(x),
        net.predict(x, 8),
        net.predict(x, 3),
        net.predict(x, batch_size=8),
        net.predict(x=x, batch_size=100),
        net.predict(x, batch_size=np.int64(8)),
        net.predict(x.astype(np.float64)),
        net.predict(np.asfortranarray(x)),
        net.predict(sparse[:, ::2]),
        net.predict(x.astype(">f4")),
        net.predict(x.tolist()),
        net.predict(x.view(np.matrix)),
    ):
        assert type(y) is np.ndarray
        assert y.flags.owndata or y.base is not None
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-7)
    net.load_state_dict({name: 0 * value for name, value in net.state_dict().items()})
    assert not net.predict(x).any()


def test_small_predictions_in_several_threads(rng):
    net = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 3))
    batches = [rng.standard_normal((n, 4), dtype=np.float32) for n in (1, 2, 3, 8)]
    expected = [net.predict(x) for x in batches]

    def same(i):
        return all(np.array_equal(net.predict(batches[i]), expected[i]) for _ in range(500))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(same, range(4)))


# --- callbacks -------------------------------------------------------------------------------------------------------


class Diary:
    def __init__(self):
        self.lines = []

    def on_fit_begin(self, trainer):
        assert isinstance(trainer, dn.Trainer)
        self.lines.append("begin")

    def on_epoch_begin(self, epoch):
        self.lines.append(f"epoch {epoch}")

    def on_batch_end(self, batch, logs):
        self.lines.append(f"batch {batch} of {logs['size']}")

    def on_epoch_end(self, epoch, logs):
        self.lines.append(f"end {epoch} {sorted(logs)}")

    def on_fit_end(self, history):
        self.lines.append(f"done {history.epochs}")


def test_callbacks_are_called_in_order(blobs):
    diary, seen = Diary(), []
    fit(
        mlp(),
        *blobs,
        epochs=2,
        batch_size=60,
        callbacks=[diary, lambda epoch, logs: seen.append((epoch, logs["loss"]))],
    )
    epoch = ["batch 0 of 60", "batch 1 of 40"]
    assert diary.lines == [
        "begin",
        *("epoch 0", *epoch, "end 0 ['accuracy', 'loss']"),
        *("epoch 1", *epoch, "end 1 ['accuracy', 'loss']"),
        "done 2",
    ]
    assert [epoch for epoch, loss in seen] == [0, 1]


def raise_stop(*arguments):
    raise callbacks.StopTraining


class StopAtBatch:
    def on_batch_end(self, batch, logs):
        return batch == 1


@pytest.mark.parametrize(
    ("callback", "epochs"),
    [
        (lambda epoch, logs: epoch == 1, 2),
        (lambda epoch, logs: np.float32(epoch) >= 1, 2),
        (lambda epoch, logs: epoch, 5),  # a number is no answer
        (raise_stop, 1),
        (StopAtBatch(), 1),
    ],
)
def test_callbacks_stop_training(blobs, callback, epochs):
    assert fit(mlp(), *blobs, epochs=5, batch_size=10, callbacks=callback).epochs == epochs


def test_exceptions_of_callbacks_arrive(blobs):
    def fail(epoch, logs):
        raise KeyError("mine")

    net = mlp().eval()
    with pytest.raises(KeyError, match="mine"):
        fit(net, *blobs, callbacks=[fail])
    assert not net.training


class Failing:
    """Fails in one of its methods; notes whether its end was called."""

    def __init__(self, where):
        self.where = where
        self.ended = False

    def _come(self, here):
        if here == self.where:
            raise RuntimeError(f"mine, {here}")

    def on_fit_begin(self, trainer):
        self._come("begin")

    def on_epoch_end(self, epoch, logs):
        self._come("epoch")

    def on_fit_end(self, history):
        self.ended = True
        self._come("end")


@pytest.mark.parametrize("where", ["begin", "epoch", "end"])
def test_every_callback_that_began_ends(blobs, where):
    first, failing, last = Failing(""), Failing(where), Failing("")
    optimizer = optim.SGD(0.4)
    schedule = callbacks.LearningRateSchedule(lambda epoch, lr: lr / 2)
    with pytest.raises(RuntimeError, match=f"mine, {where}"):
        fit(mlp(), *blobs, callbacks=[first, failing, schedule, last], optimizer=optimizer)
    assert first.ended
    assert failing.ended == last.ended == (where != "begin")
    assert optimizer.lr == 0.4


def test_a_failing_end_does_not_hide_what_went_wrong_before(blobs):
    last = Failing("")
    blobs[0][3] = np.nan
    with (
        pytest.warns(RuntimeWarning, match=r"\[fit\] on_fit_end of Failing failed, too: RuntimeError\('mine, end'\)"),
        pytest.raises(FloatingPointError, match="batch 1"),
    ):
        fit(mlp(), *blobs, callbacks=[Failing("end"), last], shuffle=False)
    assert last.ended
    with pytest.warns(RuntimeWarning, match="failed, too"), pytest.raises(RuntimeError, match="mine, end"):
        fit(mlp(), *(a[10:] for a in blobs), callbacks=[Failing("end"), Failing("end")])


def test_early_stopping_restores_the_best(blobs):
    x, y = blobs
    net, losses = mlp(), []
    stop = callbacks.EarlyStopping(patience=2)
    spoil = iter([0.1, 0.1, 0.1, 5.0, 5.0, 5.0, 5.0])

    class Spoil:
        def on_fit_begin(self, trainer):
            self.optimizer = trainer.optimizer

        def on_epoch_begin(self, epoch):
            self.optimizer.lr = next(spoil)

        def on_epoch_end(self, epoch, logs):
            losses.append(logs["val_loss"])

    fit(net, x, y, epochs=7, validation_data=(x, y), callbacks=[Spoil(), stop])
    assert stop.best_epoch == int(np.argmin(losses))
    assert len(losses) == stop.best_epoch + 3
    assert net.evaluate(x, y)["loss"] == pytest.approx(min(losses), rel=1e-6)


def test_learning_rate_schedules(blobs):
    rates, optimizer = [], optim.SGD(0.4)
    record = lambda epoch, logs: rates.append(optimizer.lr)  # noqa: E731
    halve = callbacks.LearningRateSchedule(lambda epoch, lr: lr * 0.5**epoch)
    fit(mlp(), *blobs, epochs=3, optimizer=optimizer, callbacks=[halve, record])
    assert rates == [0.4, 0.2, 0.1]
    assert optimizer.lr == 0.4
    rates.clear()
    fit(mlp(), *blobs, epochs=4, optimizer=optimizer, callbacks=[callbacks.cosine_decay(4), record])
    assert rates == pytest.approx([0.4, 0.4 * (1 + 0.5**0.5) / 2, 0.2, 0.4 * (1 - 0.5**0.5) / 2])
    with pytest.raises(ValueError, match=r"\[cosine_decay\] expected epochs >= 1, got 0"):
        callbacks.cosine_decay(0)


def test_checkpoint(blobs, tmp_path):
    net = mlp()
    fit(net, *blobs, epochs=2, callbacks=callbacks.Checkpoint(tmp_path / "m.safetensors"))
    for name, w in weights(dn.load(tmp_path / "m.safetensors")).items():
        assert_same_bits(w, net.state_dict()[name])
    with pytest.raises(ValueError, match="expected to monitor one of"):
        fit(net, *blobs, callbacks=callbacks.Checkpoint(tmp_path / "n.safetensors", monitor="val_loss"))


# --- what is refused -------------------------------------------------------------------------------------------------

X, Y = np.zeros((6, 4), np.float32), np.zeros(6, np.int64)
BAD = {
    "no rows": (ValueError, "at least one row", (X[:0], Y[:0]), {}),
    "lengths differ": (dn.ShapeError, r"same number of rows, got shapes \(6, 4\) and \(5,\)", (X, Y[:5]), {}),
    "scalar target": (dn.ShapeError, r"got shapes \(6, 4\) and \(\)", (X, 1), {}),
    "no epochs": (ValueError, "epochs >= 1, got 0", (X, Y), {"epochs": 0}),
    "no batch": (ValueError, "batch_size >= 1, got -1", (X, Y), {"batch_size": -1}),
    "half a batch": (TypeError, "batch_size to be an integer", (X, Y), {"batch_size": 2.5}),
    "labels as floats": (TypeError, "CrossEntropyLoss", (X, Y.astype(float)), {"loss": "cross_entropy"}),
    "labels too high": (ValueError, "CrossEntropyLoss", (X, Y + 3), {}),
    "labels below zero": (ValueError, "CrossEntropyLoss", (X, Y - 1), {}),
    "wrong width": (dn.ShapeError, "Linear", (X[:, :3], Y), {}),
    "complex": (TypeError, "dtype complex128", (X.astype(complex), Y), {}),
    "strings": (TypeError, "expected y to be an array of real numbers", (X, np.array(["a"] * 6)), {}),
    "objects": (TypeError, "dtype object", (X.astype(object), Y), {}),
    "no target": (TypeError, r"got only an array of shape \(6, 4\)", (X,), {}),
    "a number": (TypeError, "got only a int", (3,), {}),
    "not a pair": (TypeError, r"batch 1 to be a pair \(x, y\), got an array", ([X, Y],), {}),
    "uneven batch": (dn.ShapeError, "x and y of batch 2", ([(X, Y), (X, Y[:2])],), {}),
    "no batches": (ValueError, "got no batches", ([],), {}),
    "floats for labels": (TypeError, r"\[fit\] expected class labels of an integer type", (X, Y.astype(float)), {}),
    "one-hot integers": (dn.ShapeError, r"pass y.argmax\(axis=1\), or floats", (X, np.eye(3, dtype=int)[Y]), {}),
    "labels in a column": (dn.ShapeError, r"pass y\[:, 0\]", (X, Y[:, None]), {}),
    "ragged x": (dn.ShapeError, r"\[fit\] expected x to have rows of equal", ([[1.0], [1.0, 2.0]], [0, 1]), {}),
    "ragged y": (dn.ShapeError, r"\[fit\] expected y to have rows of equal", (X[:2], [[1.0], [1.0, 2.0]]), {}),
    "a seed below zero": (ValueError, "seed >= 0, got -1", (X, Y), {"seed": -1}),
    "a text as seed": (TypeError, "seed to be an integer, got 'a'", (X, Y), {"seed": "a"}),
    "unknown loss": (ValueError, "'cross_entropy'.*got 'hinge'", (X, Y), {"loss": "hinge"}),
    "a class as loss": (TypeError, "expected loss to be a Loss", (X, Y), {"loss": nn.MSELoss}),
    "unknown optimizer": (ValueError, "got 'adagrad'", (X, Y), {"optimizer": "adagrad"}),
    "a number as optimizer": (TypeError, "got 0.1", (X, Y), {"optimizer": 0.1}),
    "empty validation": (ValueError, "validation_data", (X, Y), {"validation_data": (X[:0], Y[:0])}),
    "uneven validation": (dn.ShapeError, "validation_data", (X, Y), {"validation_data": (X, Y[:1])}),
    "bad callback": (TypeError, "expected callbacks", (X, Y), {"callbacks": [3]}),
    "a class as callback": (TypeError, "got the class EarlyStopping", (X, Y), {"callbacks": callbacks.EarlyStopping}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    error, message, data, options = BAD[name]
    net = mlp()
    before = weights(net)
    with pytest.raises(error, match=message) as caught:
        net.fit(*data, progress=False, **options)
    assert str(caught.value).startswith("[")
    if name not in ("uneven batch",):
        for key, w in weights(net).items():
            assert_same_bits(w, before[key])


def test_loss_that_is_not_finite_names_epoch_and_batch(blobs):
    x, y = blobs
    x[70] = np.nan
    net = mlp().eval()
    with pytest.raises(FloatingPointError, match=r"\(epoch 1 of 2, batch 8\)") as error:
        fit(net, x, y, epochs=2, batch_size=10, shuffle=False)
    assert isinstance(error.value.__cause__, FloatingPointError)
    assert all(np.isfinite(w).all() for w in weights(net).values())
    assert not net.training


def test_scores_that_are_not_finite_name_the_batch(blobs):
    x, y = blobs
    spoilt = x.copy()
    spoilt[70, 1] = np.nan
    net = mlp()
    with pytest.raises(FloatingPointError, match=r"^\[evaluate\].*got nan in batch 4, rows 60 to 79: x has values"):
        net.evaluate(spoilt, y, batch_size=20)
    with pytest.raises(FloatingPointError, match=r"^\[evaluate\].*batch 2, rows 60 to 99: x has"):
        net.evaluate([(spoilt[:60], y[:60]), (spoilt[60:], y[60:])])
    with pytest.raises(FloatingPointError, match=r"validation_data\].*batch 1, rows 0 to 99, epoch 1 of 3: x has"):
        fit(net, x, y, epochs=3, validation_data=(spoilt, y))
    net[2].bias.data[...] = np.nan
    with pytest.raises(FloatingPointError, match=r"batch 1, rows 0 to 99$"):
        net.evaluate(x, y)


# --- progress --------------------------------------------------------------------------------------------------------


def test_log_files_get_a_line_an_epoch(blobs, capfd):
    net = mlp()
    net.fit(*blobs, epochs=2, validation_data=blobs)
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 2
    assert lines[1].startswith("epoch 2/2: loss ")
    for word in ("accuracy", "val_loss", "val_accuracy", "samples/s"):
        assert word in lines[1]
    net.fit(*blobs, progress=False)
    assert capfd.readouterr() == ("", "")


def test_terminals_get_a_bar_an_epoch():
    pty = pytest.importorskip("pty")
    code = """if True:
        import numpy as np, time
        from deepnet import nn
        slow = type("Slow", (), {"on_batch_end": lambda self, batch, logs: time.sleep(0.15)})
        x = np.zeros((30, 4), np.float32)
        y = np.zeros(30, int)
        nn.Linear(4, 2).fit(x, y, epochs=2, batch_size=10, callbacks=slow(), validation_data=(x, y), optimizer="sgd")
    """
    main, child = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stderr=child) as process:
        os.close(child)
        text = b""
        while chunk := read(main):
            text += chunk
    assert process.returncode == 0, text
    shown = text.decode().replace("\r", "\n").splitlines()
    assert any(line.startswith("epoch 1/2  33%|") for line in shown)
    last = [line for line in shown if line.startswith("epoch 2/2 100%|")][-1]
    assert re.search(r" samples/s, loss 0\.\d{4}, accuracy \d\.\d{4}, val_loss 0\.\d{4}, val_accuracy \d\.\d{4}", last)


def read(file):
    try:
        return os.read(file, 4096)
    except OSError:  # Linux's way of saying that the other end is closed
        return b""


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that interrupts")
def test_interrupt_leaves_a_usable_network(blobs):
    x, y = blobs
    net = mlp().eval()
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            fit(net, x, y, epochs=1_000_000, batch_size=10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert not net.training
    assert net.history.epochs == len(net.history["loss"]) > 0
    assert net.evaluate(x, y)["accuracy"] > 0.8
    assert fit(net, x, y).epochs == 1


def test_interrupt_ends_a_process_as_usual():
    code = """if True:
        import numpy as np, os, signal
        from deepnet import nn
        stop = lambda epoch, logs: os.kill(os.getpid(), signal.SIGINT)
        nn.Linear(4, 2).fit(np.zeros((30, 4)), np.zeros(30, int), epochs=1000, callbacks=stop)
    """
    if os.name == "nt":
        pytest.skip("os.kill ends the process there")
    result = attempt_python(code)
    assert result.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in result.stderr


# --- summary and cost ------------------------------------------------------------------------------------------------


def test_summary(capsys):
    net = nn.Sequential(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2880, 10))

    def summary(*arguments):
        assert net.summary(*arguments) is None
        return capsys.readouterr().out

    text = summary((1, 1, 28, 28))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["layer", "kind", "output", "shape", "parameters"]
    assert lines[2] == ["0", "Conv2d", "(N,", "20,", "24,", "24)", "520"]
    assert lines[-1] == ["total", "29,330"]
    assert "?" in summary()
    net(np.zeros((2, 1, 28, 28), np.float32))
    assert summary() == text
    with pytest.raises(dn.ShapeError, match="Conv2d"):
        net.summary((1, 3, 28, 28))


def test_summary_counts_shared_layers_once(capsys):
    shared = nn.Linear(4, 4)
    nn.Sequential(shared, nn.ReLU(), shared).summary((1, 4))
    assert capsys.readouterr().out.splitlines()[-1].split() == ["total", "20"]


def test_summary_knows_the_shape_of_the_last_fit(blobs, capsys):
    net = mlp()
    fit(net, *blobs)
    fit(net, [blobs])
    net.summary()
    assert "(N, 16)" in capsys.readouterr().out


def test_layers_keep_attributes_of_their_own(blobs):
    class Own(nn.Layer):
        def __init__(self):
            super().__init__()
            self.history, self._loss, self._input_shape = [], "mine", "also mine"

        def forward(self, x):
            return x

        def backward(self, dy):
            return dy

    layer = Own()
    assert fit(layer, blobs[0], blobs[1], validation_data=blobs).epochs == 1
    assert layer.evaluate(*blobs)["loss"] > 0
    layer.summary((1, 4))
    assert (layer.history, layer._loss, layer._input_shape) == ([], "mine", "also mine")


@pytest.mark.timing
def test_fit_costs_little_beside_the_steps():
    """Per batch, fit may add 5 us to Trainer.step; the best of several runs of each, because others use the machine."""
    x, y = np.zeros((20_000, 4), np.float32), np.zeros(20_000, np.int64)
    net = nn.Linear(4, 2)
    trainer, order = dn.Trainer(net, nn.CrossEntropyLoss(), optim.SGD(0.1)), np.arange(20_000)

    def steps():
        step = trainer._step_rows
        for begin in range(0, 20_000, 8):
            step(x, y, order, begin, begin + 8)

    def whole():
        net.fit(x, y, optimizer=trainer.optimizer, batch_size=8, shuffle=False, progress=False)

    times = {function: [] for function in (steps, whole)}
    for _ in range(9):
        for function, seconds in times.items():
            begin = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - begin)
    assert (min(times[whole]) - min(times[steps])) / 2500 < 5e-6


def test_import_leaves_heavy_modules_alone():
    code = "import sys, numpy; before = set(sys.modules); import deepnet; print(*sorted(set(sys.modules) - before))"
    modules = set(run_python(code).split())
    assert not modules & {"tqdm", "json", "argparse", "gzip", "matplotlib", "PIL", "urllib.request", "deepnet.cli"}
    assert {"deepnet.nn", "deepnet.optim"} <= modules


def test_lazy_names():
    assert dn.GradientError.__mro__[1] is AssertionError
    assert set(dir(dn)) >= set(dn.__all__)
    assert not {"TYPE_CHECKING", "annotations", "importlib", "os"} & set(dir(dn))
    assert all(hasattr(dn, name) for name in dn.__all__)
    with pytest.raises(AttributeError, match="module 'deepnet' has no attribute 'nothing'"):
        _ = dn.nothing
