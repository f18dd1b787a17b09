"""Losses and their gradients against the definition and PyTorch, and what they refuse."""

import numpy as np
import pytest

import deepnet as dn
import reference
from checks import assert_close, assert_same_bits, normal, run_python, seeded_rng
from deepnet import _core, nn

# (N, C, ...): batch 1, two classes, many, images, sizes on both sides of a vector's.
SHAPES = [
    *[
        (1, 1),
        (1, 2),
        (1, 10),
        (2, 3),
        (3, 7),
        (5, 8),
        (8, 9),
        (7, 15),
        (33, 17),
        (17, 33),
        (64, 10),
        (2, 1000),
        (300, 31),
    ],
    *[(2, 3, 1), (2, 5, 7), (3, 4, 33), (1, 2, 1, 1), (2, 3, 4, 5), (2, 21, 9, 7), (1, 4, 16, 17), (2, 3, 2, 3, 5)],
]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


def labels_for(shape, rng):
    return rng.integers(0, shape[1], (shape[0], *shape[2:]))


def probabilities(rng, shape):
    return reference.softmax(2 * rng.standard_normal(shape), axis=1).astype(np.float32)


def compare(loss, torch_loss, y, target, want, torch, length):
    """Value against the definition and PyTorch, gradient against PyTorch in float64."""
    e = loss(y, target)
    assert isinstance(e, float)
    tolerance = 1.3e-6 * np.sqrt(length)
    assert e == pytest.approx(want, rel=tolerance, abs=tolerance)
    y_t = torch.from_numpy(y).double().requires_grad_()
    t = torch.from_numpy(target)
    e_t = torch_loss(y_t, t.double() if t.is_floating_point() else t)
    e_t.backward()
    assert e == pytest.approx(e_t.item(), rel=tolerance, abs=tolerance)
    assert_close(loss.backward(), y_t.grad.numpy(), length, "dE/dy")


@each_shape
def test_cross_entropy_of_labels(shape, torch):
    rng = seeded_rng(shape)
    y, labels = 3 * normal(rng, shape), labels_for(shape, rng)
    want = reference.cross_entropy(np.float64(y), labels)
    compare(nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss(), y, labels, want, torch, shape[1])


@each_shape
def test_cross_entropy_of_soft_labels(shape, torch):
    rng = seeded_rng(shape)
    y, target = 3 * normal(rng, shape), probabilities(rng, shape)
    want = reference.cross_entropy(np.float64(y), np.float64(target))
    compare(nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss(), y, target, want, torch, shape[1])


@each_shape
def test_nll(shape, torch):
    rng = seeded_rng(shape)
    y, labels = np.log(probabilities(rng, shape)), labels_for(shape, rng)
    compare(nn.NLLLoss(), torch.nn.NLLLoss(), y, labels, reference.nll(np.float64(y), labels), torch, 1)


@each_shape
def test_mse(shape, torch):
    rng = seeded_rng(shape)
    y, target = normal(rng, shape), normal(rng, shape)
    compare(nn.MSELoss(), torch.nn.MSELoss(), y, target, reference.mse(np.float64(y), np.float64(target)), torch, 1)


@each_shape
def test_bce_with_logits(shape, torch):
    rng = seeded_rng(shape)
    y, target = 4 * normal(rng, shape), rng.random(shape, np.float32)
    want = reference.bce_with_logits(np.float64(y), np.float64(target))
    compare(nn.BCEWithLogitsLoss(), torch.nn.BCEWithLogitsLoss(), y, target, want, torch, 1)


def test_cross_entropy_is_log_softmax_and_nll(rng):
    y, labels = normal(rng, (9, 5)), rng.integers(0, 5, 9)
    fused, log_softmax, nll = nn.CrossEntropyLoss(), nn.LogSoftmax(axis=1), nn.NLLLoss()
    assert fused(y, labels) == pytest.approx(nll(log_softmax(y), labels), rel=1e-6)
    assert_close(fused.backward(), log_softmax.backward(nll.backward()), 5)
    want = (reference.softmax(np.float64(y)) - np.eye(5)[labels]) / 9
    assert_close(fused.backward(), want, 5)


def test_soft_labels_of_zeros_and_ones_are_labels(rng):
    y, labels = normal(rng, (6, 4, 3)), rng.integers(0, 4, (6, 3))
    a, b = nn.CrossEntropyLoss(), nn.CrossEntropyLoss()
    assert a(y, labels) == pytest.approx(b(y, reference.one_hot(labels, 4)), rel=1e-6)
    assert_close(a.backward(), b.backward(), 4)


