#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# check_readme.sh SOURCE: the C example of README.md is examples/forward.c, which the tests compile and run.
set -euo pipefail
source=$1
diff <(sed -n '/^```c$/,/^```$/p' "$source/README.md" | sed '1d;$d') <(tail -n +2 "$source/examples/forward.c")
echo "README.md and examples/forward.c agree"

# Every environment variable of core/env.c is in README.md's table, and no other.
diff <(grep -oE '"MOBA_[A-Z_]+"' "$source/core/env.c" | tr -d '"' | sort -u) \
    <(sed -nE 's/^\| `(MOBA_[A-Z_]+)` \|.*/\1/p' "$source/README.md" | sort -u)
echo "README.md and core/env.c agree"
