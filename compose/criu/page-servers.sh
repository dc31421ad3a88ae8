#!/bin/sh
# Real page servers on port 27000, one after the other: CRIU's serves one connection and exits.
# Each writes a directory of its own in /images, 0 1 2 ..., and has the one before as its parent.
# /images/version says which CRIU that is.
#
# CAPABILITY   the one that CRIU wants even for this; all else that root has is given up first
set -eu

images=/images
if [ "$(id -u)" = 0 ]; then
  keep=+$(printf '%s' "${CAPABILITY:?}" | tr '[:upper:]' '[:lower:]')
  exec setpriv --reuid predump --regid predump --clear-groups --no-new-privs \
    --inh-caps="-all,$keep" --ambient-caps="-all,$keep" "$0" "$@"
fi

# Where CRIU keeps what it found out about the kernel.
export XDG_RUNTIME_DIR=/tmp
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; exit 0' TERM INT
rm -rf "${images:?}"/*
criu --version | sed -n 's/^Version: *//p' > "$images/version"
number=0
while :; do
  mkdir "$images/$number"
  set -- --images-dir "$images/$number" --address 0.0.0.0 --port 27000
  [ "$number" = 0 ] || set -- "$@" --prev-images-dir "../$((number - 1))"
  criu --unprivileged page-server "$@" -o page-server.log &
  server=$!
  status=0
  wait "$server" || status=$?
  server=
  [ "$status" = 0 ] || { tail -n 20 "$images/$number/page-server.log" >&2; exit "$status"; }
  echo "page server $number: $(du -sh "$images/$number" | cut -f 1) in $images/$number"
  number=$((number + 1))
done
