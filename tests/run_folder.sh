#!/bin/sh
# The tests of one folder or file, their words shown together when they end: `run_folder.sh tests/core`.
# BIN: the virtual environment's programs; CHOSEN: pytest's -m.
words=$(mktemp)
took=$(mktemp)
began=$(date +%s)
"$BIN/pytest" -q -m "$CHOSEN" "$1" >"$words" 2>&1
code=$?
# 5: none is chosen
[ "$code" = 5 ] && code=0
times >"$took" # its second line: what the processes that were waited for took of the cores, user and system
printf '== %s, %s s, of cores %s\n' "$1" "$(($(date +%s) - began))" "$(tail -n 1 "$took")"
cat "$words"
rm -f "$words" "$took"
exit "$code"
