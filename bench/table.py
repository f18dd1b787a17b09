"""The whole table, networks, layers, products and element-wise functions, against other libraries: see README.md.

$ python bench/table.py
$ python bench/table.py --only gemm layers --threads 1 --repeats 5
$ python bench/table.py --plot bench/figures/roofline.png
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import torch
from peak import Peak, measure_peak
from programs import OURS, missing
from roofline import Point, draw_roofline
from sections import SECTIONS, Row
from timing import cpu_name, format_seconds, interleave

import deepnet


class Result(NamedTuple):
    """A row and the seconds of a step of each of its programs, one figure a round."""

    row: Row
    times: dict[str, list[float]]

    def median(self, who: str = OURS) -> float:
        """Seconds a step."""
        return median(self.times[who])

    def is_bound_by_memory(self, peak: Peak | None) -> bool:
        """Whether moving the bytes would take longer than computing, each at full speed."""
        cost = self.row.cost
        return not cost.flops or (peak is not None and cost.bytes / peak.gbs > cost.flops / peak.gflops)


def main() -> None:
    """Print the tables in Markdown; a process of its own for each number of threads."""
    options = _parser().parse_args()
    if bool(options.peak) != bool(options.bandwidth):
        raise SystemExit("--peak and --bandwidth belong together: give both")
    if options.peak and len(options.threads) > 1:
        raise SystemExit("--peak and --bandwidth are those of one number of threads: give one to --threads")
    if len(options.threads) > 1:
        for threads in options.threads:
            _start_again(options, threads)
        return
    threads = options.threads[0]
    if hasattr(os, "sched_setaffinity"):  # JAX has no other limit on its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    # PyTorch computes with subnormal numbers unless told not to, which would slow it down as gradients fade. Threads
    # inherit this, so it comes before the first of them.
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    deepnet.set_num_threads(threads)
    peak = Peak(options.peak, options.bandwidth) if options.peak else measure_peak(threads)
    print(f"{cpu_name()}, threads: {threads}, rounds: {options.repeats}")
    print(f"deepnet {deepnet.__version__} ({deepnet.active_isa()}), PyTorch {torch.__version__}")
    if hasattr(os, "getloadavg"):
        print(f"load of the last minute, before this: {os.getloadavg()[0]:.2f}")
    if peak is None:
        print("no C++ compiler to measure the machine's peak with, so no percentages: give --peak and --bandwidth")
    else:
        print(f"peak {peak.gflops:.0f} GFLOP/s, memory {peak.gbs:.1f} GB/s")
    for line in missing():
        print(line)

    results = []
    for section in options.only or SECTIONS:
        results += _section(section, threads, options, peak)
    if options.plot and peak is not None:
        draw_roofline(options.plot, _points(results), peak, f"{cpu_name()}, threads: {threads}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of every library (default: 1 2)")
    parser.add_argument("--repeats", type=int, default=11, help="rounds, each a block of every program (default: 11)")
    parser.add_argument("--block", type=float, default=0.2, help="seconds of a block (default: 0.2)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--rows", default="", metavar="TEXT", help="only rows whose name or size has this in it")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which takes its time")
    parser.add_argument("--peak", type=float, metavar="GFLOPS", help="of the machine; measured where not given")
    parser.add_argument("--bandwidth", type=float, metavar="GBS", help="of its memory; measured where not given")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the roofline of the most threads")
    return parser


def _start_again(options: argparse.Namespace, threads: int) -> None:
    """This script for one number of threads: some libraries take it only as they start."""
    command = [sys.executable, __file__, "--threads", str(threads), "--repeats", str(options.repeats)]
    command += ["--block", str(options.block), "--rows", options.rows]
    command += ["--only", *(options.only or SECTIONS)]
    if options.no_compile:
        command.append("--no-compile")
    if options.plot and threads == max(options.threads):
        command += ["--plot", str(options.plot)]
    status = subprocess.run(command, check=False).returncode
    if status:
        raise SystemExit(status)
    print(flush=True)


def _section(name: str, threads: int, options: argparse.Namespace, peak: Peak | None) -> list[Result]:
    """Measure a section, then print it: which columns it has depends on all its rows."""
    results = []
    for row in SECTIONS[name](threads, not options.no_compile, options.rows):
        with row.context():
            results.append(Result(row, interleave(row.programs, options.repeats, options.block)))
        print(f"{name}: {row.name} {row.size}", file=sys.stderr, flush=True)
    if not results:
        return []
    columns = list(dict.fromkeys(who for result in results for who in result.times))
    print(f"\n### {name}, threads: {threads}\n")
    print(_line([name, "size", *columns, f"best other / {OURS}", "quartiles", "speed", "of peak"]))
    print(_line(["---", "---", *["--:"] * (len(columns) + 4)]))
    for result in results:
        print(_line(_cells(result, columns, peak)), flush=True)
    return results


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(result: Result, columns: Sequence[str], peak: Peak | None) -> list[str]:
    times = result.times
    best = min((who for who in times if who != OURS), key=result.median)
    ratios = [b / a for a, b in zip(times[OURS], times[best], strict=True)]
    low, _, high = quantiles(ratios, method="inclusive") if len(ratios) > 1 else ratios * 3
    medians = [format_seconds(result.median(who)) if who in times else "" for who in columns]
    ratio = f"**{result.median(best) / result.median():.2f}**"
    if result.is_bound_by_memory(peak):
        speed, unit, most = result.row.cost.bytes / result.median() / 1e9, "GB/s", peak and peak.gbs
    else:
        speed, unit, most = result.row.cost.flops / result.median() / 1e9, "GFLOP/s", peak and peak.gflops
    share = f"{100 * speed / most:.0f} %" if most else ""
    return [result.row.name, result.row.size, *medians, ratio, f"{low:.2f} to {high:.2f}", f"{speed:.4g} {unit}", share]


def _points(results: Sequence[Result]) -> list[Point]:
    """Of the rows that multiply."""
    return [
        Point(r.row.name, r.row.cost.flops / r.row.cost.bytes, r.row.cost.flops / r.median() / 1e9)
        for r in results
        if r.row.cost.flops
    ]


if __name__ == "__main__":
    main()
