"""Fixtures of the whole suite: comparison libraries, random numbers, a fresh seed for every test."""

import importlib
import os
from signal import SIG_IGN, SIGINT, default_int_handler, getsignal
from signal import signal as set_handler

import numpy as np
import pytest

import deepnet as dn


def pytest_configure(config):
    config.addinivalue_line("markers", "timing: measures time, on a machine that does nothing else: pytest -m timing")
    # A shell that runs this in the background may have had SIGINT ignored, by all that the tests start too.
    if getsignal(SIGINT) == SIG_IGN:
        set_handler(SIGINT, default_int_handler)


def require(name):
    """The module, or a skip; where CI is set a missing module is a failure, so that no check vanishes quietly."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI is set and {name} cannot be imported: {error}")
        pytest.skip(f"{name} is not installed")


@pytest.fixture(scope="session")
def torch():
    return require("torch")


@pytest.fixture(scope="session")
def ndimage():
    return require("scipy.ndimage")


@pytest.fixture(scope="session")
def signal():
    return require("scipy.signal")


@pytest.fixture(autouse=True)
def seeded():
    """Initial weights and dropout repeat from run to run and do not depend on which tests are selected."""
    dn.manual_seed(1234)


@pytest.fixture
def rng():
    return np.random.default_rng(1234)
