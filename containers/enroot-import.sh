#!/usr/bin/env bash
# The engine's image for Enroot and Pyxis, from a registry with the image that the Dockerfile builds:
#
#   containers/enroot-import.sh registry.example#hpclm-engine:1 /shared/images/hpclm-engine.sqsh
#
# Credentials belong in $ENROOT_CONFIG_PATH/.credentials (netrc format); nothing here reads or writes them.
set -euo pipefail

if [ $# -ne 2 ]; then
  echo "usage: $0 [REGISTRY#]IMAGE[:TAG] FILE.sqsh" >&2
  exit 2
fi
image=$1 target=$2
if [ -e "$target" ]; then
  echo "$target already exists" >&2
  exit 0
fi
partial=$target.$$.partial.sqsh
trap 'rm -f "$partial"' EXIT
enroot import --output "$partial" "docker://$image" </dev/null
# smoke.py is in the image; it can only be started here if this machine has squashfuse
if command -v squashfuse >/dev/null; then
  enroot start "$partial" python3 /opt/smoke.py --no-gpu --all
else
  echo "squashfuse is not installed: the image was not tested; on a node: enroot start $target python3 /opt/smoke.py" >&2
fi
mv "$partial" "$target"
echo "imported to $target"
