"""Times of several programs for the same work, taken in turns so that all of them meet the same machine."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

Step: TypeAlias = Callable[[], object]


def interleave(steps: Mapping[str, Step], rounds: int, block_seconds: float = 0.2) -> dict[str, list[float]]:
    """Seconds a step, one figure a round: each round times a block of steps of each program, in order.

    A block begins with steps that are not timed: they bring the program's data back into the caches and wake its
    threads, while those of the program before, which may wait by spinning, go to sleep.
    """
    counts = {name: _steps_in(step, block_seconds) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            _run(step, max(1, counts[name] // 8))
            times[name].append(_run(step, counts[name]) / counts[name])
    return times


def format_seconds(seconds: float) -> str:
    """Three significant digits or more, in ms or us."""
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def cpu_name() -> str:
    """What the processor calls itself."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    return platform.processor() or platform.machine()


def _run(step: Step, count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        step()
    return time.perf_counter() - begin


def _steps_in(step: Step, seconds: float) -> int:
    """How many steps take about that long, at least one."""
    _run(step, 3)
    count = 1
    while (elapsed := _run(step, count)) < seconds / 4:
        count *= 2
    return max(1, round(count * seconds / elapsed))
