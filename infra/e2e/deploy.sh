#!/usr/bin/env bash
# The deploy rehearsal: lints and builds the template as a user does, deploys it to an emulated AWS (MiniStack) and walks the stack; docs/deploy.md says what that covers.
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

# What was built two at a time is what a user's sam build makes.
build_as_a_user() {
  local others
  digests "${CARGO_TARGET_DIR:-target}/lambda" >"$run/functions"
  sam build
  digests .aws-sam/build >"$run/sam-build"
  others=$(comm -13 "$run/functions" "$run/sam-build" | wc -l)
  if ((others > 0)); then
    echo "sam build makes $others other binaries than infra/e2e/functions.sh: does its list lack a function that knows further crates?" >&2
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
