"""Layers and losses from their definitions: float64 NumPy with plain loops, sharing nothing with the library.

Shape letters: N batch, C/H/W input, K filters, R/S kernel, P/Q output.
"""

import math

import numpy as np


def pair(value):
    return (value, value) if np.isscalar(value) else tuple(value)


# --- sums of products ------------------------------------------------------------------------------------------------


def linear(x, weight, bias=None):
    y = np.einsum("...i,oi->...o", x, weight)
    return y if bias is None else y + bias


def linear_backward(x, weight, dy):
    """dE/dx, dE/dweight, dE/dbias."""
    rows, errors = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return np.einsum("...o,oi->...i", dy, weight), np.einsum("no,ni->oi", errors, rows), errors.sum(axis=0)


def conv_padding(padding, kernel, dilation):
    """((top, bottom), (left, right)); "same" puts the odd cell below and right."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((t // 2, t - t // 2) for t in total)
    return tuple((p, p) for p in pair(padding))


def taps(padded_size, kernel, stride, dilation):
    """(r, s, slices) for every kernel cell: the slices of a padded image that it meets, one for each output."""
    out = [(n - d * (k - 1) - 1) // t + 1 for n, k, t, d in zip(padded_size, kernel, stride, dilation, strict=True)]
    for r in range(kernel[0]):
        for s in range(kernel[1]):
            rows = slice(r * dilation[0], r * dilation[0] + (out[0] - 1) * stride[0] + 1, stride[0])
            cols = slice(s * dilation[1], s * dilation[1] + (out[1] - 1) * stride[1] + 1, stride[1])
            yield r, s, (..., rows, cols)


def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """y[n,k,p,q] = b[k] + sum_crs weight[k,c,r,s] x[n, c, p stride + r dilation - pad, ...], group by group."""
    stride, dilation = pair(stride), pair(dilation)
    kernel = weight.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), *conv_padding(padding, kernel, dilation)))
    y = 0.0
    for r, s, cells in taps(x.shape[2:], kernel, stride, dilation):
        seen = np.split(x[cells], groups, axis=1)
        filters = np.split(weight[:, :, r, s], groups)
        y = y + np.concatenate([np.einsum("nchw,kc->nkhw", i, f) for i, f in zip(seen, filters, strict=True)], axis=1)
    return y if bias is None else y + bias[:, None, None]


def conv2d_backward(x, weight, dy, stride=1, padding=0, dilation=1, groups=1):
    """dE/dx, dE/dweight, dE/dbias: every product of conv2d sends its error to both its factors."""
    stride, dilation = pair(stride), pair(dilation)
    kernel = weight.shape[2:]
    (top, bottom), (left, right) = conv_padding(padding, kernel, dilation)
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    dx, dweight = np.zeros_like(padded), np.zeros_like(weight)
    errors = np.split(dy, groups, axis=1)
    for r, s, cells in taps(padded.shape[2:], kernel, stride, dilation):
        seen = np.split(padded[cells], groups, axis=1)
        filters = np.split(weight[:, :, r, s], groups)
        dx[cells] += np.concatenate(
            [np.einsum("nkhw,kc->nchw", e, f) for e, f in zip(errors, filters, strict=True)], axis=1
        )
        dweight[:, :, r, s] = np.concatenate(
            [np.einsum("nkhw,nchw->kc", e, i) for e, i in zip(errors, seen, strict=True)]
        )
    height, width = padded.shape[2:]
    return dx[:, :, top : height - bottom, left : width - right], dweight, dy.sum(axis=(0, 2, 3))


def im2col(x, kernel_size, stride=1, padding=0, dilation=1):
    """(N, C, H, W) -> (N, C R S, P Q)."""
    kernel, stride, dilation = pair(kernel_size), pair(stride), pair(dilation)
    x = np.pad(x, ((0, 0), (0, 0), *conv_padding(padding, kernel, dilation)))
    n, c = x.shape[:2]
    seen = [x[cells].reshape(n, c, 1, -1) for _, _, cells in taps(x.shape[2:], kernel, stride, dilation)]
    return np.concatenate(seen, axis=2).reshape(n, c * kernel[0] * kernel[1], -1)


# --- pooling ---------------------------------------------------------------------------------------------------------


def max_pool2d(x, kernel_size, stride=None, padding=0):
    """Maxima of the windows and the flat H*W position of each, the first in row-major order among equals."""
    (r, s), (top, left) = pair(kernel_size), pair(padding)
    down, across = pair(kernel_size if stride is None else stride)
    n, c, h, w = x.shape
    p, q = (h + 2 * top - r) // down + 1, (w + 2 * left - s) // across + 1
    y, position = np.empty((n, c, p, q)), np.empty((n, c, p, q), np.int64)
    for i in range(p):
        for j in range(q):
            y0, x0 = i * down - top, j * across - left
            rows, cols = range(max(y0, 0), min(y0 + r, h)), range(max(x0, 0), min(x0 + s, w))
            window = x[:, :, rows.start : rows.stop, cols.start : cols.stop].reshape(n, c, -1)
            flat = np.array([row * w + col for row in rows for col in cols])
            first = np.argmax(window, axis=2)  # NumPy's argmax: the first NaN, else the first maximum
            y[:, :, i, j] = np.take_along_axis(window, first[:, :, None], axis=2)[:, :, 0]
            position[:, :, i, j] = flat[first]
    return y, position


def avg_pool2d(x, kernel_size, stride=None, padding=0):
    """Means of the windows; padding counts as zeros."""
    kernel = pair(kernel_size)
    stride = kernel if stride is None else pair(stride)
    x = np.pad(x, ((0, 0), (0, 0), *conv_padding(padding, kernel, (1, 1))))
    total = sum(x[cells] for _, _, cells in taps(x.shape[2:], kernel, stride, (1, 1)))
    return total / (kernel[0] * kernel[1])


# --- nonlinearities --------------------------------------------------------------------------------------------------


def softplus(x, beta=1.0):
    return np.logaddexp(0.0, beta * x) / beta


def sigmoid(x):
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0)))


def gelu(x):
    phi = np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2.0)), otypes=[float])
    return x * phi(x)


def log_softmax(x, axis=-1):
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def softmax(x, axis=-1):
    return np.exp(log_softmax(x, axis))


def softmax_backward(x, dy, axis=-1):
    """The Jacobian, J[i, j] = y_i (delta_ij - y_j), written out and multiplied."""
    y = np.moveaxis(softmax(x, axis), axis, -1)
    jacobian = y[..., :, None] * (np.eye(y.shape[-1]) - y[..., None, :])
    return np.moveaxis(np.einsum("...ij,...i->...j", jacobian, np.moveaxis(dy, axis, -1)), -1, axis)


# --- recurrent layers: x (N, T, F), parameters under PyTorch's names -------------------------------------------------


def rnn_step(f):
    def step(a, b, h, c):
        return f(a + b), c

    return step


def lstm_step(a, b, h, c):
    i, f, g, o = np.split(a + b, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru_step(a, b, h, c):
    (r_a, z_a, n_a), (r_b, z_b, n_b) = np.split(a, 3, axis=-1), np.split(b, 3, axis=-1)
    r, z = sigmoid(r_a + r_b), sigmoid(z_a + z_b)
    return (1 - z) * np.tanh(n_a + r * n_b) + z * h, c


NONLINEARITIES = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0), "sigmoid": sigmoid, "softplus": softplus}


def recurrent(step, x, parameters, num_layers=1, bidirectional=False, return_sequences=True):
    """Every layer and direction, step by step from a state of zeros; step(W_ih x + b_ih, W_hh h + b_hh, h, c)."""
    steps = range(x.shape[1])
    for layer in range(num_layers):
        outputs, last = [], []
        for end in ("", "_reverse")[: 1 + bidirectional]:
            weights = [parameters.get(f"{name}_l{layer}{end}", 0.0) for name in RECURRENT_PARAMETERS]
            w_ih, w_hh, b_ih, b_hh = weights
            h = c = np.zeros((x.shape[0], w_hh.shape[1]))
            y = np.empty((*x.shape[:2], w_hh.shape[1]))
            for t in reversed(steps) if end else steps:
                h, c = step(x[:, t] @ w_ih.T + b_ih, h @ w_hh.T + b_hh, h, c)
                y[:, t] = h
            outputs.append(y)
            last.append(h)
        x = np.concatenate(outputs, axis=2)
    return x if return_sequences else np.concatenate(last, axis=1)


RECURRENT_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


# --- losses, each the mean over the batch ----------------------------------------------------------------------------


def one_hot(labels, classes):
    return np.moveaxis(np.eye(classes)[labels], -1, 1)


def cross_entropy(y, target):
    """target: labels (N, ...) or probabilities of y's shape (N, C, ...)."""
    if target.shape != y.shape:
        target = one_hot(target, y.shape[1])
    return -(target * log_softmax(y, axis=1)).sum() / (y.size / y.shape[1])


def nll(y, labels):
    return -(one_hot(labels, y.shape[1]) * y).sum() / labels.size


def mse(y, target):
    return np.mean((y - target) ** 2)


def bce_with_logits(y, target):
    return np.mean(target * softplus(-y) + (1 - target) * softplus(y))
