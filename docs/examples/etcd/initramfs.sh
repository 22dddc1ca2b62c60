#!/bin/sh
# Debian's etcd, and the C library that it needs, as an initramfs to load after kboot's tiny system:
#
#   sh initramfs.sh etcd.cpio
#
# Needs a Debian system, or one of its family, with cpio; not root.
set -eu
out=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# apt's own user would have to be allowed in.
chmod 755 "$work"
cd "$work"
apt-get -q -o APT::Sandbox::User=root download etcd-server libc6
for package in *.deb; do
    dpkg-deb -x "$package" unpacked
done

mkdir -p tree/usr/bin tree/usr/lib/x86_64-linux-gnu tree/lib64
cp unpacked/usr/bin/etcd tree/usr/bin/
cp "$(find unpacked -name libc.so.6)" tree/usr/lib/x86_64-linux-gnu/
cp -L "$(find unpacked -name ld-linux-x86-64.so.2 | head -n 1)" tree/lib64/
cd tree
find . -mindepth 1 | sort | cpio -o -H newc --quiet -R 0:0 >"$out.new"
mv "$out.new" "$out"
