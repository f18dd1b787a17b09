"""The states that recurrent layers carry on from call to call, and from step to step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from deepnet._core import Layer, RecurrentLayer


@contextmanager
def states_put_aside(net: Layer) -> Iterator[None]:
    """All are zeros inside, and afterwards what they were before."""
    layers = [layer for layer in layers_of(net) if isinstance(layer, RecurrentLayer)]
    before = [layer._carried_state for layer in layers]
    net.reset_state()
    try:
        yield
    finally:
        for layer, state in zip(layers, before, strict=True):
            layer._carried_state = state


def layers_of(layer: Layer) -> Iterator[Layer]:
    """The layer and all below it, outermost first."""
    yield layer
    for child in layer.children():
        yield from layers_of(child)
