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
        Shape of a batch, such as (1, 1, 28, 28). Without it, sizes that depend on the input are shown as "?".

    Raises
    ------
    ShapeError
        The network does not take an input of that shape.

    Examples
    --------
    >>> net.summary((1, 1, 28, 28))
    """
    rows = [("layer", "kind", "output shape", "parameters")]
    for name, kind, shape, parameters in self._summary(None if input_shape is None else tuple(input_shape)):
        rows.append((name, kind, _shape_text(shape), f"{parameters:,}"))
    total = sum(parameter.size for parameter in self.parameters().values())
    rows.append(("total", "", "", f"{total:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*(row[c].ljust(widths[c]) for c in range(3)), row[3].rjust(widths[3])]) for row in rows]
    rule = "-" * len(lines[0])
    text = "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
    print(text)
    return text


def _shape_text(shape: tuple[int | None, ...] | None) -> str:
    if shape is None:
        return "?"
    sizes = ", ".join("?" if size is None else str(size) for size in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"
