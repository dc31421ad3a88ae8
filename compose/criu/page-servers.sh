#!/bin/sh
# Real page servers on port 27000, one after the other: CRIU's serves one connection and exits.
# Each writes a directory of its own in /images, 0 1 2 ..., and has the one before as its parent.
set -eu

images=/images
rm -rf "${images:?}"/*
number=0
while :; do
  mkdir "$images/$number"
  set -- --images-dir "$images/$number" --address 0.0.0.0 --port 27000
  [ "$number" = 0 ] || set -- "$@" --prev-images-dir "../$((number - 1))"
  criu page-server "$@" -o page-server.log &
  server=$!
  trap 'kill $server 2>/dev/null; exit 0' TERM INT
  status=0
  wait $server || status=$?
  [ "$status" = 0 ] || { cat "$images/$number/page-server.log" >&2; exit "$status"; }
  echo "page server $number: $(du -sh "$images/$number" | cut -f 1) in $images/$number"
  number=$((number + 1))
done
