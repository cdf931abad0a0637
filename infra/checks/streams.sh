#!/usr/bin/env bash
# Decode recorded streams of model providers, and compare the results with an independent reading.
# The recordings are not part of this repository: PROVIDER_STREAMS names their folder.
set -euo pipefail
cd "$(dirname "$0")/../.."

streams=${PROVIDER_STREAMS:-../shared/streams}
if [ ! -d "$streams" ]; then
    echo "streams: no recordings in $streams; the streams in dialects/tests were decoded by cargo test"
    exit 0
fi
cargo build --quiet --locked --workspace --example replay
results=$("${CARGO_TARGET_DIR:-target}/debug/examples/replay" "$streams")
python3 infra/checks/streams.py "$streams" <<<"$results"
