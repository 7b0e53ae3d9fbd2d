#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_all.sh PROGRAM: every rule of the specification, in every type, by the selftest that users run on their own
# devices; and the block in which it ends.
set -eu
report=$(mktemp)
trap 'rm -f "$report"' EXIT
"$1" bench --check all --backend cpu >"$report" || { cat "$report"; exit 1; }
cat "$report"
for line in '^---- moba selftest ----$' '^libmoba  ' '^backend       cpu$' '^device  ' '^capabilities  ' '^kernels  ' ' attend_bwd__' \
    '^result  .* 0 failed'; do
    grep -q -e "$line" "$report" || { echo "check_all.sh: no line like '$line'" >&2; exit 1; }
done
[ "$(tail -n 1 "$report")" = '---- end ----' ] || { echo "check_all.sh: the block has no end" >&2; exit 1; }
