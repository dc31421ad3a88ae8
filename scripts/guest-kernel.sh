#!/usr/bin/env bash
# Debian's stock amd64 kernel for the tests that boot one: prints the path of its image.
#
# The package is fetched through apt and unpacked, not installed, into a cache of the user's; only
# the image and the modules of the swap device are kept. It is fetched again when apt knows a newer.
set -euo pipefail

die() { printf 'guest kernel: %s\n' "$*" >&2; exit 1; }

readonly cache=${XDG_CACHE_HOME:-$HOME/.cache}/predump/guest-kernel

command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
  die 'the kernel of the tests comes from a Debian package: apt-get and dpkg are needed'

package_name() {
  apt-cache depends linux-image-amd64 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[^ :]*\).*/\1/p' | head -n 1
}

package=$(package_name)
if [[ -z $package && $(id -u) == 0 ]]; then
  apt-get update -qq >/dev/null 2>&1 || true
  package=$(package_name)
fi
[[ -n $package ]] || die 'apt does not know linux-image-amd64: run apt-get update (as root)'

readonly version=${package#linux-image-}
readonly image=$cache/$version/boot/vmlinuz-$version
if [[ ! -f $image ]]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  echo "guest kernel: fetching $package (apt)" >&2
  chmod 755 "$work"
  (cd "$work" && apt-get download -qq "$package" >"$work/log" 2>&1) ||
    { tail -n 5 "$work/log" >&2; die "apt-get could not download $package"; }
  dpkg -x "$work"/*.deb "$work/all"
  modules=lib/modules/$version
  [[ -d $work/all/$modules ]] || modules=usr/$modules
  mkdir -p "$work/kept/boot" "$work/kept/lib/modules/$version"
  cp "$work/all/boot/vmlinuz-$version" "$work/kept/boot/"
  find "$work/all/$modules" \( -name 'zram.ko*' -o -name 'zsmalloc.ko*' -o -name 'lz*compress*.ko*' \
    -o -name 'lzo*.ko*' -o -name '842*.ko*' \) \
    -exec cp {} "$work/kept/lib/modules/$version/" \;
  mkdir -p "$cache"
  mv -T "$work/kept" "$cache/$version" 2>/dev/null || [[ -f $image ]] ||
    die "cannot write $cache/$version"
fi
printf '%s\n' "$image"
