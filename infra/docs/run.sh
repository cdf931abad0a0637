#!/usr/bin/env bash
# What README.md, docs/quickstart.md and docs/migration.md print is run as it is printed, docs/errors.md is held against what is
# answered, and links between pages against what is there. Each page has a runner of its own. KARTA_BIN names one that is built already.
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
