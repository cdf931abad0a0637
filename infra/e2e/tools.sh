# shellcheck shell=bash
# Sourced by the rehearsals: installs pinned tools under target/e2e, points AWS clients to an
# emulator only, and times steps.

# Kept between runs.
work=$PWD/target/e2e
sam=$work/sam/bin
python=$work/ministack/bin/python
export PATH="$sam:$PATH" SAM_CLI_TELEMETRY=0 PYTHONDONTWRITEBYTECODE=1

# Ignore the caller's profile, region and credentials, so that no call can reach a real account.
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

# Installs each tool in a separate environment, because no set of versions suits both MiniStack and
# SAM CLI. The files list every package; without --no-deps, pip asks for extras.
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
  local functions
  functions=$(grep --count '^ *Binary: ' template.yaml)
  [[ .aws-sam/build/template.yaml -nt template.yaml ]] &&
    [[ $(digests .aws-sam/build | wc -l) == "$functions" ]] &&
    [[ -z $(comm -13 <(digests "${CARGO_TARGET_DIR:-target}/lambda") <(digests .aws-sam/build)) ]]
}

free_port() {
  "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# wait_for <what> <process> <log> <command…>: waits until the command succeeds, for up to a minute
# and while the process runs.
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

# start_ministack <address> <folder>: starts an emulated AWS on a free port of the address, with its
# files in the folder. Sets $ministack to its process.
start_ministack() {
  local host=$1 run=$2 port
  port=$(free_port)
  export AWS_ENDPOINT_URL=http://$host:$port
  # MiniStack passes its environment to the functions.
  env -i PATH="$PATH" HOME="$work" TMPDIR="$run" GATEWAY_PORT="$port" BIND_HOST="$host" AWS_ENDPOINT_URL="$AWS_ENDPOINT_URL" \
    AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test "$work/ministack/bin/ministack" >"$run/ministack.log" 2>&1 &
  ministack=$!
  wait_for MiniStack "$ministack" "$run/ministack.log" "$python" -c 'import boto3; boto3.client("sts").get_caller_identity()'
}
