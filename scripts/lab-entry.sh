#!/bin/sh
# How the laboratory's containers begin (docs/compose.md):
#
#   lab-entry node ARGUMENTS...     a node: `predump serve ARGUMENTS`, behind the link, with TLS
#   lab-entry runner ARGUMENTS...   `predump run ARGUMENTS`, then its picture; exits with its status
#   lab-entry dashboard ARGUMENTS...  `predump dashboard ARGUMENTS`, with TLS
#   lab-entry criu-send ARGUMENTS...  `predump criu send ARGUMENTS` to the service criu, compared
#   lab-entry criu-compare          what a dump left in /dumped and at criu-dest, page by page
#   lab-entry health HOST:PORT      whether a node serves
#   lab-entry COMMAND...            anything else, ready to run the model
#
# LINK   what the container may send, as tc says it (200mbit); needs root and NET_ADMIN
# TLS    1: mutual TLS; the first to start makes an authority and certificates for all
# DEST   the destination that the runner uses (dest)
# PREDUMP_CLOCK  a file that says by how much the node's wall clock is wrong (docs/faults.md)
# REPORT 1: the runner draws what it ran
set -eu

tls=/tls
say() { printf 'lab-entry: %s\n' "$*" >&2; }
die() { say "$*"; exit 2; }

# The image's compiled model stays where it is; a container's own, if its processor is another
# kind, is kept beside links to it, since the image's files cannot be written.
link_compiled() {
  [ ! -w "${NUMBA_CACHE_DIR:-/}" ] || return 0
  own=/tmp/compiled-$(id -u)
  [ -d "$own" ] || cp -rs "$NUMBA_CACHE_DIR" "$own"
  export NUMBA_CACHE_DIR="$own"
}

# A token bucket on what leaves: 256 KiB may go at once, what waits longer than 50 ms is dropped.
shape() {
  [ -n "${LINK:-}" ] || return 0
  [ "$(id -u)" = 0 ] || die "LINK=$LINK needs a container that starts as root: NODE_USER=root"
  for device in /sys/class/net/eth*; do
    said=$(tc qdisc replace dev "${device##*/}" root tbf rate "$LINK" burst 256kb latency 50ms 2>&1) ||
      die "LINK=$LINK cannot be had (tc: $(printf '%s' "$said" | head -n 1)): the kernel needs the" \
        "qdisc sch_tbf and the container NET_ADMIN. Without them leave LINK empty and shape with" \
        "PREDUMP_ARGS='--set clock=wall --set link.bandwidth=200Mbit/s'"
  done
  say "what leaves is shaped to $LINK"
}

as_predump() {
  if [ "$(id -u)" = 0 ]; then
    HOME=/home/predump exec setpriv --reuid predump --regid predump --clear-groups \
      --no-new-privs "$0" "$@"
  fi
}

