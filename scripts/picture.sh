#!/usr/bin/env bash
# picture.sh [SCENARIO]: one migration and its picture, without containers, from setting up .venv on.
#
# SCENARIO is a file, or the name of one in scenarios/ (quickstart). The result, a report and
# figures are then in results/. Exits with the status of `predump run`.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'picture: %s\n' "$*" >&2; exit 2; }

. scripts/find-scenario.sh

scripts/setup.sh run
mkdir -p results
status=0
.venv/bin/predump run "$file" --json results/result.json || status=$?
((status == 0 || status == 3)) || exit $status
.venv/bin/predump report results/result.json -o results/report.html --figures results/figures
exit $status
