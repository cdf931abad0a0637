#!/usr/bin/env bash
# The deploy rehearsal: validates and builds the template as a user does, deploys it to an emulated
# AWS (MiniStack) and tests the stack. docs/deploy.md describes the coverage.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=infra/e2e/tools.sh
source infra/e2e/tools.sh

ministack='' run=$(mktemp -d)
stop() {
  [[ -z $ministack ]] || kill "$ministack" 2>/dev/null || true
  wait
  rm -rf "$run"
}
trap stop EXIT

digests() {
  sha256sum "$1"/*/bootstrap | cut -d ' ' -f 1 | sort
}

# Checks that a user's `sam build` produces the same binaries as infra/e2e/functions.sh.
build_as_a_user() {
  local others
  digests "${CARGO_TARGET_DIR:-target}/lambda" >"$run/functions"
  sam build
  digests .aws-sam/build >"$run/sam-build"
  others=$(comm -13 "$run/functions" "$run/sam-build" | wc -l)
  if ((others > 0)); then
    echo "sam build produced $others different binaries: a function with additional crates is missing in built_separately of infra/e2e/functions.sh" >&2
    return 1
  fi
}

step "install" install_tools sam ministack
step "validate" sam validate --lint
step "build the functions" infra/e2e/functions.sh
step "sam build" build_as_a_user
step "build the operator's binary" cargo build --quiet --locked -p karta-local
step "start MiniStack" start_ministack 127.0.0.1 "$run"
step "rehearse" "$python" infra/e2e/deploy.py "${CARGO_TARGET_DIR:-target}/debug/karta" "$run"
