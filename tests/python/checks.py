"""What the tests share: comparison within a rounding bound, seeded arrays, networks, code run in another process."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np

from deepnet import nn

HERE = Path(__file__).parent


def build(specification, module=nn):
    """A Sequential of (class name, arguments), of deepnet's layers or of those of torch.nn."""
    return module.Sequential(*[getattr(module, name)(*arguments) for name, arguments in specification])


def assert_close(got, want, length=1, what="array"):
    """|got - want| <= tol |want| + tol max|want| with tol = 1.3e-6 sqrt(length).

    1.3e-6 is PyTorch's rtol for float32 (torch.testing.assert_close); rounding errors of a sum of `length` terms
    grow as its root (Higham, Accuracy and Stability of Numerical Algorithms, section 2.8).
    """
    want = np.asarray(want, np.float64)
    assert isinstance(got, np.ndarray), f"{what} is no array but {got!r:.80}"
    assert got.dtype == np.float32, f"{what} is of type {got.dtype}"
    assert got.flags.c_contiguous, f"{what} is not C-contiguous"
    assert got.shape == want.shape, f"{what} has shape {got.shape}, expected {want.shape}"
    if want.size == 0:
        return
    tolerance = 1.3e-6 * np.sqrt(max(length, 1))
    # The smallest normal number: a result below it may be flushed to zero.
    bound = tolerance * (np.abs(want) + np.abs(want).max()) + np.finfo(np.float32).tiny
    excess = np.abs(got - want) / bound
    worst = np.unravel_index(np.nanargmax(np.where(np.isnan(excess), np.inf, excess)), want.shape)
    assert excess[worst] <= 1, (
        f"{what}{list(map(int, worst))} is {got[worst]:.9g}, expected {want[worst]:.9g}: "
        f"{excess[worst]:.3g} times the error allowed, which is {bound[worst]:.3g}"
    )


def assert_same_bits(got, want, what="array"):
    got, want = np.asarray(got), np.asarray(want)
    assert (got.dtype, got.shape) == (want.dtype, want.shape), f"{what}: {got.dtype}{got.shape}"
    if got.tobytes() != want.tobytes():
        differ = np.count_nonzero(got != want)
        raise AssertionError(f"{what}: {differ} of {got.size} elements differ, at most by {np.abs(got - want).max()}")


def seeded_rng(text):
    """Random numbers that depend on a case's name alone."""
    return np.random.default_rng(zlib.crc32(str(text).encode()))


def normal(rng, shape):
    return rng.standard_normal(shape).astype(np.float32)


def integers(rng, shape, low=-4, high=4):
    """Small whole numbers as float32, which add and multiply without rounding."""
    return rng.integers(low, high, shape, endpoint=True).astype(np.float32)


def gradients(layer):
    return {name: p.grad.copy() for name, p in layer.parameters().items()}


def weights(layer):
    return {name: p.data.copy() for name, p in layer.parameters().items()}


def address(array):
    """Where an array's memory begins."""
    return array.__array_interface__["data"][0]


def run_python(code, timeout=60, **environment):
    """Runs code in a new interpreter; a crash, a hang or an exception there is a failure here. Returns its stdout."""
    result = attempt_python(code, timeout, **environment)
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def attempt_python(code, timeout=60, **environment):
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        cwd=HERE,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
