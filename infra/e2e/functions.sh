#!/usr/bin/env bash
# Builds every function as `sam build` does, which then finds all of them built: it builds one after the other, each of which ends in one link
# on one core, and here two link at a time.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=infra/e2e/tools.sh
source infra/e2e/tools.sh

# These know further crates. Built with the others they would lend them their features, and be other binaries than those of `sam build`.
alone=(worker-cache-push worker-webhook-deliveries worker-webhook-events)

together=()
while IFS= read -r function; do
  [[ " ${alone[*]} " == *" $function "* ]] || together+=(--package "$function")
done < <(sed -nE 's/^ +Binary: //p' template.yaml)

install_tools sam
cargo lambda build --release --locked "${together[@]}"
for function in "${alone[@]}"; do
  cargo lambda build --release --locked --package "$function"
done
