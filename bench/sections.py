"""The rows of the table, section by section: what every program is to do, checked to be the same, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from agreement import TOLERANCE, require_close
from networks import WORKS, Cost, layer_cost, network_cost
from numpy.typing import NDArray
from programs import CHANNELS_LAST, JAX, NCHW, OURS, inference_programs, training_programs
from timing import Step
from twin import torch_twin

from deepnet import nn

try:
    from jax_twin import jax_product
except ImportError:
    jax_product = None

Array = NDArray[np.float32]

# Multiply-adds of m x k times k x n: cubes, then what layers make of them.
PRODUCTS = (
    (512, 512, 512),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (64, 784, 256),
    (64, 800, 500),
    (256, 1024, 1024),
    (8, 4096, 1000),
    (4096, 64, 64),
    (1, 1024, 1024),
)
LAYERS: dict[str, tuple[Callable[[], nn.Layer], tuple[int, ...]]] = {
    "conv 3x3, 64 to 64": (lambda: nn.Conv2d(64, 64, 3, padding=1), (32, 64, 32, 32)),
    "conv 3x3, 128 to 128": (lambda: nn.Conv2d(128, 128, 3, padding=1), (32, 128, 16, 16)),
    "conv 3x3, 256 to 256": (lambda: nn.Conv2d(256, 256, 3, padding=1), (32, 256, 8, 8)),
    "conv 1x1, 64 to 256": (lambda: nn.Conv2d(64, 256, 1), (16, 64, 28, 28)),
    "conv 1x1, 256 to 64": (lambda: nn.Conv2d(256, 64, 1), (16, 256, 28, 28)),
    "conv 1x1, 64 to 64": (lambda: nn.Conv2d(64, 64, 1), (64, 64, 56, 56)),
    "conv 1x1, 256 to 128": (lambda: nn.Conv2d(256, 128, 1), (32, 256, 56, 56)),
    "conv 3x3/2, 64 to 128": (lambda: nn.Conv2d(64, 128, 3, stride=2, padding=1), (32, 64, 28, 28)),
    "conv 7x7/2, 3 to 64": (lambda: nn.Conv2d(3, 64, 7, stride=2, padding=3), (4, 3, 224, 224)),
    "conv 5x5, 1 to 20": (lambda: nn.Conv2d(1, 20, 5), (64, 1, 28, 28)),
    "conv 5x5, 3 to 32": (lambda: nn.Conv2d(3, 32, 5, padding=2), (64, 3, 32, 32)),
    "depthwise 3x3, 128": (lambda: nn.Conv2d(128, 128, 3, padding=1, groups=128), (16, 128, 28, 28)),
    "depthwise 3x3, 128, large": (lambda: nn.Conv2d(128, 128, 3, padding=1, groups=128), (64, 128, 56, 56)),
    "max pool 2x2": (lambda: nn.MaxPool2d(2), (32, 64, 32, 32)),
    "max pool 2x2, large": (lambda: nn.MaxPool2d(2), (64, 64, 56, 56)),
    "softmax": (lambda: nn.Softmax(), (4096, 1000)),
}
ELEMENTS = 4 << 20
ELEMENTWISE: dict[str, Callable[[], nn.Layer]] = {
    "ReLU": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "GELU": nn.GELU,
    "dropout": nn.Dropout,
}


class Row(NamedTuple):
    """Programs that do the same work."""

    name: str
    size: str
    programs: dict[str, Step]
    cost: Cost
    context: Callable[[], AbstractContextManager[Any]] = nullcontext  # to check and time them in


def training_rows(threads: int, compiled: bool, rows: str = "") -> Iterator[Row]:
    """A training step of every network."""
    for name, work in WORKS.items():
        if rows not in f"{name} {_times(work.shape)}":
            continue
        programs = training_programs(work, threads, compiled)
        yield Row(name, _times(work.shape), programs, network_cost(work.build(), work.shape, training=True))


def inference_rows(threads: int, compiled: bool, rows: str = "") -> Iterator[Row]:
    """Inference of every network."""
    for name, work in WORKS.items():
        if rows not in f"{name} {_times(work.shape)}":
            continue
        with torch.inference_mode():
            programs = inference_programs(work, threads, compiled)
        cost = network_cost(work.build(), work.shape, training=False)
        yield Row(name, _times(work.shape), programs, cost, torch.inference_mode)


def layer_rows(threads: int, compiled: bool, rows: str = "") -> Iterator[Row]:
    """Every layer alone, forward and then backward, each with all its gradients."""
    del threads, compiled
    for name, (build, shape) in LAYERS.items():
        if rows not in f"{name} {_times(shape)}":
            continue
        layer = build()
        x = _random(shape)
        y = layer(x)
        dy = _random(y.shape)
        forward: dict[str, Step] = {OURS: partial(layer, x)}
        backward: dict[str, Step] = {OURS: partial(layer.backward, dy)}
        results = {OURS: (y, *_gradients(layer, dy))}
        formats = {NCHW: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}
        for who, memory_format in list(formats.items())[: 2 if x.ndim == 4 else 1]:
            twin = torch_twin(nn.Sequential(layer))[0]
            twin.load_state_dict({key: torch.from_numpy(value) for key, value in layer.state_dict().items()})
            twin.to(memory_format=memory_format)
            inputs = torch.from_numpy(x).to(memory_format=memory_format).requires_grad_()
            errors = torch.from_numpy(dy).to(memory_format=memory_format)
            forward[who], backward[who] = _torch_layer(twin, inputs, errors)
            results[who] = (twin(inputs).detach().numpy(), *(g.numpy() for g in backward[who]()))
        _require_equal(name, results)
        size = _times(shape)
        yield Row(f"{name}, forward", size, forward, layer_cost(layer, shape, y.shape))
        yield Row(f"{name}, backward", size, backward, layer_cost(layer, shape, y.shape, backward=True))


def gemm_rows(threads: int, compiled: bool, rows: str = "") -> Iterator[Row]:
    """Matrix products, as linear layers without bias."""
    del threads, compiled
    for m, k, n in PRODUCTS:
        if rows not in f"product {m}x{k}x{n}":
            continue
        layer, x = nn.Linear(k, n, bias=False).eval(), _random((m, k))
        weight = layer.state_dict()["weight"]
        left, right = torch.from_numpy(x), torch.from_numpy(weight)
        programs: dict[str, Step] = {
            OURS: partial(layer, x),
            NCHW: partial(torch.nn.functional.linear, left, right),
        }
        if jax_product is not None:
            programs[JAX] = jax_product(x, weight)
        with torch.inference_mode():
            _require_equal(f"{m}x{k}x{n}", {who: (np.asarray(step()),) for who, step in programs.items()})
        cost = Cost(2.0 * m * k * n, 4.0 * (m * k + k * n + m * n))
        yield Row("product", f"{m}x{k}x{n}", programs, cost, torch.inference_mode)


def elementwise_rows(threads: int, compiled: bool, rows: str = "") -> Iterator[Row]:
    """Functions of one element each, without what backward needs: inputs and outputs go through memory once."""
    del threads, compiled
    x = _random((64, ELEMENTS // 64))
    inputs = torch.from_numpy(x)
    for name, build in ELEMENTWISE.items():
        if rows not in f"{name} {_times(x.shape)}":
            continue
        layer, twin = build(), torch_twin(nn.Sequential(build()))[0]
        if not isinstance(layer, nn.Dropout):
            layer.eval()  # nothing is kept for backward
        programs: dict[str, Step] = {
            OURS: partial(layer, x),
            NCHW: partial(twin, inputs),
        }
        with torch.inference_mode():
            results = {who: (np.asarray(step()),) for who, step in programs.items()}
        if isinstance(layer, nn.Dropout):
            _require_dropped(results, x, layer.p)
        else:
            _require_equal(name, results)
        yield Row(name, _times(x.shape), programs, Cost(0, 8.0 * x.size), torch.inference_mode)


SECTIONS: dict[str, Callable[[int, bool, str], Iterator[Row]]] = {
    "training": training_rows,
    "inference": inference_rows,
    "layers": layer_rows,
    "gemm": gemm_rows,
    "elementwise": elementwise_rows,
}


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _random(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(prod(shape)).standard_normal(shape, dtype=np.float32)


def _gradients(layer: nn.Layer, dy: Array) -> list[Array]:
    """dE/dx and then those of the parameters."""
    layer.zero_grad()
    dx = layer.backward(dy)
    return [dx, *(p.grad.copy() for p in layer.parameters().values())]


def _torch_layer(twin: torch.nn.Module, x: torch.Tensor, dy: torch.Tensor) -> tuple[Step, Step]:
    y = twin(x)
    wanted = [x, *twin.parameters()]
    return partial(twin, x), lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)


def _require_equal(name: str, results: dict[str, tuple[Array, ...]]) -> None:
    for who, arrays in results.items():
        for i, (got, expected) in enumerate(zip(results[OURS], arrays, strict=True)):
            require_close(f"{name}: {'output' if i == 0 else f'gradient {i}'} of {who}", got, expected, TOLERANCE)


def _require_dropped(results: dict[str, tuple[Array, ...]], x: Array, p: float) -> None:
    """Every element is 0 or grown by 1 / (1 - p); which ones is up to each library's random numbers."""
    for who, (y,) in results.items():
        kept = y != 0
        require_close(f"dropout of {who}: what it keeps", y[kept], x[kept] / np.float32(1 - p), TOLERANCE)
        require_close(f"dropout of {who}: how much it keeps", kept.mean(), 1 - p, 10 * TOLERANCE)
