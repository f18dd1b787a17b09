#!/usr/bin/env bash
# The C++ tests, cross-compiled for AArch64 and run by qemu's user-mode emulator.
#
#   tests/aarch64.sh [PYTHON]
#
# PYTHON (default python3) needs the package nlohmann-json. Debian: g++-aarch64-linux-gnu qemu-user. Where these are
# missing nothing is tested; with CI set that is a failure, so that no check vanishes quietly.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
build=build/aarch64

for tool in aarch64-linux-gnu-g++ qemu-aarch64; do
  if ! command -v $tool >/dev/null; then
    echo "SKIPPED: $tool is not installed; nothing was tested on AArch64" >&2
    [[ -z ${CI:-} ]]  # the exit status
    exit
  fi
done

cmake -S . -B $build -G Ninja -DPython_EXECUTABLE="$(command -v "$python")" -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
  -DCMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64;-L;/usr/aarch64-linux-gnu" -DDEEPNET_BUILD_EXAMPLES=OFF
cmake --build $build

for isa in neon generic; do
  DEEPNET_ISA=$isa ctest --test-dir $build --output-on-failure
done
