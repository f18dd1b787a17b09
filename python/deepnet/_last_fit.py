"""What a layer remembers of its last fit: one attribute, so that those of users' own layers keep their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from deepnet._core import Layer, Loss
    from deepnet._fit import History

_NAME = "_deepnet_last_fit"


class LastFit(NamedTuple):
    """Nothing, before any fit."""

    history: History | None = None  # also of one that was interrupted
    loss: Loss | None = None  # which evaluate uses
    input_shape: tuple[int, ...] | None = None  # for the summary


def last_fit(layer: Layer) -> LastFit:
    """What was kept."""
    kept: LastFit = getattr(layer, _NAME, LastFit())
    return kept


def keep_fit(layer: Layer, fit: LastFit) -> None:
    """Replace what was kept."""
    setattr(layer, _NAME, fit)


class HistoryAttribute:
    """``net.history``: that of the last fit, or what a layer's own code calls so.

    Without ``__set__`` an attribute of the instance comes first.
    """

    def __get__(self, layer: Layer | None, owner: type[Layer]) -> History | None:
        return None if layer is None else last_fit(layer).history
