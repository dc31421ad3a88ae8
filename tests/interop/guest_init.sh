#!/bin/busybox sh
# /init of the guest in which real CRIU runs: loads modules, sets up the network and the folder that
# it shares with the host, says @@READY, and then executes the lines that come over its console.
# Each is answered by its output and a line "@@STATUS n".
/bin/busybox mkdir -p /proc /sys /tmp /run /share /var/run
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
stty -echo -F /dev/console
while read -r module; do
  insmod "/modules/$module" || echo "cannot load $module"
done < /modules/order
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 share /share || echo "no shared folder"
. /functions.sh
# From here on what the console says is answers.
dmesg -n 1
echo "@@READY $(uname -r)"
while read -r line; do
  eval "$line" < /dev/null
  echo "@@STATUS $?"
done
poweroff -f
