#!/usr/bin/env bash
# Builds every function as `sam build` does, which then finds all of them built: it builds one after the other, each of which ends in one link
# on one core, and here two link at a time.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=infra/e2e/tools.sh
source infra/e2e/tools.sh

mapfile -t functions < <(sed -nE 's/^ +Binary: //p' template.yaml)

install_tools sam
# One build is the same as one build each only while all functions ask for the same features of their dependencies.
cargo lambda build --release --locked "${functions[@]/#/--package=}"
