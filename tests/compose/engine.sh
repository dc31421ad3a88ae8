#!/usr/bin/env bash
# A Docker engine for the compose tests.
#
#   engine.sh start DIR   uses the engine that runs, or starts one of its own; writes DIR/env
#                         (DOCKER_HOST, DOCKER_CONFIG, COMPOSE, OWN_ENGINE as shell assignments)
#   engine.sh stop DIR    ends the engine it started and undoes what an engine leaves behind
#   engine.sh clean       removes the cache
#
# An engine of its own needs root and Debian: docker.io, iptables and debootstrap come through apt,
# compose v2 from Debian trixie when nothing has it, and since such a machine may reach no image
# registry, the two base images (python:3.11-slim, eclipse-mosquitto:2) are built from Debian's
# packages.  Those and the build layers are kept in PREDUMP_COMPOSE_CACHE (default
# ~/.cache/predump-compose, about 2 GB), so that only the first start takes minutes.
#
# Exit status: 0 done, 77 no engine can be had here (one line says why), else a failure.
set -euo pipefail

readonly here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly cache=${PREDUMP_COMPOSE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/predump-compose}
readonly python_image=python:3.11-slim
readonly broker_image=eclipse-mosquitto:2
readonly suite=bookworm          # Debian with Python 3.11
readonly recipe=1                # raise it when the images below are made differently

say() { printf 'engine: %s\n' "$*" >&2; }
cannot() { say "no Docker engine here: $*"; exit 77; }

# --- compose ------------------------------------------------------------------------------------

# Prints the compose command that works, preferring v2.
find_compose() {
  if docker compose version >/dev/null 2>&1; then echo 'docker compose'
  elif docker-compose version >/dev/null 2>&1; then echo 'docker-compose'
  else return 1; fi
}

