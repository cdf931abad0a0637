#!/usr/bin/env bash
# Builds, type-checks, tests and packs the TypeScript clients, and checks their sizes. Compares them
# with openapi.json, tests them against a local runner and benchmarks the management client.
set -euo pipefail
cd "$(dirname "$0")/../.."

cargo build --locked -p karta-local
KARTA_BIN=$(realpath "${CARGO_TARGET_DIR:-target}/debug/karta")
export KARTA_BIN
# With LIVE_BASE_URL, the live test would use another stack.
unset LIVE_BASE_URL

for package in typescript sessions contract; do
  npm ci --prefix "sdk/$package" --ignore-scripts --no-audit --no-fund --loglevel=error
done
for package in typescript sessions; do
  for script in build typecheck test size check-pack; do
    npm run --prefix "sdk/$package" --silent "$script"
  done
done
npm run --prefix sdk/contract --silent check
npm run --prefix sdk/sessions --silent live
npm run --prefix sdk/typescript --silent bench
