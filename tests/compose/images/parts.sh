#!/bin/sh
# The systems of the images that have no Debian in them: /parts/base, and what each lays over it.
set -eu

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends busybox-static mosquitto mosquitto-clients
apt-get -qq -o APT::Sandbox::User=root download prometheus
dpkg-deb -x prometheus_*.deb /unpacked

# libraries_of DIR PROGRAM...: what they load, copied into DIR.
libraries_of() {
  out=$1
  shift
  ldd "$@" | grep -o '/lib[^ ]*' | sort -u | while read -r library; do
    mkdir -p "$out${library%/*}"
    cp -L "$library" "$out$library"
  done
}

# user DIR NAME ID: the only one beside root.
user() {
  mkdir -p "$1/etc"
  printf 'root:x:0:0::/:/bin/sh\n%s:x:%s:%s::/:/bin/false\n' "$2" "$3" "$3" > "$1/etc/passwd"
  printf 'root:x:0:\n%s:x:%s:\n' "$2" "$3" > "$1/etc/group"
}

base=/parts/base
mkdir -p $base/bin $base/dev $base/proc $base/sys $base/tmp $base/usr/bin $base/usr/sbin $base/sbin
chmod 1777 $base/tmp
cp "$(command -v busybox)" $base/bin/busybox
chroot $base /bin/busybox --install -s

broker=/parts/broker
mkdir -p $broker/usr/bin $broker/usr/sbin $broker/mosquitto
cp /usr/sbin/mosquitto $broker/usr/sbin/
cp /usr/bin/mosquitto_pub /usr/bin/mosquitto_sub $broker/usr/bin/
libraries_of $broker /usr/sbin/mosquitto /usr/bin/mosquitto_sub
user $broker mosquitto 1883
printf 'listener 1883\nallow_anonymous true\n' > $broker/mosquitto-no-auth.conf
chown 1883:1883 $broker/mosquitto

prometheus=/parts/prometheus
mkdir -p $prometheus/bin $prometheus/etc/prometheus $prometheus/prometheus
cp /unpacked/usr/bin/prometheus $prometheus/bin/
libraries_of $prometheus /unpacked/usr/bin/prometheus
user $prometheus nobody 65534
chown 65534:65534 $prometheus/prometheus