# Unpacks compose v2 and buildx from trixie into the cache as client plugins: the plugins are
# single static programs, so nothing of the machine's own Debian changes.
fetch_compose() {
  local plugins=$cache/docker-config/cli-plugins apt=$cache/apt
  if [[ ! -x $plugins/docker-compose ]]; then
    say 'fetching compose v2'
    rm -rf "$apt"
    mkdir -p "$apt"/{state/lists/partial,cache/archives/partial,etc/apt.conf.d,etc/preferences.d} "$plugins"
    local mirror
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m1 'debian\.org/debian' || true)
    echo "deb ${mirror:-http://deb.debian.org/debian} trixie main" > "$apt/sources.list"
    : > "$apt/state/status"
    local options=(
      -qq -o "Dir::State=$apt/state" -o "Dir::State::status=$apt/state/status"
      -o "Dir::Cache=$apt/cache" -o "Dir::Etc::sourcelist=$apt/sources.list"
      -o Dir::Etc::sourceparts=/dev/null -o "Dir::Etc::preferencesparts=$apt/etc/preferences.d"
      -o APT::Sandbox::User=root
    )
    apt-get "${options[@]}" update
    (cd "$apt" && apt-get "${options[@]}" download docker-compose docker-buildx)
    for deb in "$apt"/*.deb; do dpkg -x "$deb" "$apt/root"; done
    find "$apt/root" -type f \( -name docker-compose -o -name docker-buildx \) -perm -u+x \
      -exec cp -t "$plugins" {} +
    rm -rf "$apt"
  fi
}

# --- base images --------------------------------------------------------------------------------

image_is_current() { [[ $(docker image inspect -f '{{index .Config.Labels "predump.recipe"}}' "$1" 2>/dev/null) == "$recipe" ]]; }

# Stands in for the registry's image: the same Debian, Debian's own Python 3.11.
make_python_image() {
  local tarball=$cache/base-$suite-$(dpkg --print-architecture)-$recipe.tar.gz
  if [[ ! -f $tarball ]]; then
    say "making $python_image from Debian $suite (about a minute, once)"
    local root=$cache/rootfs.$$
    rm -rf "$root"
    debootstrap --variant=minbase \
      --include=python3,python3-pip,python3-venv,ca-certificates,iproute2 \
      "$suite" "$root" > "$cache/debootstrap.log" 2>&1 || {
        tail -n 5 "$cache/debootstrap.log" >&2; rm -rf "$root"; say 'debootstrap failed'; return 1; }
    rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED "$root"/var/cache/apt/archives/*.deb
    ln -sf python3 "$root/usr/bin/python"
    # pip in a build trusts what this machine trusts.
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    tar -C "$root" -cz . > "$tarball.part"
    mv "$tarball.part" "$tarball"
    rm -rf "$root"
  fi
  docker import -c "LABEL predump.recipe=$recipe" \
    -c 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt' -c 'CMD ["python3"]' \
    "$tarball" "$python_image" >/dev/null
}

make_broker_image() {
  say "making $broker_image"
  DOCKER_BUILDKIT=0 docker build --quiet --network host --label "predump.recipe=$recipe" \
    -t "$broker_image" "$here/broker" >/dev/null
}

# --- engine -------------------------------------------------------------------------------------

need_packages() {
  local missing=() package
  for package in docker.io:dockerd iptables:iptables debootstrap:debootstrap; do
    command -v "${package#*:}" >/dev/null || missing+=("${package%%:*}")
  done
  ((${#missing[@]} == 0)) || "$here/../../scripts/apt-install.sh" "${missing[@]}"
}

wait_for_api() {
  local pid=$1 i
  for ((i = 0; i < 300; i++)); do
    docker info >/dev/null 2>&1 && return 0
    kill -0 "$pid" 2>/dev/null || return 1
    sleep 0.1
  done
  return 1
}

# Everything an engine changes outside its folders, for `stop` to put back.
record_machine() {
  iptables-save > "$1/iptables.before"
  ip6tables-save > "$1/ip6tables.before"
  cat /proc/sys/net/ipv4/ip_forward > "$1/ip_forward.before"
  ls /sys/class/net > "$1/links.before"
}

launch() {
  local dir=$1
  # The lock goes to dockerd with the descriptor: one engine at a time on this data root.
  dockerd --data-root "$cache/data" --exec-root "$dir/exec" --pidfile "$dir/dockerd.pid" \
    --host "unix://$dir/docker.sock" > "$dir/dockerd.log" 2>&1 < /dev/null &
  echo $! > "$dir/dockerd.started"
  wait_for_api "$(cat "$dir/dockerd.started")"
}

start() {
  local dir=$1 compose
  mkdir -p "$dir"
  dir=$(cd "$dir" && pwd)
  if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
    compose=$(find_compose) || cannot 'an engine runs, but neither "docker compose" nor docker-compose is installed'
    printf 'COMPOSE=%q\nOWN_ENGINE=0\n' "$compose" > "$dir/env"
    say "using the engine that runs, with $compose"
    return
  fi
  [[ $(uname -s) == Linux ]] || cannot 'not Linux'
  [[ $(id -u) == 0 ]] || cannot 'none runs, and starting one needs root'
  command -v apt-get >/dev/null || cannot 'none runs, and installing one is automatic on Debian only'
  mkdir -p "$cache"
  exec 9> "$cache/lock"
  flock -w 1200 9 || { say "another engine has held $cache/lock for 20 minutes"; exit 1; }
  need_packages

  export DOCKER_HOST=unix://$dir/docker.sock DOCKER_CONFIG=$cache/docker-config
  mkdir -p "$DOCKER_CONFIG"
  record_machine "$dir"
  touch "$dir/own"
  if ! launch "$dir"; then
    say 'the engine did not start; trying once more with empty storage'
    halt "$dir"
    rm -rf "$cache/data"
    launch "$dir" || { local last; last=$(tail -n 1 "$dir/dockerd.log"); stop "$dir"; cannot "dockerd: $last"; }
  fi
  fetch_compose
  compose=$(find_compose)
  image_is_current "$python_image" || make_python_image
  image_is_current "$broker_image" || make_broker_image
  {
    printf 'export DOCKER_HOST=%q DOCKER_CONFIG=%q\n' "$DOCKER_HOST" "$DOCKER_CONFIG"
    printf 'COMPOSE=%q\nOWN_ENGINE=1\n' "$compose"
  } > "$dir/env"
  say "started $(docker version -f '{{.Server.Version}}'), with $compose"
}

# Puts the packet filter back as recorded.  A table that did not exist then is emptied: a restore
# touches only tables it is given.
restore_filter() {
  local command=$1 saved=$2 table chains chain
  while read -r table chains; do
    grep -qx "\*$table" "$saved" && continue
    "$command-save" | grep -qx "\*$table" || continue
    echo "*$table" >> "$saved"
    for chain in $chains; do echo ":$chain ACCEPT [0:0]" >> "$saved"; done
    echo COMMIT >> "$saved"
  done <<< 'filter INPUT FORWARD OUTPUT
nat PREROUTING INPUT OUTPUT POSTROUTING
raw PREROUTING OUTPUT'
  "$command-restore" < "$saved"
}

# Ends dockerd by its process id, then whatever of its children stayed.
halt() {
  local dir=$1 pid i
  pid=$(cat "$dir/dockerd.started" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null || true
  for ((i = 0; i < 200; i++)); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  kill -9 "$pid" 2>/dev/null || true
  # containerd and its shims name our exec folder on their command lines.
  local child
  for child in /proc/[0-9]*; do
    if tr '\0' ' ' < "$child/cmdline" 2>/dev/null | grep -q -- "^[^ ]*containerd.*$dir/exec"; then
      kill -9 "${child#/proc/}" 2>/dev/null || true
    fi
  done
  awk -v d="$dir/" 'index($2, d) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount -l
  awk -v d="$cache/data/" 'index($2, d) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount -l
  rm -f "$dir/dockerd.started" "$dir/dockerd.pid"
}

stop() {
  local dir=$1 link
  [[ -d $dir ]] || return 0
  dir=$(cd "$dir" && pwd)
  [[ -f $dir/own ]] || return 0
  halt "$dir"
  for link in $(ls /sys/class/net); do
    case $link in
      docker0 | br-* | veth*) grep -qx "$link" "$dir/links.before" || ip link delete "$link" 2>/dev/null || true ;;
    esac
  done
  restore_filter iptables "$dir/iptables.before" || say 'could not restore iptables'
  restore_filter ip6tables "$dir/ip6tables.before" || say 'could not restore ip6tables'
  cat "$dir/ip_forward.before" > /proc/sys/net/ipv4/ip_forward || true
  rm -rf "$dir/exec" "$dir"/{docker.sock,own,env,ip_forward.before,links.before,ip{,6}tables.before}
}

case ${1-} in
  start | stop) [[ $# == 2 ]] || { say "usage: engine.sh $1 DIR"; exit 2; }; "$1" "$2" ;;
  clean) rm -rf "$cache" ;;
  *) say 'usage: engine.sh start DIR | stop DIR | clean'; exit 2 ;;
esac
