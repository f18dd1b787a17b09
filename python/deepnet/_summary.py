"""The table of a network's layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepnet._core import Layer


def summary(self: Layer, input_shape: Sequence[int] | None = None) -> str:
    """Print, and return, a table of the layers: name, kind, output shape, parameters.

    Parameters
    ----------
    input_shape
        Shape of a batch, such as (1, 1, 28, 28). Without it, that of a recent run; before any, "?" is shown.

    Raises
    ------
    ShapeError
        The network does not take an input of that shape.

    Examples
    --------
    >>> from deepnet import nn
    >>> text = nn.Sequential(nn.Linear(4, 24), nn.ReLU()).summary((1, 4))
    layer  kind    output shape  parameters
    ---------------------------------------
    0      Linear  (N, 24)              120
    1      ReLU    (N, 24)                0
    ---------------------------------------
    total                               120
    """
    rows = [("layer", "kind", "output shape", "parameters")]
    batch = self._input_shape if input_shape is None else tuple(input_shape)
    for name, kind, shape, parameters in self._summary(batch):
        rows.append((name, kind, _shape_text(shape), f"{parameters:,}"))
    total = sum(parameter.size for parameter in self.parameters().values())
    rows.append(("total", "", "", f"{total:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*(row[c].ljust(widths[c]) for c in range(3)), row[3].rjust(widths[3])]) for row in rows]
    rule = "-" * len(lines[0])
    text = "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
    print(text)
    return text


def _shape_text(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return "?"
    return f"({', '.join(['N', *map(str, shape[1:])])})"
