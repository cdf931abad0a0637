#!/usr/bin/env bash
# Sends requests that openapi.json allows and requests that it forbids to every operation of a local
# runner, with Schemathesis.
set -euo pipefail
cd "$(dirname "$0")/../.."

here=target/contract
venv=$here/venv
karta=${CARGO_TARGET_DIR:-target}/debug/karta

cargo build --locked -p karta-local
mkdir -p "$here"
[[ -x $venv/bin/pip ]] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes --requirement infra/contract/requirements.txt

runner=
stop() {
  [[ -z $runner ]] || kill "$runner" 2>/dev/null || true
}
trap stop EXIT

# The runner's JSON line contains secrets, so it goes through a pipe and never into a file.
# No turn may call a real provider: nothing listens on the discard port.
discard=http://127.0.0.1:9
providers="{\"anthropic\":\"$discard\",\"openai\":\"$discard\",\"openrouter\":\"$discard\"}"
exec {stdout}< <(KARTA_BCRYPT_COST=4 KARTA_PROVIDER_BASE_URLS=$providers exec "$karta" --ephemeral --json --port 0 --log warn 2>"$here/karta.log")
runner=$!
if ! IFS= read -r -t 60 -u "$stdout" start; then
  echo "contract: the runner did not start:" >&2
  tail -n 20 "$here/karta.log" >&2
  exit 1
fi
url=$(sed -E 's/.*"base_url":"([^"]+)".*/\1/' <<<"$start")
KARTA_API_KEY=$(sed -E 's/.*"api_key":"([^"]+)".*/\1/' <<<"$start")
export KARTA_API_KEY

# Schemathesis writes its cache to the working directory.
config=$PWD/infra/contract/schemathesis.toml
cd "$here"
venv/bin/schemathesis --config-file "$config" run "$url/openapi.json" --url "$url"
