#!/usr/bin/env bash
# A Docker engine for the compose tests.
#
#   engine.sh start DIR PID   uses the engine that runs, or starts one of its own that can build but
#                             runs no networks; writes DIR/env (DOCKER_HOST, DOCKER_CONFIG, COMPOSE,
#                             OWN_ENGINE as shell assignments). Its own ends when process PID does
#   engine.sh isolate DIR     lets its own engine run containers, in a network namespace of its own
#   engine.sh stop DIR        ends its own engine and all that it runs
#   engine.sh clean           removes the cache
#
# Builds need this machine's network; containers need bridges and packet filter rules, which an
# engine would leave behind. So the engine first runs without bridges and rules, then, restarted, in
# a namespace that goes away with it: this machine's network is never changed, and several engines
# and other users of the packet filter do not meet.
#
# An engine of its own needs root and Debian: docker.io, iptables and debootstrap come through apt,
# compose v2 from Debian trixie when it is missing, and since such a machine may reach no image
# registry, the images that ours are based on or used with are built from Debian's packages (see
# images/). Those and the build layers are kept in PREDUMP_COMPOSE_CACHE (default
# ~/.cache/predump-compose), so that only the first start takes minutes. COMPOSE chooses the compose
# command, for example COMPOSE=docker-compose.
#
# Exit status: 0 done, 77 no engine can be had here (one line says why), else a failure.
set -euo pipefail

readonly here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly cache=${PREDUMP_COMPOSE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/predump-compose}
readonly suite=trixie            # the Debian of the registry's python:3.11-slim
readonly debian_image=debian:$suite-slim
readonly recipe=2                # raise it when the images below are made differently
readonly keep_layers=4GB         # of build layers; those used longest ago are removed
export PATH=$PATH:/usr/sbin:/sbin

say() { printf 'engine: %s\n' "$*" >&2; }
cannot() { say "no Docker engine here: $*"; exit 77; }

# --- compose ------------------------------------------------------------------------------------

