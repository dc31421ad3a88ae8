#!/usr/bin/env bash
# Debian's stock amd64 kernel for the tests that boot one: prints the path of its image.
# `guest-kernel.sh busybox` prints the path of a static busybox, the shell of a guest.
#
# The packages are fetched through apt and unpacked, not installed, into a cache of the user's; of
# the kernel only the image and the modules that guests load are kept. It is fetched again when apt
# knows a newer one, or this script wants other modules.
set -euo pipefail

die() { printf 'guest kernel: %s\n' "$*" >&2; exit 1; }

readonly cache=${XDG_CACHE_HOME:-$HOME/.cache}/predump/guest-kernel

# By the first words of their names: a swap device; QEMU's devices; shared folders; what CRIU asks
# a kernel for.
readonly modules=(
  zram zsmalloc lz4 lzo 842
  virtio net_failover failover
  9p netfs fscache
  unix_diag inet_diag tcp_diag udp_diag raw_diag netlink_diag af_packet_diag
  nf_tables nfnetlink libcrc32c crc32c tun veth
)

command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
  die 'the guests of the tests come from Debian packages: apt-get and dpkg are needed'

newest_kernel() {
  apt-cache depends linux-image-amd64 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[^ :]*\).*/\1/p' | head -n 1
}
newest_busybox() { apt-cache policy busybox-static 2>/dev/null | sed -n 's/^ *Candidate: //p'; }

known() {
  local found
  found=$("$1")
  if [[ -z $found && $(id -u) == 0 ]]; then
    apt-get update -qq >/dev/null 2>&1 || true
    found=$("$1")
  fi
  echo "$found"
}

# unpack PACKAGE: its content, in $work/all
unpack() {
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  echo "guest kernel: fetching $1 (apt)" >&2
  chmod 755 "$work"
  (cd "$work" && apt-get download -qq "$1" >"$work/log" 2>&1) ||
    { tail -n 5 "$work/log" >&2; die "apt-get could not download $1"; }
  dpkg -x "$work"/*.deb "$work/all"
}

# keep FOLDER FILE: $work/kept becomes FOLDER, unless another process has just made FILE there
keep() {
  mkdir -p "$cache"
  [[ -f $2 ]] || rm -rf "$1"
  mv -T "$work/kept" "$1" 2>/dev/null || [[ -f $2 ]] || die "cannot write $1"
}

case ${1-image} in
  busybox)
    readonly folder=$cache/busybox
    if [[ ! -f $folder/busybox ]]; then
      [[ -n $(known newest_busybox) ]] ||
        die 'apt does not know busybox-static: run apt-get update (as root)'
      unpack busybox-static
      mkdir "$work/kept"
      cp "$work/all/bin/busybox" "$work/kept/" 2>/dev/null ||
        cp "$work/all/usr/bin/busybox" "$work/kept/"
      keep "$folder" "$folder/busybox"
    fi
    printf '%s\n' "$folder/busybox"
    ;;
  image)
    package=$(known newest_kernel)
    [[ -n $package ]] || die 'apt does not know linux-image-amd64: run apt-get update (as root)'
    readonly version=${package#linux-image-}
    readonly folder=$cache/$version image=$cache/$version/boot/vmlinuz-$version
    readonly stamp=$folder/modules-$(sha256sum <<< "${modules[*]}" | cut -c1-12)
    if [[ ! -f $stamp ]]; then
      unpack "$package"
      source=$work/all/lib/modules/$version
      [[ -d $source ]] || source=$work/all/usr/lib/modules/$version
      mkdir -p "$work/kept/boot" "$work/kept/lib/modules/$version"
      cp "$work/all/boot/vmlinuz-$version" "$work/kept/boot/"
      for name in "${modules[@]}"; do
        find "$source" -name "$name*.ko*" -exec cp {} "$work/kept/lib/modules/$version/" \;
      done
      touch "$work/kept/${stamp##*/}"
      keep "$folder" "$stamp"
    fi
    printf '%s\n' "$image"
    ;;
  *) die 'usage: guest-kernel.sh [image|busybox]' ;;
esac
