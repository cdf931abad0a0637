#!/usr/bin/env bash
# Builds every function with the options of `sam build`, which then reuses the result. `sam build`
# builds one function at a time, and each link step uses one core; this script links two at a time.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=infra/e2e/tools.sh
source infra/e2e/tools.sh

mapfile -t functions < <(sed -nE 's/^ +Binary: //p' template.yaml)

install_tools sam
# One run makes the same binaries as one run per function only if all functions use the same features
# of their dependencies (docs/decisions/0028-one-build-of-the-sdk.md).
cargo lambda build --release --locked "${functions[@]/#/--package=}"
