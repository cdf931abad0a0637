#!/usr/bin/env bash
# Runs the built functions in Docker behind `sam local start-api`, with a store in MiniStack, and
# creates, lists, mints and revokes. Starts a separate Docker daemon with a base image of Debian
# packages, and removes both at the end.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=infra/e2e/tools.sh
source infra/e2e/tools.sh

ministack='' dockerd='' api='' run=$(mktemp -d)
# The network bridge of the containers, and this machine's address on it.
bridge=karta0
host=10.213.213.1
export DOCKER_HOST=unix://$run/docker.sock
unset DOCKER_CONTEXT DOCKER_TLS_VERIFY DOCKER_CERT_PATH

stop() {
  local process containers
  for process in $api $ministack; do
    kill "$process" 2>/dev/null || true
    wait "$process" || true
  done
  if [[ -n $dockerd ]]; then
    containers=$(docker ps --quiet 2>/dev/null || true)
    # shellcheck disable=SC2086 # a list of ids
    [[ -z $containers ]] || docker kill $containers >/dev/null || true
    kill "$dockerd" 2>/dev/null || true
    wait "$dockerd" || true
  fi
  [[ ! -e /sys/class/net/$bridge ]] || ip link delete "$bridge" || true
  rm -rf "$run"
}
trap stop EXIT

start_docker() {
  ip link add name "$bridge" type bridge
  ip address add "$host/24" dev "$bridge"
  ip link set "$bridge" up
  dockerd --host "$DOCKER_HOST" --data-root "$run/docker" --exec-root "$run/docker-exec" --pidfile "$run/docker.pid" \
    --bridge "$bridge" --iptables=false --ip-masq=false --ip-forward=false >"$run/dockerd.log" 2>&1 &
  dockerd=$!
  wait_for dockerd "$dockerd" "$run/dockerd.log" docker version
}

# Creates the base image with what a function needs of Amazon Linux 2023, a C library and
# certificates, and with the shell that SAM CLI needs to add its Lambda emulator. The image sets the
# store's address, because SAM CLI passes only variables that the template declares.
make_image() {
  local package command
  mkdir -p "$run/packages" "$run/root"
  apt-get update -qq
  (cd "$run/packages" && apt-get download -qq -o APT::Sandbox::User=root libc6 libgcc-s1 ca-certificates busybox-static)
  for package in "$run"/packages/*.deb; do
    dpkg-deb --extract "$package" "$run/root"
  done
  mkdir -p "$run/root/tmp" "$run/root/etc/ssl/certs"
  cat "$run"/root/usr/share/ca-certificates/mozilla/*.crt >"$run/root/etc/ssl/certs/ca-certificates.crt"
  for command in sh mv chmod; do
    ln -s busybox "$run/root/bin/$command"
  done
  tar -C "$run/root" -c . | docker import --change "ENV AWS_ENDPOINT_URL=$AWS_ENDPOINT_URL" - karta-lambda >/dev/null
}

start_api() {
  local port
  port=$(free_port)
  url=http://127.0.0.1:$port
  # In the folder of sam build's template, because its paths are relative.
  "$python" infra/e2e/local.py template .aws-sam/build/local.json
  sam local start-api --template .aws-sam/build/local.json --port "$port" --invoke-image karta-lambda --skip-pull-image --env-vars "$run/environment.json" >"$run/api.log" 2>&1 &
  api=$!
  wait_for "sam local" "$api" "$run/api.log" "$python" -c 'import socket, sys; socket.create_connection(("127.0.0.1", int(sys.argv[1])))' "$port"
}

bootstrap() {
  (umask 077 && KARTA_BIN=${CARGO_TARGET_DIR:-target}/debug/karta infra/bootstrap/run.sh local acme >"$run/first.json")
}

walk() {
  if ! "$python" infra/e2e/local.py walk "$url" <"$run/first.json"; then
    tail -n 40 "$run/api.log" >&2
    return 1
  fi
}

step "install" install_tools sam ministack
step "build the functions" infra/e2e/functions.sh
is_built_by_sam || step "sam build" sam build
step "build the operator's binary" cargo build --quiet --locked -p karta-local
step "start Docker" start_docker
step "start MiniStack" start_ministack "$host" "$run"
step "create the base image" make_image
step "create tables and secrets" "$python" infra/e2e/local.py store "$run/environment.json"
step "bootstrap" bootstrap
step "start the API" start_api
step "call the API" walk
