#!/bin/sh
# Before CRIU in PATH: turns a bit of the first page that the first page server wrote, when the
# third is about to start. What the rounds left to it is then not what was sent.
set -eu

pages=/images/0/pages-65537.img
if [ -d /images/2 ] && [ ! -d /images/3 ]; then
  byte=$(od -An -tu1 -N1 "$pages")
  printf "\\$(printf '%03o' $((byte ^ 1)))" | dd of="$pages" bs=1 conv=notrunc status=none
  echo 'turned a bit' >&2
fi
exec /usr/sbin/criu "$@"
