"""How the time of a training step grows with batch, width and depth, and how far from a straight line it is.

$ python bench/scaling.py
$ python bench/scaling.py --only "lenet, batch" --threads 1 --plot ""
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from networks import lenet, mlp, network_cost, plain
from timing import Step, cpu_name, format_seconds, interleave

import deepnet
from deepnet import nn, optim

CLASSES = 10
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
ALLOWED = 0.15  # departure from the line, in parts of it
FIGURE = Path(__file__).parent / "figures" / "scaling.png"


class Series(NamedTuple):
    """Networks of growing work: one with so many samples a batch for each size."""

    build: Callable[[int], nn.Sequential]
    shape: Callable[[int], tuple[int, ...]]
    sizes: tuple[int, ...]
    smallest: int  # from this size on the time should be a straight line


SERIES = {
    "lenet, batch": Series(lambda _: lenet(), lambda n: (n, 1, 28, 28), BATCHES, 16),
    "mlp 784-256-128-10, batch": Series(lambda _: mlp(784, 256, 128, 10), lambda n: (n, 784), BATCHES, 16),
    "plain net, width": Series(lambda w: plain(7, w), lambda _: (16, 3, 32, 32), (8, 16, 24, 32, 48, 64, 96, 128), 32),
    "mlp, width": Series(lambda w: mlp(784, w, w, 10), lambda _: (64, 784), (64, 128, 256, 512, 1024, 1536, 2048), 512),
    "plain net, depth": Series(lambda d: plain(d, 16), lambda _: (16, 3, 32, 32), (4, 7, 13, 19, 25, 31, 37), 7),
    "mlp, depth": Series(lambda d: mlp(*[256] * d, 10), lambda _: (64, 256), (2, 4, 8, 16, 32, 64), 4),
}


class Line(NamedTuple):
    """Seconds = start + slope * work, the best fit in relative terms."""

    start: float
    slope: float

    def __call__(self, work: float) -> float:
        """Seconds."""
        return self.start + self.slope * work


def main() -> None:
    """Print a table for each series, draw them, and end with exit status 1 where one is too far from its line."""
    options = _parser().parse_args()
    deepnet.set_num_threads(options.threads)
    print(f"{cpu_name()}, threads: {options.threads}, rounds: {options.repeats}")
    print(f"deepnet {deepnet.__version__} ({deepnet.active_isa()})")
    measured, bent = {}, []
    for name in options.only or SERIES:
        series = SERIES[name]
        work, seconds = _measure(series, options)
        first = series.sizes.index(series.smallest)
        line = fit_line(work[first:], seconds[first:])
        worst = max(abs(t / line(w) - 1) for w, t in zip(work[first:], seconds[first:], strict=True))
        _print_table(name, series, work, seconds, line)
        print(
            f"\nlargest departure from size {series.smallest} on: {100 * worst:.1f} % (allowed: {100 * ALLOWED:.0f} %)"
        )
        measured[name] = work, seconds, line
        if worst > ALLOWED:
            bent.append(name)
    if options.plot:
        draw(Path(options.plot), measured)
    if bent:
        raise SystemExit(f"not linear within {100 * ALLOWED:.0f} %: {', '.join(bent)}")


def fit_line(work: Sequence[float], seconds: Sequence[float]) -> Line:
    """Least squares of the relative errors, so that small sizes count as much as large ones."""
    w, t = np.asarray(work, np.float64), np.asarray(seconds, np.float64)
    start, slope = np.linalg.lstsq(np.stack([1 / t, w / t], axis=1), np.ones(len(w)), rcond=None)[0]
    return Line(float(start), float(slope))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="(default: 1)")
    parser.add_argument("--repeats", type=int, default=11, help="rounds, each a block of every size (default: 11)")
    parser.add_argument("--block", type=float, default=0.1, help="seconds of a block (default: 0.1)")
    parser.add_argument("--only", nargs="+", choices=SERIES, metavar="SERIES", help=", ".join(map(repr, SERIES)))
    parser.add_argument("--plot", default=FIGURE, metavar="FILE", help='"" for none (default: %(default)s)')
    return parser


def _measure(series: Series, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """GFLOP of a step, and its seconds, for every size; the sizes take turns."""
    steps, work = {}, []
    for size in series.sizes:
        net, shape = series.build(size), series.shape(size)
        work.append(network_cost(net, shape, training=True).flops / 1e9)
        steps[str(size)] = _training_step(net, shape)
    times = interleave(steps, options.repeats, options.block)
    return work, [median(values) for values in times.values()]


def _training_step(net: nn.Sequential, shape: tuple[int, ...]) -> Step:
    random = np.random.default_rng(0)
    x = random.standard_normal(shape, dtype=np.float32)
    labels = random.integers(CLASSES, size=shape[0])
    trainer = deepnet.Trainer(net, nn.CrossEntropyLoss(), optim.SGD(0.001))
    return lambda: trainer.step(x, labels)


def _print_table(name: str, series: Series, work: Sequence[float], seconds: Sequence[float], line: Line) -> None:
    print(f"\n| {name} | GFLOP | a step | GFLOP/s | off the line |\n|--:|--:|--:|--:|--:|")
    for size, gflop, time in zip(series.sizes, work, seconds, strict=True):
        off = f"{100 * (time / line(gflop) - 1):+.1f} %" if size >= series.smallest else ""
        print(f"| {size} | {gflop:.4g} | {format_seconds(time)} | {gflop / time:.1f} | {off} |", flush=True)


def draw(path: Path, measured: dict[str, tuple[Sequence[float], Sequence[float], Line]]) -> None:
    """Times against work with their lines, a panel each."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(len(measured), 2)
    rows = -(-len(measured) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(4 * columns, 2.8 * rows), dpi=90, squeeze=False)
    for axes, (name, (work, seconds, line)) in zip(panels.flat, measured.items(), strict=False):
        axes.plot(work, [line(w) * 1e3 for w in work], color="gray", linewidth=1)
        axes.plot(work, [t * 1e3 for t in seconds], "o", markersize=4)
        if max(work) > 100 * min(work):
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("GFLOP a step", fontsize=8)
        axes.set_ylabel("ms a step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(which="major", linewidth=0.3)
    for axes in list(panels.flat)[len(measured) :]:
        axes.remove()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
