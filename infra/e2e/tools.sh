# shellcheck shell=bash
# Sourced by the rehearsals: pinned tools under target/e2e, an AWS that cannot be a real one, and a clock.

# Kept from run to run.
work=$PWD/target/e2e
sam=$work/sam/bin
python=$work/ministack/bin/python
export PATH="$sam:$PATH" SAM_CLI_TELEMETRY=0 PYTHONDONTWRITEBYTECODE=1

# No profile, region or credential of the caller's, and in every call the emulator's address.
unset AWS_PROFILE AWS_SESSION_TOKEN
export AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null AWS_EC2_METADATA_DISABLED=true
export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_DEFAULT_REGION=us-east-1 AWS_REGION=us-east-1

step() {
  local name=$1 start=$SECONDS
  shift
  echo "--- $name"
  "$@"
  echo "--- $name: $((SECONDS - start)) s"
}

# Into environments of their own: pip finds no versions that suit MiniStack and SAM CLI at once. The files are complete; without --no-deps, pip asks
# for extras of what is in them.
install_tools() {
  local tool
  mkdir -p "$work"
  for tool in "$@"; do
    [[ -x $work/$tool/bin/pip ]] || python3 -m venv "$work/$tool"
    "$work/$tool/bin/pip" install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement "infra/e2e/requirements-$tool.txt"
  done
}

digests() {
  sha256sum "$1"/*/bootstrap | cut -d ' ' -f 1 | sort
}

# Succeeds if .aws-sam/build holds the binaries that functions.sh built, and the present template.
is_built_by_sam() {
  [[ .aws-sam/build/template.yaml -nt template.yaml ]] &&
    [[ -z $(comm -13 <(digests "${CARGO_TARGET_DIR:-target}/lambda") <(digests .aws-sam/build)) ]]
}

free_port() {
  "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Until a command succeeds, for a minute at most and while the process lives: wait_for <what> <process> <its log> <command…>
wait_for() {
  local what=$1 process=$2 log=$3 waited=0
  shift 3
  until "$@" >/dev/null 2>&1; do
    if ((++waited > 60)) || ! kill -0 "$process" 2>/dev/null; then
      echo "$what did not start:" >&2
      tail -n 20 "$log" >&2
      return 1
    fi
    sleep 1
  done
}

# An emulated AWS on a free port of this address, with a folder for its files; its process is $ministack: start_ministack <address> <folder>
start_ministack() {
  local host=$1 run=$2 port
  port=$(free_port)
  export AWS_ENDPOINT_URL=http://$host:$port
  # It hands its own environment to the functions.
  env -i PATH="$PATH" HOME="$work" TMPDIR="$run" GATEWAY_PORT="$port" BIND_HOST="$host" AWS_ENDPOINT_URL="$AWS_ENDPOINT_URL" \
    AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test "$work/ministack/bin/ministack" >"$run/ministack.log" 2>&1 &
  ministack=$!
  wait_for MiniStack "$ministack" "$run/ministack.log" "$python" -c 'import boto3; boto3.client("sts").get_caller_identity()'
}
