#!/usr/bin/env bash
# Installs Debian packages and starts none of their services: apt-install.sh PACKAGE...
set -euo pipefail

if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
  echo "missing: install $* (Debian: sudo apt-get install -y $*)" >&2
  exit 1
fi

# invoke-rc.d asks this file whether it may start a service; 101 means no.
readonly guard=/usr/sbin/policy-rc.d
if [[ ! -e $guard ]]; then
  trap 'rm -f "$guard"' EXIT
  printf '#!/bin/sh\nexit 101\n' > "$guard"
  chmod 755 "$guard"
fi

echo "installing $* (apt)" >&2
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
# Another apt may be at work, of this project or not.
readonly wait=(-o DPkg::Lock::Timeout=300)
if ! { apt-get "${wait[@]}" update && apt-get "${wait[@]}" install -y --no-install-recommends "$@"; } > "$log" 2>&1 < /dev/null; then
  tail -n 20 "$log" >&2
  echo "apt-get could not install $*; the log is $log" >&2
  exit 1
fi
rm -f "$log"

# Where systemd runs, a package's service would start at the next boot; it is not wanted there either.
if [[ -d /run/systemd/system ]]; then
  for package in "$@"; do
    case $package in
      mosquitto) systemctl disable --quiet mosquitto.service ;;
      docker.io) systemctl disable --quiet docker.service docker.socket ;;
    esac
  done
fi
