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

# Checks that functions.sh, which builds all functions in one run, makes the binaries of a user's `sam build`.
build_as_a_user() {
  sam build
  if ! is_built_by_sam; then
    echo "sam build makes other binaries than infra/e2e/functions.sh: does a function ask for features of a dependency that" \
      "shared/Cargo.toml does not give to all functions?" >&2
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
