#!/bin/sh
# python.sh MIRROR: a Python 3.11 in /usr/local, as the registry's image has it. Debian 12 is the
# last with that version: its packages are unpacked and moved, not installed.
set -eu

export DEBIAN_FRONTEND=noninteractive
# What the registry's image has beside Python, and the libraries that Python loads.
apt-get update -qq
apt-get install -y -qq --no-install-recommends ca-certificates netbase tzdata \
  libbz2-1.0 libexpat1 libffi8 liblzma5 libncursesw6 libreadline8t64 libsqlite3-0 libssl3t64 \
  libuuid1 zlib1g
rm -rf /var/lib/apt/lists/*

work=$(mktemp -d)
cd "$work"
chmod 755 "$work"
mkdir -p lists/partial root
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $1 bookworm main" > sources.list
apt() {
  apt-get -qq -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o "Dir::State::lists=$work/lists" -o APT::Sandbox::User=root "$@"
}
apt update
apt download python3.11-minimal libpython3.11-minimal libpython3.11-stdlib python3.11-venv \
  python3-pip-whl python3-setuptools-whl
for deb in *.deb; do dpkg-deb -x "$deb" root; done
cp -r root/usr/lib/python3.11 /usr/local/lib/
cp root/usr/bin/python3.11 /usr/local/bin/
cp -r root/usr/share/python-wheels /usr/share/
rm -rf "$work"
ln -s python3.11 /usr/local/bin/python3
ln -s python3 /usr/local/bin/python
