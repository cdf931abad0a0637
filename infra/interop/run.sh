#!/usr/bin/env bash
# Tests Karta with other libraries:
# - jose and PyJWT verify session tokens, and sign tokens for the runner.
# - The stripe library signs events for the runner.
# - The stripe and standardwebhooks libraries verify deliveries of the runner.
# - The samples of docs/webhooks.md (TypeScript, Python, Go) verify deliveries that Karta signed.
# Starts a runner without persistent data. Secrets go to the clients through stdin, never through
# arguments.
set -euo pipefail
cd "$(dirname "$0")/../.."

here=infra/interop
venv=target/interop/venv
log=target/interop/karta.log
karta=${CARGO_TARGET_DIR:-target}/debug/karta

cargo build --locked -p karta-local
(cd "$here" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
[[ -x $venv/bin/pip ]] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes --requirement "$here/requirements.txt"

runner=
stop() {
  [[ -z $runner ]] || kill "$runner" 2>/dev/null || true
}
trap stop EXIT

stripe_secret=whsec_$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')

# The runner's JSON line contains secrets, so it goes through a pipe and never into a file.
exec {stdout}< <(KARTA_BCRYPT_COST=4 KARTA_STRIPE_SECRETS=$stripe_secret KARTA_ALLOW_LOOPBACK_WEBHOOKS=true exec "$karta" --ephemeral --json --port 0 2>"$log")
runner=$!
if ! IFS= read -r -t 60 -u "$stdout" start; then
  echo "interop: the runner did not start:" >&2
  tail -n 20 "$log" >&2
  exit 1
fi

passed=0
for client in "node $here/verify.mjs" "$venv/bin/python $here/verify.py" "node $here/delivery.mjs" "node $here/stripe.mjs"; do
  input=$start
  [[ $client != *stripe* ]] || input+=$'\n'$stripe_secret
  # shellcheck disable=SC2086 # a command and its argument
  summary=$(printf '%s\n' "$input" | $client)
  echo "$summary"
  passed=$((passed + $(tail -n 1 <<<"$summary" | sed -E 's/^.*: ([0-9]+) checks$/\1/')))
done

kill "$runner"
wait "$runner" || { echo "interop: the runner did not stop cleanly" >&2; exit 1; }
runner=

# The page's Go sample becomes a package next to the one that calls it.
go=target/interop/go
rm -rf "$go"
mkdir -p "$go/webhooks"
printf 'module karta\n\ngo 1.19\n' >"$go/go.mod"
cp "$here/webhooks.go" "$go/main.go"
awk '/^```$/ { printing = 0 } printing; /^```go$/ { printing = 1 }' docs/webhooks.md >"$go/webhooks/verify.go"
(cd "$go" && go build -o deliveries .)

cargo build --quiet --locked -p karta-shared --example webhook_vectors
vectors=$("${karta%/*}/examples/webhook_vectors")
for client in "node $here/webhooks.mjs" "$venv/bin/python $here/webhooks.py" "$go/deliveries"; do
  # shellcheck disable=SC2086 # a command and its argument
  summary=$($client <<<"$vectors")
  echo "$summary"
  passed=$((passed + $(sed -E 's/^.*: ([0-9]+) checks$/\1/' <<<"$summary")))
done

echo "interop: $passed passed, 0 failed"
