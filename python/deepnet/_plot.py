"""Pictures of a training: loss curves, the first layer's filters, some mistakes. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepnet import nn
from deepnet._fit import History

_FILTERS = 32
_MISTAKES = 12


def check_plot(path: Path) -> None:
    """Raises ImportError where matplotlib is missing, ValueError for types of files that it cannot write."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install 'deepnet[plot]'") from error
    types = sorted(FigureCanvasBase.get_supported_filetypes())
    if _type(path) not in types:
        raise ValueError(f"expected --plot to end in .png or another of {', '.join(types)}, got {path}")


def plot_training(
    path: Path,
    net: nn.Layer,
    history: History,
    x: NDArray[np.float32],
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    names: Sequence[str],
) -> None:
    """Draw a training to an image file, whose type its name decides; PNG, if it has no suffix.

    Parameters
    ----------
    net, history
        The network and what its fit returned.
    x, labels, predicted
        Test images (N, C, H, W), their classes and what the network took them for.
    names
        Names of the classes.
    """
    # A figure without pyplot needs no display and leaves no global state behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1))
    left, right = top.subfigures(1, 2)
    _plot_curves(left, history)
    _plot_filters(right, net)
    _plot_mistakes(bottom, x, labels, predicted, names)
    figure.savefig(path, dpi=110, format=_type(path))


def _type(path: Path) -> str:
    return path.suffix[1:].lower() or "png"


def _plot_curves(figure: Any, history: History) -> None:
    axes = figure.subplots()
    epochs = range(1, history.epochs + 1)
    for name, label in (("loss", "training"), ("val_loss", "test")):
        if name in history:
            axes.plot(epochs, history[name], marker="o", markersize=3, label=f"{label} loss")
    axes.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _plot_filters(figure: Any, net: nn.Layer) -> None:
    weight = _first_weight(net)
    if weight is None:
        figure.suptitle("no convolution to show", fontsize="medium")
        return
    kernels = weight[:_FILTERS].mean(axis=1)
    figure.suptitle("filters of the first layer", fontsize="medium")
    limit = float(np.abs(kernels).max()) or 1.0
    columns = min(8, len(kernels))
    grid = figure.subplots(-(-len(kernels) // columns), columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, kernel in zip(grid, kernels, strict=False):
        axes.imshow(kernel, cmap="RdBu_r", vmin=-limit, vmax=limit)


def _plot_mistakes(
    figure: Any,
    x: NDArray[np.float32],
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    names: Sequence[str],
) -> None:
    wrong = np.flatnonzero(labels != predicted)
    figure.suptitle(f"mistakes: {len(wrong)} of {len(labels)}", fontsize="medium")
    shown = wrong[:_MISTAKES]
    if not len(shown):
        return
    columns = _MISTAKES // 2
    grid = figure.subplots(2, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, i in zip(grid, shown, strict=False):
        axes.imshow(x[i].mean(axis=0), cmap="gray_r")
        axes.set_title(f"{names[predicted[i]]}, not {names[labels[i]]}", fontsize="small")


def _first_weight(net: nn.Layer) -> NDArray[np.float32] | None:
    if isinstance(net, nn.Conv2d):
        return net.weight.data
    for child in net.children():
        weight = _first_weight(child)
        if weight is not None:
            return weight
    return None
