#!/bin/sh
# The first process of a test's libvirt host: lays the test's folders where libvirt looks, then waits for the test's end.
#
# usage: namespace.sh DIR      DIR has the folders run, etc, lib, cache and log
#
# It runs in new mount, process and network namespaces. Its end ends every process there.
set -e
# Another test's file system in a file, which would stay in use here when that test unmounts it.
while read -r device folder type _; do
  case "$device $type" in /dev/loop*' ext4') umount -l "$folder" ;; esac
done </proc/mounts
# Hides the buses and sockets of the machine, above all those of another libvirt.
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/libvirt
mount --bind "$1/run" /run/libvirt
mount --bind "$1/etc" /etc/libvirt
for name in lib cache log; do
  mount --bind "$1/$name" "/var/$name/libvirt"
done
# The certificate authority of emulated TPMs, of their user.
if [ -d /var/lib/swtpm-localca ]; then
  mkdir -p "$1/swtpm-localca"
  chown --reference /var/lib/swtpm-localca "$1/swtpm-localca"
  mount --bind "$1/swtpm-localca" /var/lib/swtpm-localca
fi
: >"$1/ready"
# The test holds the other end of this pipe. Not `exec`: a shell that waits also reaps the orphans that a first process inherits.
cat >/dev/null
exit 0
