#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# check_readme.sh SOURCE: the C example of README.md is examples/forward.c, which the tests compile and run.
set -euo pipefail
source=$1
diff <(sed -n '/^```c$/,/^```$/p' "$source/README.md" | sed '1d;$d') <(tail -n +2 "$source/examples/forward.c")
echo "README.md and examples/forward.c agree"
