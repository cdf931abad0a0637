#!/usr/bin/env bash
# The TypeScript client: built, type-checked, tested against a runner of its own, weighed, installed from its package, timed.
set -euo pipefail
cd "$(dirname "$0")/../.."

cargo build --locked -p karta-local
KARTA_BIN=$(realpath "${CARGO_TARGET_DIR:-target}/debug/karta")
export KARTA_BIN

cd sdk/typescript
npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
for script in build typecheck test size check-pack bench; do
  npm run --silent "$script"
done
