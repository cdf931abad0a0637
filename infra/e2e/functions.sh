#!/usr/bin/env bash
# Builds every function with the options of `sam build`, which then reuses the result. `sam build`
# builds one function at a time, and each link step uses one core; this script links two at a time.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=infra/e2e/tools.sh
source infra/e2e/tools.sh

# These functions use additional crates. If they were built with the others, cargo would unify the
# crates' features and produce other binaries than `sam build`.
built_separately=(worker-cache-push worker-webhook-deliveries worker-webhook-events)

built_together=()
while IFS= read -r function; do
  [[ " ${built_separately[*]} " == *" $function "* ]] || built_together+=(--package "$function")
done < <(sed -nE 's/^ +Binary: //p' template.yaml)

install_tools sam
cargo lambda build --release --locked "${built_together[@]}"
for function in "${built_separately[@]}"; do
  cargo lambda build --release --locked --package "$function"
done
