"""Checks what an object of kernels shares with the rest of the program: nothing but its table.

    isa_symbols.py NM OBJECT...

A weak symbol in such an object (an inline function, a template) would let the linker keep, for everyone, the
copy compiled for instructions that the machine at hand may lack. So each object must export exactly one strong
symbol, no weak one, and need nothing but the C functions to which compilers turn loops.
"""

import re
import subprocess
import sys

# __stack_chk_*: distributions that build with -fstack-protector. _GLOBAL_OFFSET_TABLE_: how code reaches its tables.
ALLOWED_UNDEFINED = {"memcpy", "memmove", "memset", "memcmp", "_GLOBAL_OFFSET_TABLE_"}
ALLOWED_UNDEFINED |= {"__stack_chk_fail", "__stack_chk_guard"}


def faults(nm: str, path: str) -> list[str]:
    isa = re.search(r"deepnet_kernels_(\w+)\.dir", path).group(1)
    output = subprocess.run([nm, "-P", path], check=True, capture_output=True, text=True).stdout
    symbols = [line.split()[:2] for line in output.splitlines()]

    exported = sorted(name for name, kind in symbols if kind.isupper() and kind not in "UVW")
    weak = sorted(name for name, kind in symbols if kind in "vVwWu")
    undefined = {name for name, kind in symbols if kind == "U"} - ALLOWED_UNDEFINED

    found = []
    if exported != [f"deepnet_kernels_{isa}"]:
        found.append(f"expected to export only deepnet_kernels_{isa}, got {exported}")
    if weak:
        found.append(f"expected no weak symbol, got {weak}")
    if undefined:
        found.append(f"expected to need only {sorted(ALLOWED_UNDEFINED)}, got {sorted(undefined)}")
    return found


def main() -> int:
    nm, *objects = sys.argv[1:]
    status = 0 if objects else "no objects given"
    for path in objects:
        found = faults(nm, path)
        print(f"{'ok' if not found else 'FAILED'} {path}", *found, sep="\n  ")
        if found:
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
