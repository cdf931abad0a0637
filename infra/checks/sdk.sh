#!/usr/bin/env bash
# Builds, type-checks, tests and packs the TypeScript clients, and checks their sizes. Tests both
# against a local runner. Compares the management client with openapi.json and benchmarks it.
set -euo pipefail
cd "$(dirname "$0")/../.."

cargo build --locked -p karta-local
KARTA_BIN=$(realpath "${CARGO_TARGET_DIR:-target}/debug/karta")
export KARTA_BIN
# With LIVE_BASE_URL, the live test would use another stack.
unset LIVE_BASE_URL

for package in typescript typescript/contract sessions; do
  npm ci --prefix "sdk/$package" --ignore-scripts --no-audit --no-fund --loglevel=error
done
for script in build typecheck contract test size check-pack bench; do
  npm run --prefix sdk/typescript --silent "$script"
done
for script in build typecheck test live size check-pack; do
  npm run --prefix sdk/sessions --silent "$script"
done
