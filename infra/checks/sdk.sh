#!/usr/bin/env bash
# Builds and type-checks the TypeScript client, compares it with openapi.json, tests it against a
# local runner, checks its size and its package, and benchmarks it.
set -euo pipefail
cd "$(dirname "$0")/../.."

cargo build --locked -p karta-local
KARTA_BIN=$(realpath "${CARGO_TARGET_DIR:-target}/debug/karta")
export KARTA_BIN

cd sdk/typescript
for package in . contract; do
  npm ci --prefix "$package" --ignore-scripts --no-audit --no-fund --loglevel=error
done
for script in build typecheck contract test size check-pack bench; do
  npm run --silent "$script"
done
