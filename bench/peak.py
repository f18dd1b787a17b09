"""What the machine can do at most, measured by machine.cpp beside this file."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple


class Peak(NamedTuple):
    """GFLOP/s of multiply-adds out of registers, and GB/s between memory and cores; of all threads together."""

    gflops: float
    gbs: float


def measure_peak(threads: int) -> Peak | None:
    """None where no C++ compiler is found: that in CXX, or c++."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "machine"
        source = Path(__file__).with_name("machine.cpp")
        command = [compiler, "-std=c++17", "-O3", "-pthread", str(source), "-o", str(program)]
        subprocess.run(command, check=True)
        printed = subprocess.run([program, str(threads)], check=True, capture_output=True, text=True).stdout.split()
    return Peak(float(printed[printed.index("peak_gflops") + 1]), float(printed[printed.index("bandwidth_gbs") + 1]))
