#!/bin/sh
# dump HOST PORT: a real process of this container, dumped by CRIU twice while it stands still: into
# /dumped, and to the page server at HOST. What comes there can so be compared with the process.
set -eu

address=$(getent hosts "$1" | cut -d ' ' -f 1)
port=$2
export XDG_RUNTIME_DIR=/tmp

# 4 MiB by chance, of which it goes on changing bytes. Without rseq: the kernel would write into the
# process on which CPU it is, which is another one when CRIU runs in it for the second dump.
start() {
  rm -rf /dumped/* /tmp/rest /tmp/said
  mkdir /tmp/rest
  GLIBC_TUNABLES=glibc.pthread.rseq=0 setsid perl -e '
    my $memory = "";
    $memory .= pack "N", rand 2 ** 32 for 1 .. 2 ** 20;
    $| = 1;
    print "ready\n";
    while (1) { substr($memory, rand length $memory, 1) = chr rand 256; select undef, undef, undef, 0.001 }
  ' < /dev/null > /tmp/said 2>&1 &
  process=$!
  until grep -qs ready /tmp/said; do sleep 0.1; done
}

# dump DIR ARGUMENTS...: the process stands still then.
dump() {
  images=$1
  shift
  criu dump --tree "$process" --images-dir "$images" --leave-stopped "$@" -o dump.log 2> /tmp/errors
}

both() {
  start
  dump /dumped && dump /tmp/rest --page-server --address "$address" --port "$port"
}

# A destination that has a dump wants the next to be its child. This is none: it refuses it, once.
# A process that CRIU could not dump is no longer what it was, so the next attempt has another.
status=0
both || { kill -9 "$process"; both; } || status=$?
kill -9 "$process"
[ "$status" = 0 ] || { tail -n 5 /dumped/dump.log /tmp/rest/dump.log >&2; exit "$status"; }
chmod -R a+rX /dumped
echo "process $process is in /dumped and at $1"
