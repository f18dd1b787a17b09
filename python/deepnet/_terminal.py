"""What the command line prints: tables, bars and colours."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

import numpy as np
from numpy.typing import NDArray


def use_colour(stream: TextIO) -> bool:
    """Only on a terminal that wants it (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def confusion_matrix(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """How often each class (row) was taken for each class (column)."""
    counts = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes)


def format_confusion(matrix: NDArray[np.int64], names: Sequence[str], colour: bool) -> str:
    """Rows are true classes, columns predictions; hits green, mistakes red, zeros as dots."""
    size = max(len(str(matrix.max(initial=0))), len(str(len(matrix) - 1))) + 1
    margin = max(max(map(len, names), default=0), len("true"))
    lines = [f"{'true':>{margin}}  predicted", " " * margin + " " + "".join(f"{i:>{size}}" for i in range(len(matrix)))]
    for row, name in enumerate(names):
        cells = []
        for column, count in enumerate(matrix[row].tolist()):
            cell = f"{count or '.':>{size}}"
            if colour and count:
                cell = f"\033[{32 if row == column else 31}m{cell}\033[0m"
            cells.append(cell)
        lines.append(f"{name:>{margin}} " + "".join(cells))
    return "\n".join(lines)


def format_class_accuracy(matrix: NDArray[np.int64], names: Sequence[str]) -> str:
    """One line a class: how many of it were recognised."""
    margin = max(map(len, names), default=0)
    lines = []
    for row, name in enumerate(names):
        total, right = int(matrix[row].sum()), int(matrix[row, row])
        share = f"{right / total:.4f}  {bar(right / total, 20)}" if total else "     -  " + " " * 20
        lines.append(f"{name:>{margin}}  {share}  {right} of {total}")
    return "\n".join(lines)


def format_ranking(probabilities: NDArray[np.float32], names: Sequence[str], top: int = 3) -> str:
    """The likeliest classes with bars."""
    best = np.argsort(-probabilities, kind="stable")[:top]
    margin = max(len(names[i]) for i in best)
    return "\n".join(
        f"  {names[i]:>{margin}}  {probabilities[i]:.4f}  {bar(float(probabilities[i]), 30)}".rstrip() for i in best
    )


def bar(share: float, width: int) -> str:
    """A bar of `share` of `width` cells, of the characters that standard output can show."""
    full = round(min(max(share, 0.0), 1.0) * width)
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    block = "\u2588"
    try:
        block.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        block = "#"
    return (block * full).ljust(width)