# Prints the compose command that works, preferring v2.
find_compose() {
  if [[ -n ${COMPOSE-} ]]; then $COMPOSE version >/dev/null 2>&1 && echo "$COMPOSE"
  elif docker compose version >/dev/null 2>&1; then echo 'docker compose'
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
    echo "deb $(mirror) trixie main" > "$apt/sources.list"
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

mirror() { apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m1 'debian\.org/debian$' || echo http://deb.debian.org/debian; }

make_debian_image() {
  local tarball=$cache/$suite-$(dpkg --print-architecture)-$recipe.tar.gz root=$cache/rootfs
  if [[ ! -f $tarball ]]; then
    say "making $debian_image (a minute, once)"
    rm -rf "$root" "$cache"/*.tar.gz
    debootstrap --variant=minbase "$suite" "$root" "$(mirror)" > "$cache/debootstrap.log" 2>&1 || {
      tail -n 5 "$cache/debootstrap.log" >&2; rm -rf "$root"; say 'debootstrap failed'; return 1; }
    # As in the registry's: no manuals, also of packages to come, and no caches of apt's.
    printf 'path-exclude /usr/share/%s/*\n' doc info locale man > "$root/etc/dpkg/dpkg.cfg.d/slim"
    printf '%s\n' 'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };' \
      'Dir::Cache::pkgcache "";' 'Dir::Cache::srcpkgcache "";' > "$root/etc/apt/apt.conf.d/docker-clean"
    rm -rf "$root"/usr/share/{doc,info,locale,man}/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
    tar -C "$root" -cz . > "$tarball.part"
    mv "$tarball.part" "$tarball"
    rm -rf "$root"
  fi
  docker import -c "LABEL predump.recipe=$recipe" -c 'CMD ["bash"]' "$tarball" "$debian_image" >/dev/null
}

# make_image TARGET NAME: one of images/Dockerfile.
make_image() {
  say "making $2"
  rm -rf "$cache/images"
  cp -r "$here/images" "$cache/images"
  cp /etc/ssl/certs/ca-certificates.crt "$cache/images/"
  DOCKER_BUILDKIT=0 docker build --quiet --network host --label "predump.recipe=$recipe" \
    --build-arg "MIRROR=$(mirror)" --target "$1" -t "$2" "$cache/images" > "$cache/build.log" 2>&1 || {
      tail -n 5 "$cache/build.log" >&2; say "$2 could not be made"; return 1; }
  rm -rf "$cache/images"
}

# --- engine -------------------------------------------------------------------------------------

need_packages() {
  local missing=() entry
  for entry in dockerd:docker.io iptables:iptables debootstrap:debootstrap ip:iproute2; do
    command -v "${entry%%:*}" >/dev/null || missing+=("${entry#*:}")
  done
  ((${#missing[@]} == 0)) || "$here/../../scripts/apt-install.sh" "${missing[@]}"
}

# Not for a zombie: where nothing adopts orphans properly, an ended process stays one.
alive() { grep -qs '^State:[[:space:]]*[^XZ]' "/proc/$1/status"; }

# launch DIR host|own: dockerd in this machine's network, touching nothing of it, or in its own.
launch() {
  local dir=$1 network=$2 run pid i
  run=$(cat "$dir/run")
  local dockerd=(
    dockerd --data-root "$cache/data" --exec-root "$run/exec" --pidfile "$run/dockerd.pid"
    --host "unix://$run/docker.sock"
  )
  case $network in
    host) dockerd+=(--bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false) ;;
    own) dockerd=(unshare --net sh -c 'ip link set lo up && exec "$@"' sh "${dockerd[@]}") ;;
  esac
  "${dockerd[@]}" >> "$dir/dockerd.log" 2>&1 < /dev/null &
  pid=$!
  echo "$pid" > "$run/started"
  for ((i = 0; i < 300; i++)); do
    docker info >/dev/null 2>&1 && return 0
    alive "$pid" || return 1
    sleep 0.1
  done
  return 1
}

# Ends dockerd by its process id, then whatever of its children stayed.
halt() {
  local run=$1 pid i child
  pid=$(cat "$run/started" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null || true
  for ((i = 0; i < 200; i++)); do alive "$pid" || break; sleep 0.1; done
  kill -9 "$pid" 2>/dev/null || true
  # containerd and its shims name our exec folder on their command lines.
  for child in /proc/[0-9]*; do
    if tr '\0' ' ' 2>/dev/null < "$child/cmdline" | grep -q -- "^[^ ]*containerd.*$run/exec"; then
      kill -9 "${child#/proc/}" 2>/dev/null || true
    fi
  done
  awk -v a="$run/" -v b="$cache/data/" 'index($2, a) == 1 || index($2, b) == 1 {print $2}' /proc/mounts |
    sort -r | xargs -r umount -l
  rm -rf "$run/started" "$run/dockerd.pid" "$run/docker.sock" "$run/exec"
}

# Holds the lock (descriptor 9) as long as the engine may run, and ends it when nobody else can any
# more: whoever started it was killed.
watch_over() {
  local dir=$1 pid=$2
  setsid bash -c "$(declare -f alive)"'; while alive "$1"; do sleep 1; done; "$2" stop "$3"' \
    watch_over "$pid" "$here/engine.sh" "$dir" > /dev/null 2>&1 < /dev/null &
  echo $! > "$dir/watcher"
}

own_environment() {
  export DOCKER_HOST=unix://$1/docker.sock DOCKER_CONFIG=$cache/docker-config
}

start() {
  local dir=$1 pid=$2 compose run
  mkdir -p "$dir"
  dir=$(cd "$dir" && pwd)
  if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
    compose=$(find_compose) || cannot 'an engine runs, but no compose: install docker-compose or the plugin'
    printf 'COMPOSE=%q\nOWN_ENGINE=0\n' "$compose" > "$dir/env"
    say "using the engine that runs, with $compose"
    return
  fi
  [[ $(uname -s) == Linux ]] || cannot 'none runs, and one can be started on Linux only'
  [[ $(id -u) == 0 ]] || cannot 'none runs, and starting one needs root'
  command -v apt-get >/dev/null || cannot 'none runs, and installing one is automatic on Debian only'
  mkdir -p "$cache/docker-config"
  exec 9> "$cache/lock"
  flock --nonblock 9 || say 'waiting for another engine with the same cache to end'
  flock --timeout 600 9 || { say "another engine has held $cache/lock for 10 minutes"; exit 1; }
  need_packages

  # Short, as a socket's path may have 107 bytes.
  run=$(mktemp -d /run/predump-engine.XXXXXX)
  echo "$run" > "$dir/run"
  own_environment "$run"
  watch_over "$dir" "$pid"
  if ! launch "$dir" host; then
    say 'the engine did not start; trying once more with empty storage'
    halt "$run"
    rm -rf "$cache/data"
    launch "$dir" host || { stop "$dir"; cannot "dockerd: $(tail -n 1 "$dir/dockerd.log")"; }
  fi
  # Version 1 would do, but keeps no build layers from one run to the next.
  [[ -n ${COMPOSE-} ]] || docker compose version >/dev/null 2>&1 || fetch_compose
  compose=$(find_compose)
  local name target
  image_is_current "$debian_image" || make_debian_image
  for name in python:3.11-slim broker=eclipse-mosquitto:2 prometheus=prom/prometheus:v3.5.0; do
    target=${name%%[=:]*}
    image_is_current "${name#*=}" || make_image "$target" "${name#*=}"
  done
  {
    printf 'export DOCKER_HOST=%q DOCKER_CONFIG=%q\n' "$DOCKER_HOST" "$DOCKER_CONFIG"
    printf 'COMPOSE=%q\nOWN_ENGINE=1\n' "$compose"
  } > "$dir/env"
  say "started $(docker version -f '{{.Server.Version}}'), with $compose"
}

isolate() {
  local dir=$1 run
  [[ -f $dir/run ]] || return 0
  run=$(cat "$dir/run")
  own_environment "$run"
  halt "$run"
  launch "$dir" own || { tail -n 3 "$dir/dockerd.log" >&2; say 'the engine did not start again'; exit 1; }
}

# Containers, volumes and images of the tests, also of some that were killed.
tidy() {
  docker container ls -aq | xargs -r docker container rm --force --volumes
  docker image ls -q 'predump*:test-*' | sort -u | xargs -r docker image rm --force
  docker image prune --force
  docker volume prune --force
  docker network prune --force
  docker builder prune --force --keep-storage "$keep_layers"
}

stop() {
  local dir=$1 run watcher
  [[ -f $dir/run ]] || return 0
  run=$(cat "$dir/run")
  own_environment "$run"
  tidy > /dev/null 2>&1 || true
  halt "$run"
  rm -rf "$run" "$dir/run" "$dir/env"
  # It may be this process's own parent, which has nothing else to do.
  watcher=$(cat "$dir/watcher") && rm "$dir/watcher" && kill "$watcher" 2>/dev/null || true
}

usage() { say 'usage: engine.sh start DIR PID | isolate DIR | stop DIR | clean'; exit 2; }

case ${1-}:$# in
  start:3) start "$2" "$3" ;;
  isolate:2 | stop:2) "$1" "$2" ;;
  clean:1) rm -rf "$cache" ;;
  *) usage ;;
esac