EXTREME_LOGITS = np.array([[1e4, -1e4, 0], [-1e30, 1e30, 0], [88.8, 89, -200], [3e38, 3e38, -3e38]], np.float32)


def test_cross_entropy_of_extreme_logits():
    loss = nn.CrossEntropyLoss()
    want = (0 + 0 + np.log1p(np.exp(-0.2)) + np.log(2)) / 4
    assert loss(EXTREME_LOGITS, [0, 1, 1, 0]) == pytest.approx(want, rel=1e-4)
    assert np.isfinite(loss.backward()).all()
    assert loss(EXTREME_LOGITS[:1], [1]) == pytest.approx(2e4)


def test_bce_of_extreme_logits():
    loss = nn.BCEWithLogitsLoss()
    y = np.array([1e4, -1e4, 1e30, -1e30, 100, -100], np.float32)
    assert loss(y, y > 0) == pytest.approx(0, abs=1e-30)
    assert np.isfinite(loss.backward()).all()
    assert loss(y[:2], [0, 1]) == pytest.approx(1e4)


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">i2", "u2", "i4", ">i4", "u4", "i8", ">i8", "u8"])
def test_labels_of_every_integer_type(dtype, rng):
    y, labels = normal(rng, (20, 7)), rng.integers(0, 7, 20)
    want, got = nn.CrossEntropyLoss(), nn.CrossEntropyLoss()
    assert got(y, labels.astype(dtype)) == want(y, labels)
    assert got(y, labels.astype(dtype)[::-1][::-1]) == want(y, labels)
    assert got(y, np.repeat(labels.astype(dtype), 3)[::3]) == want(y, labels)
    assert_same_bits(got.backward(), want.backward())


def test_backward_is_repeatable_and_belongs_to_the_last_call(rng):
    loss = nn.MSELoss()
    a, b, zero = normal(rng, (3, 4)), normal(rng, (3, 4)), np.zeros((3, 4))
    loss(a, zero)
    first = loss.backward()
    assert_same_bits(loss.backward(), first)
    loss(b, zero)
    assert_close(loss.backward(), np.float64(b) / 6)
    assert_close(first, np.float64(a) / 6, what="an earlier result")


def test_backward_after_the_arrays_are_gone_or_changed(rng):
    y, labels = normal(rng, (50, 10)), rng.integers(0, 10, 50)
    kept, loss = nn.CrossEntropyLoss(), nn.CrossEntropyLoss()
    kept(y, labels)
    want = kept.backward()
    loss(y.copy(), labels.copy())
    np.ones((50, 10), np.float32)  # may take the memory of the temporary arrays
    assert_same_bits(loss.backward(), want)


# --- classes along another axis, labels that do not count -------------------------------------------------------------

AXES = [((5, 7, 4), -1), ((5, 7, 4), 2), ((2, 3, 130, 9), 3), ((2, 6, 3, 5), 2), ((2, 6, 3, 5), -2), ((3, 8), -1)]


@pytest.mark.parametrize(("shape", "axis"), [*AXES, ((4, 6, 5), 0), ((33, 17, 10), -1)])
@pytest.mark.parametrize("kind", ["CrossEntropyLoss", "NLLLoss"])
def test_classes_along_any_axis(kind, shape, axis, rng):
    """The same as with the classes moved to axis 1, whose other axes then are as those of the labels."""
    y = np.log(probabilities(rng, shape))
    labels = rng.integers(0, shape[axis], np.delete(shape, axis))
    loss, moved = getattr(nn, kind)(axis=axis), getattr(nn, kind)()
    flat = np.moveaxis(y, axis, -1).reshape(-1, shape[axis])
    assert loss(y, labels) == pytest.approx(moved(flat, labels.ravel()), rel=1e-6)
    want = np.moveaxis(moved.backward().reshape(np.moveaxis(y, axis, -1).shape), -1, axis)
    assert_close(loss.backward(), want, what="dE/dy")
    assert loss.axis == axis


