# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Sourced by ci/demo and ci/test: strict mode, named steps with their minutes, no standard input.
set -euo pipefail
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/.."

jobs=$(nproc)
step_name="start"
step_report=""
steps_begin=$SECONDS

trap 'code=$?; [ $code -eq 0 ] || printf "\nFAILED with exit code %s in step: %s\n" "$code" "$step_name"' EXIT

# step NAME COMMAND...: runs a command under a heading and notes how long it took.
step() {
    step_name=$1
    shift
    printf '\n=== %s\n' "$step_name"
    local begin=$SECONDS
    "$@"
    local line
    line=$(awk -v s=$((SECONDS - begin)) -v n="$step_name" 'BEGIN { printf "%5.1f min  %s", s / 60, n }')
    printf -- '--- %s\n' "$line"
    step_report+="$line"$'\n'
}

print_minutes() {
    printf '\n%s%5.1f min  total\n' "$step_report" "$(awk -v s=$((SECONDS - steps_begin)) 'BEGIN { print s / 60 }')"
}

# logged FILE COMMAND...: keeps the output in a file and shows it only where the command fails. A shell function run
# this way has to chain its commands with &&, since bash ignores "set -e" in it.
logged() {
    local file=$1
    shift
    mkdir -p "$(dirname "$file")"
    "$@" >"$file" 2>&1 || { code=$?; tail -n 200 "$file"; return $code; }
}

cpu_only="-DMOBA_CUDA=OFF -DMOBA_HIP=OFF -DMOBA_OPENCL=OFF -DMOBA_VULKAN=OFF"

# configure_and_build FOLDER ARGUMENT...
configure_and_build() {
    local folder=$1
    shift
    cmake -S . -B "$folder" -G Ninja -DMOBA_WERROR=ON "$@" &&
        cmake --build "$folder" --parallel "$jobs"
}
