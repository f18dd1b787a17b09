#!/usr/bin/env bash
# The C++ and the Python tests with AddressSanitizer and UndefinedBehaviorSanitizer; those of threads with ThreadSanitizer.
#
#   tests/sanitizers.sh [PYTHON [PYTEST_ARGUMENT...]]
#
# PYTHON (default .venv/bin/python) needs the packages of the test extra and of the dependency group "native".
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
shift || true
PATH="$(cd "$(dirname "$python")" && pwd):$PATH"
build=build/sanitized

cmake -S . -B $build -G Ninja -DPython_EXECUTABLE="$(command -v python)" -DDEEPNET_BUILD_PYTHON=ON \
  -DDEEPNET_SANITIZE=address,undefined -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O1
cmake --build $build

export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1
ctest --test-dir $build --output-on-failure

cmake -S . -B $build-thread -G Ninja -DDEEPNET_SANITIZE=thread -DDEEPNET_OPENMP=OFF -DDEEPNET_BUILD_EXAMPLES=OFF \
  -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O1
cmake --build $build-thread --target parallel_test model_test
# Its shadow memory has no room for the random addresses of newer kernels.
for name in parallel_test model_test; do
  setarch --addr-no-randomize "$(find $build-thread -type f -name $name)"
done

# A package of the Python sources and the instrumented module, in front of the installed one.
rm -rf $build/python
cmake --install $build --prefix $build/python --component python >/dev/null
cp -R python/deepnet/. $build/python/deepnet/

# The interpreter is not instrumented, so the runtime has to come first; libstdc++ with it, or the interceptor of
# __cxa_throw finds nothing to call. Leaks are not looked for: the interpreter keeps memory to the end. Sizes beyond all
# memory must come back as a refused allocation. Timings mean nothing here, and the packaging tests, and the README's
# with them, build the program anew without sanitizers; memory seems to grow, because freed blocks are kept for a while
# to catch late uses. With --capture=sys the report of a dying process is seen.
preload="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)"
ASAN_OPTIONS+=:detect_leaks=0:allocator_may_return_null=1
LD_PRELOAD=$preload PYTHONPATH=$PWD/$build/python \
  python -m pytest -q -p no:cacheprovider --capture=sys -m "not timing" --ignore=tests/python/test_packaging.py --ignore=tests/python/test_readme.py \
  --deselect tests/python/test_lifetimes.py::test_memory_does_not_grow "$@"
