#!/usr/bin/env bash
# What README.md, docs/quickstart.md and docs/migration.md print is run as it is printed, and docs/errors.md is held against what is answered. Each page
# has a runner of its own. KARTA_BIN names one that is built already.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [[ -z ${KARTA_BIN:-} ]]; then
  cargo build --locked -p karta-local
  KARTA_BIN=$(realpath "${CARGO_TARGET_DIR:-target}/debug/karta")
fi
export KARTA_BIN
mkdir -p target/docs

node --test infra/docs/test/
(cd sdk/typescript && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && npm run --silent build)
node infra/docs/errors.mjs
node infra/docs/pages.mjs
