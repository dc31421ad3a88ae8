#!/usr/bin/env bash
# Real CRIU beside the system, for the tests that need it: prints the path of what is asked for.
#
#   criu.sh criu SUITE   a criu that runs here      (SUITE: trixie has 4.1.1, sid has 4.2.1)
#   criu.sh crit SUITE   its crit, with the protobuf it was made for; PYTHON=... names the Python
#   criu.sh crun SUITE   the suite's crun, which loads that CRIU's libcriu
#   criu.sh root SUITE   the folder it is unpacked in: programs, libraries, headers, ld.so
#   criu.sh clean        removes the cache
#
# The two suites speak the two dialects of CRIU's page server and images. The packages and what
# they depend on come through apt with sources and lists of its own, are unpacked and not
# installed, and run through their own dynamic linker: nothing of the machine changes. They are
# kept in ~/.cache/predump/criu.
set -euo pipefail

readonly cache=${XDG_CACHE_HOME:-$HOME/.cache}/predump/criu
export PATH=$PATH:/usr/sbin:/sbin

die() { printf 'criu: %s\n' "$*" >&2; exit 1; }

# crit runs without the Python's own packages (-S): a newer protobuf among them would break it.
# Wrappers hold the cache's path, so they are written where they stay.
write_wrappers() {
  local root=$1 triplet linker
  triplet=$(basename "$(dirname "$(find "$root/usr/lib" -name 'libprotobuf-c.so.*' | head -n 1)")")
  linker=$(find "$root" -path "*$triplet*" -name 'ld-linux-*.so.*' | head -n 1)
  [[ -n $triplet && -n $linker ]] || die "the packages in $root are not as expected: criu.sh clean"
  cat > "$root/criu" <<END
#!/bin/sh
exec "$linker" --library-path "$root/usr/lib/$triplet:$root/lib/$triplet" "$root/usr/sbin/criu" "\$@"
END
  cat > "$root/crit" <<END
#!/bin/sh
export PYTHONPATH="$root/usr/lib/python3/dist-packages" PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python
exec "\${PYTHON:-python3}" -S "$root/usr/bin/crit" "\$@"
END
  cat > "$root/crun" <<END
#!/bin/sh
exec "$linker" --library-path "$root/usr/lib/$triplet:$root/lib/$triplet" "$root/usr/bin/crun" "\$@"
END
  chmod 755 "$root/criu" "$root/crit" "$root/crun"
}

fetch() {
  local apt mirror
  command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
    die 'the CRIU of the tests comes from Debian packages: apt-get and dpkg are needed'
  apt=$cache/apt-$suite
  rm -rf "$apt" "$cache/new-$suite"
  mkdir -p "$apt"/{state/lists/partial,cache/archives/partial,etc/preferences.d,debs} "$cache/new-$suite"
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m1 'debian\.org/debian' || true)
  echo "deb ${mirror:-http://deb.debian.org/debian} $suite main" > "$apt/sources.list"
  : > "$apt/state/status"
  local options=(
    -o "Dir::State=$apt/state" -o "Dir::State::status=$apt/state/status"
    -o "Dir::Cache=$apt/cache" -o "Dir::Etc::sourcelist=$apt/sources.list"
    -o Dir::Etc::sourceparts=/dev/null -o "Dir::Etc::preferencesparts=$apt/etc/preferences.d"
    -o APT::Sandbox::User=root
  )
  echo "criu: fetching criu of Debian $suite (apt)" >&2
  {
    apt-get -qq "${options[@]}" update &&
      # With no package installed, this fetches all that criu depends on.
      apt-get -qq "${options[@]}" install -y --download-only --no-install-recommends criu libcriu2 crun &&
      (cd "$apt/debs" && apt-get -qq "${options[@]}" download python3-pycriu python3-protobuf libcriu-dev)
  } > "$apt/log" 2>&1 || { tail -n 5 "$apt/log" >&2; die "apt-get could not fetch criu of $suite"; }
  for deb in "$apt"/cache/archives/*.deb "$apt"/debs/*.deb; do
    dpkg -x "$deb" "$cache/new-$suite"
  done
  rm -rf "$apt" "$cache/new-$suite/usr/share/doc" "$cache/new-$suite/usr/lib/"*/gconv
  rm -rf "${cache:?}/$suite"
  mv -T "$cache/new-$suite" "$cache/$suite"
  write_wrappers "$cache/$suite"
}

case ${1-} in
  clean) rm -rf "$cache"; exit ;;
  criu | crit | crun | root) ;;
  *) die 'usage: criu.sh criu|crit|crun|root trixie|sid, or criu.sh clean' ;;
esac
readonly suite=${2-}
[[ $suite == trixie || $suite == sid ]] || die "unknown suite '$suite': trixie or sid"

mkdir -p "$cache"
exec 9> "$cache/lock"
flock 9
[[ -x $cache/$suite/crun ]] || fetch
case $1 in
  root) echo "$cache/$suite" ;;
  *) echo "$cache/$suite/$1" ;;
esac
