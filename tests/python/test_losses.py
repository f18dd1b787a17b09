"""Losses and their gradients against the definition and PyTorch, and what they refuse."""

import numpy as np
import pytest

import deepnet as dn
import reference
from checks import assert_close, assert_same_bits, normal, seeded_rng
from deepnet import nn

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
    kind, y, target, error = BAD[name]
    with pytest.raises(error) as info:
        kind()(y, target)
    message = str(info.value)
    assert all(word in message for word in (kind.__name__, "expected", "got")), message


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
