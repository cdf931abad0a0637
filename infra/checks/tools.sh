#!/usr/bin/env bash
# Installs the pinned tools of the checks under target/tools, unless they are already installed.
set -euo pipefail
cd "$(dirname "$0")/../.."

cargo_deny=0.20.2
tools=target/tools

if [[ $("$tools/bin/cargo-deny" --version 2>/dev/null || true) != "cargo-deny $cargo_deny" ]]; then
  cargo install cargo-deny --locked --version "$cargo_deny" --root "$tools"
fi

[[ -x $tools/venv/bin/pip ]] || python3 -m venv "$tools/venv"
# The file lists every package. Without --no-deps, pip treats boto3[crt] as a package that is
# missing in it.
"$tools/venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement infra/checks/requirements.txt
