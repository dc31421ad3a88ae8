#!/usr/bin/env bash
# Makes .venv ready: setup.sh run (what Predump needs) or setup.sh dev (and what its tests need).
#
# Does nothing, quickly, when .venv already is what the lock file and pyproject.toml ask for.
# PYTHON=... chooses the interpreter for a new .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly level=${1:?usage: setup.sh run|dev}
case $level in
  run) readonly lock=requirements.lock ;;
  dev) readonly lock=requirements-dev.lock ;;
  *) echo "usage: setup.sh run|dev" >&2; exit 2 ;;
esac
readonly stamp=.venv/.ready-$level
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore

die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; }

find_python() {
  local candidate
  if [[ -n ${PYTHON-} ]]; then
    supported "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.11 to 3.14"
    command -v "$PYTHON"
    return
  fi
  for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
    if supported "$candidate"; then command -v "$candidate"; return; fi
  done
  die 'no Python 3.11 to 3.14 found: install one (Debian: apt-get install python3 python3-venv) or set PYTHON=/path/to/python3'
}

make_venv() {
  local python package
  python=$(find_python)
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian splits these off, one package for each version.
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    scripts/apt-install.sh "$package"
  fi
  echo "setup: making .venv with $("$python" --version) ($python)"
  rm -rf .venv
  "$python" -m venv .venv
}

# What a ready .venv was made from.  A venv does not survive being moved, hence the path.
fingerprint() {
  { pwd; .venv/bin/python -c 'import sys; print(sys.version)'; cat "$lock" pyproject.toml; } | sha256sum
}

need_commands() {
  local missing=() entry
  for entry in mosquitto:mosquitto mosquitto_sub:mosquitto-clients valgrind:valgrind openssl:openssl \
    qemu-system-x86_64:qemu-system-x86 gcc:gcc chromium:chromium; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${entry%%:*}" >/dev/null || missing+=("${entry#*:}")
  done
  # The probe that runs in a guest kernel is linked statically.
  compgen -G '/usr/lib/*/libc.a' >/dev/null || missing+=(libc6-dev)
  ((${#missing[@]} == 0)) || scripts/apt-install.sh "${missing[@]}"
}

[[ $level != dev ]] || need_commands

if ! { [[ -f .venv/.made-at && $(cat .venv/.made-at) == "$PWD" ]] && supported .venv/bin/python; }; then
  make_venv
  pwd > .venv/.made-at
fi
if [[ ! -f $stamp || $(cat "$stamp") != "$(fingerprint)" ]]; then
  echo "setup: installing $(grep -c '==' "$lock") pinned packages from $lock"
  rm -f "$stamp"
  .venv/bin/python -m pip install -qq --require-hashes -r "$lock"
  .venv/bin/python -m pip install -qq --no-deps --no-build-isolation --editable .
  fingerprint > "$stamp"
  [[ $level != run ]] || echo 'setup: done; the first run also compiles the model: a minute or two, once'
fi
