#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# check_exports.sh LIBRARY HEADERS: the shared library exports exactly the names of exports.txt, and these are the
# functions that the public headers declare.
set -euo pipefail
export LC_ALL=C
library=$1 headers=$2
list=$(dirname "$0")/exports.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

sort -c "$list"
nm -D --defined-only "$library" | awk '{ print $NF }' | sed 's/@.*//' | sort >"$work/exported"
# Declarations start with MOBA_API and may go on over several lines; the name stands before the first parenthesis.
cat "$headers"/*.h | tr '\n' ' ' | grep -oE 'MOBA_API [A-Za-z0-9_ *]*\(' | grep -oE 'moba_[a-z0-9_]+\($' | tr -d '(' |
    sort -u >"$work/declared"

echo "exported by the library (>) against tests/package/exports.txt (<):"
diff "$list" "$work/exported"
echo "declared in the headers (>) against tests/package/exports.txt (<):"
diff "$list" "$work/declared"
echo "$(wc -l <"$list") functions"
