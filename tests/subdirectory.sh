#!/usr/bin/env bash
# A project of a few lines takes this repository in with add_subdirectory, as a shared library, and runs against it.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
build=$root/build/subdirectory
mkdir -p "$build"

cat >"$build/CMakeLists.txt" <<END
cmake_minimum_required(VERSION 3.18)
project(parent CXX)
add_subdirectory("$root" deepnet)
add_executable(consumer "$root/tests/cpp/consumer/consumer.cpp")
target_link_libraries(consumer deepnet::deepnet)
END
cmake -S "$build" -B "$build/out" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON
cmake --build "$build/out"

# Tests and examples are for whoever builds deepnet itself.
[[ ! -e $build/out/deepnet/tests ]] || { echo "add_subdirectory also configured the tests" >&2; exit 1; }
[[ $("$build/out/consumer" || true) == usage:* ]] || { echo "consumer did not run" >&2; exit 1; }
echo "ok"