def test_soft_labels_along_the_last_axis(rng):
    y, target = normal(rng, (3, 5, 4)), reference.softmax(normal(rng, (3, 5, 4)), axis=-1)
    loss, moved = nn.CrossEntropyLoss(axis=-1), nn.CrossEntropyLoss()
    assert loss(y, target) == pytest.approx(moved(y.reshape(15, 4), target.reshape(15, 4)), rel=1e-6)
    assert_close(loss.backward().reshape(15, 4), moved.backward())


@pytest.mark.parametrize("ignore_index", [-100, -1, 2])
@pytest.mark.parametrize("shape", [(9, 4), (2, 5, 7), (3, 4, 200), (1, 3, 9, 31)], ids=str)
@pytest.mark.parametrize("kind", ["CrossEntropyLoss", "NLLLoss"])
def test_ignored_labels(kind, shape, ignore_index, torch, rng):
    y, labels = np.log(probabilities(rng, shape)), labels_for(shape, rng)
    labels[rng.random(labels.shape) < 0.4] = ignore_index
    labels.flat[:2] = ignore_index, 0  # one at an end
    loss, twin = getattr(nn, kind)(ignore_index=ignore_index), getattr(torch.nn, kind)(ignore_index=ignore_index)
    y_t = torch.from_numpy(y).double().requires_grad_()
    e_t = twin(y_t, torch.from_numpy(labels))
    e_t.backward()
    y[np.broadcast_to(np.expand_dims(labels == ignore_index, 1), shape)] = np.nan  # whatever stands there
    assert loss(y, labels) == pytest.approx(e_t.item(), rel=1e-6)
    assert_close(loss.backward(), y_t.grad.numpy(), shape[1], "dE/dy")
    assert repr(loss) == f"{kind}(axis=1, ignore_index={ignore_index})"


def test_count_correct_along_axes_and_without_ignored(rng):
    y, labels = normal(rng, (4, 6, 5)), rng.integers(0, 5, (4, 6))
    assert _core.count_correct(y, labels, -1) == np.count_nonzero(y.argmax(-1) == labels)
    labels[0], labels[1, 2] = -100, -100
    assert _core.count_correct(y, labels, axis=2) == np.count_nonzero(y.argmax(-1) == labels)
    labels[labels == -100] = 3
    want = np.count_nonzero((y.argmax(-1) == labels) & (labels != 3))
    assert _core.count_correct(y, labels, axis=-1, ignore_index=3) == want
    with pytest.raises(dn.ShapeError, match="axis 3"):
        _core.count_correct(y, labels, axis=3)


# --- what is refused -------------------------------------------------------------------------------------------------

