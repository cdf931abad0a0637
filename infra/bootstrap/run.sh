#!/usr/bin/env bash
# Usage: infra/bootstrap/run.sh <stage> <slug>
# Creates the first organization of a deployed stage and prints its key, only once, as one line of
# JSON. Uses the AWS credentials of the environment to access the stage's tables and its key-tag
# ring. Does not call the internal routes.
set -euo pipefail
cd "$(dirname "$0")/../.."

if (($# != 2)); then
  sed -n 2p "$0" >&2
  exit 2
fi
stage=$1

export KARTA_TABLE=karta-$stage
export KARTA_CREDENTIALS_TABLE=karta-credentials-$stage
export KARTA_OUTBOX_TABLE=karta-outbox-$stage
export KARTA_USAGE_TABLE=karta-usage-$stage
export KARTA_ANCHORS_TABLE=karta-anchors-$stage
export KARTA_SESSIONS_TABLE=karta-sessions-$stage
export KARTA_SECRET_KEY_TAG=karta/$stage/key-tag

if [[ -n ${KARTA_BIN:-} ]]; then
  exec "$KARTA_BIN" bootstrap --org "$2"
fi
exec cargo run --quiet --locked -p karta-local -- bootstrap --org "$2"
