#!/bin/sh
# The tests of one folder or file, their words shown together when they end: `run_folder.sh tests/core`.
# BIN: the virtual environment's programs; CHOSEN: pytest's -m.
words=$(mktemp)
began=$(date +%s)
"$BIN/pytest" -q -m "$CHOSEN" "$1" >"$words" 2>&1
code=$?
# 5: none is chosen
[ "$code" = 5 ] && code=0
printf '== %s, %s s\n' "$1" "$(($(date +%s) - began))"
cat "$words"
rm -f "$words"
exit "$code"
