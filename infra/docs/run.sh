#!/usr/bin/env bash
# Runs the blocks of README.md, docs/quickstart.md and docs/migration.md and compares their output.
# Compares docs/errors.md with the responses of a runner, and checks links between pages. Each page
# gets a new runner. Set KARTA_BIN to use a built runner.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [[ -z ${KARTA_BIN:-} ]]; then
  cargo build --locked -p karta-local
  KARTA_BIN=$(realpath "${CARGO_TARGET_DIR:-target}/debug/karta")
fi
export KARTA_BIN
mkdir -p target/docs

(cd sdk/typescript && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && npm run --silent build)
node --test infra/docs/test/*.test.mjs
node infra/docs/links.mjs
node infra/docs/errors.mjs
node infra/docs/pages.mjs
