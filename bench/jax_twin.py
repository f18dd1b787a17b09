"""The same network in JAX, as one compiled function of parameters and batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray
from timing import Step

from deepnet import nn


def jax_inference(net: nn.Sequential, x: NDArray[np.float32]) -> Step:
    """The output for that batch."""
    forward = jax.jit(lambda parameters, value: _forward(net, parameters, value))
    parameters, images = _parameters(net), jnp.asarray(x)
    return lambda: forward(parameters, images).block_until_ready()


def jax_training_step(
    net: nn.Sequential, x: NDArray[np.float32], labels: NDArray[np.int64], lr: float, momentum: float
) -> tuple[Step, Any]:
    """A step of SGD on the cross-entropy of that batch, which returns the loss, and a function for the weights."""
    images, classes = jnp.asarray(x), jnp.asarray(labels.astype(np.int32))

    def loss_of(parameters: Any) -> Any:
        logarithms = jax.nn.log_softmax(_forward(net, parameters, images))
        return -jnp.mean(jnp.take_along_axis(logarithms, classes[:, None], axis=1))

    @jax.jit
    def update(parameters: Any, velocity: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(parameters)
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradients)
        return loss, jax.tree.map(lambda p, v: p - lr * v, parameters, velocity), velocity

    parameters = _parameters(net)
    state = [parameters, jax.tree.map(jnp.zeros_like, parameters)]

    def step() -> Any:
        loss, state[0], state[1] = update(*state)
        return jax.block_until_ready((loss, state))[0]

    def weights() -> Mapping[str, Any]:
        return state[0]  # type: ignore[no-any-return]

    return step, weights


def jax_rnn_step(layer: nn.RNN, x: NDArray[np.float32], target: NDArray[np.float32], lr: float) -> Step:
    """A step of SGD on the mean squared error of a tanh RNN of one layer, by `lax.scan`; it returns the loss.

    W_ih x of all time steps is one product before the scan, which is JAX's fastest form.
    """
    inputs, wanted = jnp.asarray(x), jnp.asarray(target)

    def loss_of(parameters: Any) -> Any:
        projected = inputs @ parameters["weight_ih_l0"].T + parameters["bias_ih_l0"] + parameters["bias_hh_l0"]

        def cell(h: Any, a: Any) -> Any:
            h = jnp.tanh(a + h @ parameters["weight_hh_l0"].T)
            return h, h

        zeros = jnp.zeros((x.shape[0], layer.hidden_size), x.dtype)
        _, states = lax.scan(cell, zeros, jnp.swapaxes(projected, 0, 1))
        return jnp.mean((jnp.swapaxes(states, 0, 1) - wanted) ** 2)

    @jax.jit
    def update(parameters: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(parameters)
        return loss, jax.tree.map(lambda p, g: p - lr * g, parameters, gradients)

    state = [_parameters(layer)]

    def step() -> Any:
        loss, state[0] = update(state[0])
        return jax.block_until_ready((loss, state))[0]

    return step


def jax_product(x: NDArray[np.float32], weight: NDArray[np.float32]) -> Step:
    """x times the weight's transpose."""
    multiply = jax.jit(lambda a, b: a @ b.T)
    left, right = jnp.asarray(x), jnp.asarray(weight)
    return lambda: multiply(left, right).block_until_ready()


def _parameters(net: nn.Layer) -> dict[str, Any]:
    return {name: jnp.array(value) for name, value in net.state_dict().items()}


def _forward(net: nn.Sequential, parameters: Mapping[str, Any], x: Any) -> Any:
    for i, layer in enumerate(net):
        x = _layer(layer, parameters.get(f"{i}.weight"), parameters.get(f"{i}.bias"), x)
    return x


def _layer(layer: nn.Layer, weight: Any, bias: Any, x: Any) -> Any:
    if isinstance(layer, nn.Linear):
        return x @ weight.T + bias
    if isinstance(layer, nn.Conv2d):
        pads = [(p, p) for p in layer.padding]
        y = lax.conv_general_dilated(
            x, weight, layer.stride, pads, rhs_dilation=layer.dilation, feature_group_count=layer.groups
        )
        return y + bias[:, None, None]
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
        window, strides = (1, 1, *layer.kernel_size), (1, 1, *layer.stride)
        pads = [(0, 0), (0, 0), *((p, p) for p in layer.padding)]
        if isinstance(layer, nn.MaxPool2d):
            return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, pads)
        return lax.reduce_window(x, 0.0, lax.add, window, strides, pads) / float(np.prod(layer.kernel_size))
    if isinstance(layer, nn.ReLU):
        return jax.nn.relu(x)
    if isinstance(layer, nn.Flatten):
        return x.reshape(len(x), -1)
    raise TypeError(f"expected a layer that has a twin, got {layer.kind}")
