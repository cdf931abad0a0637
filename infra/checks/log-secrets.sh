#!/usr/bin/env bash
# Checks that no log of the test suite contains a secret that the suite created. Run it after the
# suite, which writes:
#   target/run/secrets/*  one plaintext secret per line
#   target/run/logs/*     all logs
set -euo pipefail
cd "$(dirname "$0")/../.."
export LC_ALL=C

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

die() {
  echo "log-secrets: $1" >&2
  exit 1
}

# leaks SECRETS LOG...: prints `log:line: first ten characters…` for each secret that it finds;
# succeeds if it finds one.
leaks() {
  local secrets=$1 log status=1
  shift
  for log in "$@"; do
    if grep --text --line-number --only-matching --fixed-strings --file="$secrets" -- "$log" >"$scratch/hits"; then
      sed -E 's/^([0-9]+):(.{0,10}).*$/\1: \2…/' "$scratch/hits" | while IFS= read -r hit; do echo "$log:$hit"; done
      status=0
    elif (($? > 1)); then
      die "cannot read $log"
    fi
  done
  return "$status"
}

# Verifies that the search finds a secret in a log and reports nothing for a log without one.
control() {
  local secret="control_0123456789abcdef"
  echo "$secret" >"$scratch/control.secrets"
  printf '{"message":"started"}\n{"message":"token %s refused"}\n' "$secret" >"$scratch/leaky.log"
  printf '{"message":"started"}\n{"message":"token control_01… refused"}\n' >"$scratch/clean.log"
  [[ $(leaks "$scratch/control.secrets" "$scratch/leaky.log") == "$scratch/leaky.log:2: control_01…" ]] ||
    die "the search missed the control secret"
  ! leaks "$scratch/control.secrets" "$scratch/clean.log" || die "the search found the control secret in a clean log"
}

control

shopt -s nullglob
secret_files=(target/run/secrets/*)
logs=(target/run/logs/*)
((${#secret_files[@]})) || die "no files in target/run/secrets: run the tests first"
((${#logs[@]})) || die "no files in target/run/logs: run the tests first"

# An empty pattern would match every line, and a short one lines without a secret.
sort --unique -- "${secret_files[@]}" | sed '/^$/d' >"$scratch/secrets"
[[ -s $scratch/secrets ]] || die "the files in target/run/secrets are empty"
! grep --quiet --line-regexp '.\{1,15\}' "$scratch/secrets" || die "target/run/secrets has a line under 16 characters"
lines=$(cat -- "${logs[@]}" | wc -l)
((lines)) || die "the files in target/run/logs are empty"

if leaks "$scratch/secrets" "${logs[@]}"; then
  die "secrets in the logs"
fi
echo "log-secrets: $(wc -l <"$scratch/secrets") secrets, ${#logs[@]} logs, $lines lines, no secret found"