CE, NLL, MSE, BCE = nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss, nn.BCEWithLogitsLoss
Y = np.zeros((4, 3), np.float32)
BAD = {
    "label too large": (CE, Y, [0, 1, 2, 3], ValueError),
    "label negative": (CE, Y, [0, -1, 2, 2], ValueError),
    "label huge": (CE, Y, np.array([0, 2**62, 0, 0]), ValueError),
    "label beyond int64": (CE, Y, np.array([0, 2**63 + 1, 0, 0], np.uint64), ValueError),
    "label wraps to 32 bits": (CE, Y, np.array([0, 2**32, 0, 0]), ValueError),
    "labels of float": (CE, Y, np.array([0.0, 1.0, 2.0, 0.0]), TypeError),
    "labels of float for images": (CE, np.zeros((2, 3, 4, 4)), np.zeros((2, 4, 4)), TypeError),
    "labels too few": (CE, Y, [0, 1, 2], dn.ShapeError),
    "labels too many": (CE, Y, [0, 1, 2, 0, 1], dn.ShapeError),
    "labels of wrong ndim": (CE, Y, [[0], [1], [2], [0]], dn.ShapeError),
    "labels for images of wrong size": (CE, np.zeros((2, 3, 4, 4)), np.zeros((2, 4, 5), int), dn.ShapeError),
    "soft labels of wrong shape": (CE, Y, np.zeros((4, 2)), dn.ShapeError),
    "soft labels complex": (CE, Y, np.zeros((4, 3), complex), TypeError),
    "labels of strings": (CE, Y, np.array(["a", "b", "c", "d"]), TypeError),
    "labels of objects": (CE, Y, np.array([0, 1, None, 2]), TypeError),
    "logits of one axis": (CE, np.zeros(3), [0, 1, 2], dn.ShapeError),
    "logits of no axis": (CE, np.float32(0), 0, dn.ShapeError),
    "logits complex": (CE, np.zeros((4, 3), complex), [0, 1, 2, 0], TypeError),
    "no rows": (CE, np.zeros((0, 3)), np.zeros(0, int), ValueError),
    "no classes": (CE, np.zeros((4, 0)), np.zeros(4, int), ValueError),
    "no axis of classes": (lambda: CE(axis=2), Y, [0, 1, 2, 0], dn.ShapeError),
    "axis before the first": (lambda: CE(axis=-3), Y, [0, 1, 2, 0], dn.ShapeError),
    "labels of the other axes": (lambda: CE(axis=-1), np.zeros((2, 5, 3)), np.zeros((2, 3), int), dn.ShapeError),
    "all ignored": (CE, Y, np.full(4, -100), ValueError),
    "nll: all ignored": (lambda: NLL(ignore_index=1), Y, np.ones(4, int), ValueError),
    "ignored by another loss": (lambda: CE(ignore_index=-1), Y, [0, 1, 2, -100], ValueError),
    "nll label out of range": (NLL, Y, [0, 1, 2, 3], ValueError),
    "nll soft labels": (NLL, Y, np.zeros((4, 3)), TypeError),
    "nll labels of float": (NLL, Y, np.zeros(4), TypeError),
    "nll shapes": (NLL, Y, [0, 1], dn.ShapeError),
    "mse would broadcast": (MSE, Y, np.zeros((4, 1)), dn.ShapeError),
    "mse shapes": (MSE, Y, np.zeros((3, 4)), dn.ShapeError),
    "mse complex target": (MSE, Y, np.zeros((4, 3), complex), TypeError),
    "mse of nothing": (MSE, np.zeros((0, 3)), np.zeros((0, 3)), ValueError),
    "bce shapes": (BCE, Y, np.zeros(4), dn.ShapeError),
    "bce of nothing": (BCE, np.zeros((0, 3)), np.zeros((0, 3)), ValueError),
    "bce object target": (BCE, Y, np.full((4, 3), None), TypeError),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_loss_arguments(name):
    make, y, target, error = BAD[name]
    loss = make()
    with pytest.raises(error) as info:
        loss(y, target)
    message = str(info.value)
    assert all(word in message for word in (loss.kind, "expected", "got")), message


@pytest.mark.parametrize("kind", [CE, NLL, MSE, BCE], ids=lambda kind: kind.__name__)
def test_backward_before_forward(kind):
    with pytest.raises(RuntimeError, match=kind.__name__):
        kind().backward()


def test_refused_call_does_not_disturb_the_last_good_one(rng):
    loss, y = nn.CrossEntropyLoss(), normal(rng, (4, 3))
    loss(y, [0, 1, 2, 0])
    want = loss.backward()
    with pytest.raises(ValueError, match="9"):
        loss(y, [0, 1, 2, 9])
    try:
        got = loss.backward()
    except RuntimeError:  # forgetting it is as good, as long as nothing wrong comes out
        return
    assert_same_bits(got, want)


def test_one_loss_in_several_threads():
    """The gradient is that of some call; none is freed twice."""
    code = """
import sys, threading
import numpy as np
from deepnet import nn
sys.setswitchinterval(1e-6)
loss, y = nn.MSELoss(), np.ones((64, 64), np.float32)
def work():
    for _ in range(3000):
        loss(y, y)
        assert not loss.backward().any()
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
print("done")
"""
    assert run_python(code).strip() == "done"


@pytest.mark.parametrize("use", ["loss", "step", "count_correct"])
def test_labels_that_change_meanwhile_stay_in_range(use):
    """They are checked and then used: what another thread writes in between must not address memory."""
    code = f"""
import threading
import numpy as np
import deepnet as dn
from deepnet import _core, nn, optim
use = {use!r}
n = 20000
y, labels, stop = np.zeros((n, 4), np.float32), np.zeros(n, np.int64), threading.Event()
loss, trainer = nn.CrossEntropyLoss(), dn.Trainer(nn.ReLU(), nn.CrossEntropyLoss(), optim.SGD(lr=0.1))
def change():
    while not stop.is_set():
        labels[...] = 1 << 40
        labels[...] = 0
thread = threading.Thread(target=change)
thread.start()
uses = {{"loss": loss, "step": trainer.step, "count_correct": _core.count_correct}}
for _ in range(300):
    try:
        uses[use](y, labels)
    except ValueError:
        pass
stop.set()
thread.join()
print("done")
"""
    assert run_python(code).strip() == "done"
