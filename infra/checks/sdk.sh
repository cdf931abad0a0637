#!/usr/bin/env bash
# The TypeScript client: built, type-checked, held to openapi.json, tested against a runner of its own, weighed, installed from its package, timed.
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
