#!/usr/bin/env bash
# compose.sh [SCENARIO]: one migration in containers, from building the image to cleaning up.
#
# SCENARIO is a file, or the name of one in scenarios/ (quickstart). The result, a report and
# figures are then in RESULTS (./results). Exits with the status of `predump run`.
# TLS, LINK, PREDUMP_ARGS, DEST, SOURCE_CPUS, DEST_CPUS: see docs/compose.md. COMPOSE chooses the
# command, e.g. COMPOSE=docker-compose; BUILD=0 takes the image that is there.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'compose: %s\n' "$*" >&2; exit 2; }

. scripts/find-scenario.sh
[[ $(realpath "$file") == "$PWD/scenarios/"* ]] ||
  die "$scenario: only the folder scenarios is mounted; put the file there"

. scripts/find-engine.sh

export RESULTS=${RESULTS:-./results}
export SCENARIO
SCENARIO=scenarios/$(realpath --relative-to=scenarios "$file")
[[ -z ${LINK-} ]] || export LINK NODE_USER=root
[[ ${DEST:-dest} != dest2 ]] || export COMPOSE_PROFILES=${COMPOSE_PROFILES:+$COMPOSE_PROFILES,}second
mkdir -p "$RESULTS"

down() { $compose down --volumes --remove-orphans >/dev/null 2>&1 || true; }
trap down EXIT
status=0
build=(--build)
[[ ${BUILD-1} != 0 ]] || build=(--no-build)
$compose up "${build[@]}" --abort-on-container-exit --exit-code-from runner || status=$?
if ((status == 0 || status == 3)) && [[ -f $RESULTS/report.html ]]; then
  printf 'The result is in %s/result.json, its picture in %s/report.html.\n' "$RESULTS" "$RESULTS"
fi
exit $status
