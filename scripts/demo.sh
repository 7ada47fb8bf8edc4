#!/usr/bin/env bash
# The demonstration behind `make demo`: builds its driver and runs it in a temporary folder, which is removed at the end.
#
# usage: [KEEP=1] scripts/demo.sh      KEEP=1 leaves the folder and says how to look at it
#
# keepmark must have been built (`make build`) and the guest's parts be there (`make deps`).
set -euo pipefail
cd "$(dirname "$0")/.."

"${CARGO:-cargo}" build -q --release -p keepmark-testkit --example demo
# On a real disk where there is one, and short: a socket's path must stay below 108 bytes.
folder=$(mktemp -d "${KEEPMARK_TEST_TMP:-/var/tmp}/km-demo-XXXXXX")
clean() {
  [ "${KEEP:-}" = 1 ] || rm -rf "$folder"
}
trap clean EXIT
"${CARGO_TARGET_DIR:-target}/release/examples/demo" "$folder"
