#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_mobagen.sh MOBAGEN SOURCE_DIR WORK_DIR: golden outputs, repeatability, and every error message with its place.
set -eu
mobagen=$1 source=$2 work=$3
here=$source/tests/codegen
rm -rf "$work"
failed=0
for run in first second; do
    for target in opencl glsl cuda hip; do mkdir -p "$work/$run/$target"; done
    "$mobagen" emit "$source/codegen/dialect" "$work/$run" "$here/sample.kern"
done
diff -r "$work/first" "$work/second" || { echo "FAILED: two runs differ"; failed=1; }
# The preludes are long and change with the dialect: golden files hold what mobagen itself writes.
for file in opencl/sample_bf16_d64.cl glsl/sample_bf16_d64.comp cuda/sample_bf16_d64.cu hip/sample_bf16_d64.hip; do
    sed '/---- dialect:/,/---- end of dialect/d' "$work/first/$file" >"$work/$(basename "$file")"
done
for file in simt_table.c simt_rows.inc simt_spirv.c cuda/unit_sample.cu; do cp "$work/first/$file" "$work/"; done
for golden in "$here"/golden/*; do
    diff -u "$golden" "$work/$(basename "$golden")" || { echo "FAILED: $(basename "$golden") is not as expected"; failed=1; }
done
[ "$(ls "$here/golden" | wc -l)" = 8 ] || { echo "FAILED: 8 golden files are expected"; failed=1; }
cases=0
mkdir -p "$work/bad/opencl" "$work/bad/glsl" "$work/bad/cuda" "$work/bad/hip"
while read -r line; do
    case $line in \#*) continue ;; esac
    expected=${line%% | *} text=${line#* | } code=0
    rm -f "$work"/bad/*.kern
    printf '%b' "${text%%@*}" >"$work/bad/case.kern"
    case $text in *@*) printf '%b' "${text#*@}" >"$work/bad/other.kern" ;; esac
    "$mobagen" emit "$source/codegen/dialect" "$work/bad" "$work"/bad/*.kern 2>"$work/stderr" || code=$?
    if [ "$code" != 1 ] || ! grep -qF "$expected" "$work/stderr" || [ "$(wc -l <"$work/stderr")" != 1 ]; then
        echo "FAILED: '$expected' is expected: exit $code, said: $(cat "$work/stderr")"
        failed=1
    fi
    cases=$((cases + 1))
done <"$here/bad/cases.txt"
[ $cases -ge 45 ] || { echo "FAILED: only $cases cases"; failed=1; }
"$mobagen" >/dev/null 2>&1 && { echo "FAILED: no usage error"; failed=1; }
exit $failed
