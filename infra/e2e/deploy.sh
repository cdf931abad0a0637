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

step "install" install_tools sam ministack
step "validate" sam validate --lint
step "build the functions" infra/e2e/functions.sh
step "sam build" sam build
step "build the operator's binary" cargo build --quiet --locked -p karta-local
step "start MiniStack" start_ministack 127.0.0.1 "$run"
step "rehearse" "$python" infra/e2e/deploy.py "${CARGO_TARGET_DIR:-target}/debug/karta" "$run"
