#!/usr/bin/env bash
# compose-faults.sh [NAME|FILE...]: faults in the middle of migrations, in containers and through the
# Docker API, from building the image to cleaning up.
#
# NAMES are those of scenarios/faults, or files below scenarios (all). More arguments, as --json, go to
# `predump faults run --docker`, whose status this ends with. In a compose project of its own.
# COMPOSE chooses the command, e.g. COMPOSE=docker-compose; BUILD=0 takes the image that is there;
# DOCKER_SOCKET is the engine's socket, if it is not the one that `docker` uses here.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'faults: %s\n' "$*" >&2; exit 2; }
. scripts/find-engine.sh

# Of DOCKER_HOST, else of the context that is in use; as the engine's own machine has it, which for
# Docker Desktop is not this one.
find_socket() {
  local host=${DOCKER_HOST-}
  if [[ $(docker info -f '{{.OperatingSystem}}') == 'Docker Desktop' ]]; then
    echo /var/run/docker.sock
    return
  fi
  [[ -n $host ]] || host=$(docker context inspect -f '{{.Endpoints.docker.Host}}' 2>/dev/null) || true
  case $host in
    '') echo /var/run/docker.sock ;;
    unix://*) echo "${host#unix://}" ;;
    *) die "the engine is at $host: set DOCKER_SOCKET to the path of its socket on its own machine" ;;
  esac
}
[[ -n ${DOCKER_SOCKET-} ]] || DOCKER_SOCKET=$(find_socket) || exit
export DOCKER_SOCKET
export COMPOSE_PROFILES=faults
project=(-p "${FAULTS_PROJECT:-predump-faults}")

# Nothing of it has anything to end in good order.
down() {
  $compose "${project[@]}" kill >/dev/null 2>&1 || true
  $compose "${project[@]}" down --volumes --remove-orphans >/dev/null 2>&1 || true
}
trap down EXIT
[[ ${BUILD-1} == 0 ]] || $compose "${project[@]}" build faults
status=0
$compose "${project[@]}" run --rm -T faults "$@" || status=$?
exit $status
