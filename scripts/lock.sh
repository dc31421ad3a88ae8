#!/usr/bin/env bash
# Writes requirements.lock (run time) and requirements-dev.lock (the same and the tools) from
# pyproject.toml, for every Python version it allows, with hashes and without addresses.
# Versions already locked stay; `scripts/lock.sh --upgrade` takes the newest.
set -euo pipefail
cd "$(dirname "$0")/.."

# uv resolves for all Python versions at once; it is used nowhere else, so it is not in .venv.
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"${PYTHON:-python3}" -m venv "$tools/uv"
"$tools/uv/bin/pip" install --quiet 'uv>=0.13,<0.14'

compile() {
  "$tools/uv/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' "$@"
}
compile pyproject.toml --extra report --extra dashboard --extra docker --group build -o requirements.lock "${@}"
# The run-time lock is a constraint, so that both files name the same versions.
compile pyproject.toml --extra dev --group build -c requirements.lock -o requirements-dev.lock "${@}"
