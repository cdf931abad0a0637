#!/usr/bin/env bash
# Builds every function as `sam build` does, which then finds all of them built: it builds one after the other, each of which ends in one link
# on one core, and here two link at a time.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=infra/e2e/tools.sh
source infra/e2e/tools.sh

# These know further crates. Built with the others they would lend them their features, and be other binaries than those of `sam build`.
built_alone=(worker-cache-push worker-webhook-deliveries worker-webhook-events)

built_together=()
while IFS= read -r function; do
  [[ " ${built_alone[*]} " == *" $function "* ]] || built_together+=(--package "$function")
done < <(sed -nE 's/^ +Binary: //p' template.yaml)

install_tools sam
cargo lambda build --release --locked "${built_together[@]}"
for function in "${built_alone[@]}"; do
  cargo lambda build --release --locked --package "$function"
done