# An authority whose key exists only while this runs, and a certificate for each service by name.
make_certificates() {
  (
    flock 9
    [ ! -f "$tls/ready" ] || exit 0
    umask 077
    work=$(mktemp -d)
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 \
      -subj '/CN=predump laboratory' -addext keyUsage=critical,keyCertSign \
      -keyout "$work/ca.key" -out "$work/ca.pem" 2> "$work/said" || die "$(cat "$work/said")"
    for name in source dest dest2 runner; do
      openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$name" \
        -keyout "$work/$name.key" -out "$work/$name.csr" 2> "$work/said" || die "$(cat "$work/said")"
      printf 'subjectAltName=DNS:%s,DNS:localhost,IP:127.0.0.1\n' "$name" > "$work/$name.ext"
      openssl x509 -req -in "$work/$name.csr" -CA "$work/ca.pem" -CAkey "$work/ca.key" \
        -CAcreateserial -days 30 -extfile "$work/$name.ext" -out "$work/$name.pem" \
        2> "$work/said" || die "$(cat "$work/said")"
    done
    # The runner is whoever owns the results: the volume is this laboratory's alone.
    chmod 644 "$work"/*.pem "$work/runner.key"
    cp -p "$work"/*.pem "$work"/source.key "$work"/dest*.key "$work/runner.key" "$tls/"
    rm -rf "$work"
    touch "$tls/ready"
  ) 9> "$tls/lock"
}

caller_tls() {
  [ "${TLS:-0}" != 1 ] || printf '%s ' --tls-ca $tls/ca.pem --tls-cert $tls/runner.pem --tls-key $tls/runner.key
}

node() {
  shape
  as_predump serve "$@"
  serve "$@"
}

# Before the node: a wall clock that is wrong by as much as the file says.
jumping_clock() {
  [ -n "${PREDUMP_CLOCK:-}" ] || return 0
  # Whole or not at all, by whoever comes first: the other host's node may have it mapped.
  new=$PREDUMP_CLOCK.$(hostname)
  head -c 8 /dev/zero > "$new"
  chmod 666 "$new"
  ln "$new" "$PREDUMP_CLOCK" 2> /dev/null || true
  rm "$new"
  export LD_PRELOAD=/usr/local/lib/predump-clock.so
}

serve() {
  link_compiled
  if [ "${TLS:-0}" = 1 ]; then
    make_certificates
    name=${NODE:-$1}
    set -- "$@" --tls-cert "$tls/$name.pem" --tls-key "$tls/$name.key" --tls-client-ca "$tls/ca.pem"
  fi
  jumping_clock
  exec predump serve "$@"
}

runner() {
  link_compiled
  # Compose has waited for `dest`; another destination may be a little later.
  if [ "${DEST:-dest}" != dest ]; then
    for _ in $(seq 60); do
      ! python -m predump.health "$DEST:50052" $(caller_tls) 2>/dev/null || break
      sleep 1
    done
  fi
  rm -f /results/result.json
  predump run "$@" --json /results/result.json $(caller_tls) &
  child=$!
  trap 'kill -TERM $child 2>/dev/null || true' TERM INT
  status=0
  wait $child || status=$?
  # A signal ends the first wait early.
  while kill -0 $child 2>/dev/null; do wait $child || status=$?; done
  if [ "${REPORT:-1}" = 1 ] && [ -f /results/result.json ]; then
    predump report /results/result.json -o /results/report.html --figures /results/figures ||
      say 'the run could not be drawn; its result is in result.json'
  fi
  exit $status
}

# The highest number that a directory has as a name.
newest() { (cd "$1" && printf '%s\n' [0-9]*/ | tr -d / | sort -n | tail -n 1); }

# Two pre-dumps and the final round, each to a page server of its own: that which listens now, and the
# next two. The dialect is that of the CRIU which runs there.
criu_send() {
  link_compiled
  version=$(cat /images/version)
  case $version in
    3.* | 4.0* | 4.1*) dialect=4.1 ;;
    *) dialect=4.2 ;;
  esac
  first=$(newest /images)
  say "CRIU $version, page servers $first to $((first + 2))"
  exec predump criu send "$@" --page-server criu:27000 --criu-version "$dialect" \
    --set policy.kind=fixed --set policy.rounds=1 --verify-images "/images/$((first + 2))"
}

criu_compare() {
  link_compiled
  chain=/received/criu/$(newest /received/criu)
  exec predump criu diff /dumped "$chain/$(newest "$chain")"
}

role=$1
shift
case $role in
  node) node "$@" ;;
  serve) serve "$@" ;;
  runner) runner "$@" ;;
  criu-send) criu_send "$@" ;;
  criu-compare) criu_compare ;;
  dashboard) link_compiled; exec predump dashboard "$@" $(caller_tls) ;;
  health) exec python -m predump.health "$1" $(caller_tls) ;;
  *) link_compiled; exec "$role" "$@" ;;
esac
