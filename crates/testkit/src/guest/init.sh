#!/bin/busybox sh
# The test guest's only program: mounts, beats, writes and obeys its console.
#
# Kernel command line:
#   km.mount=vda,vdb    mounts these disks (by serial number, else by device name), ext4, on /mnt/NAME
#   km.writer=vdb:RATE  writes RATE times a second 64 KiB to /mnt/vdb/writer, each time with fsync
#   km.agent=off        does not start qemu-ga
# It prints, a line each:
#   KM-READY                      booted, everything mounted, writer and agent started
#   KM-BEAT n uptime writes       every 0.2 s
#   KM-MOUNT-ERROR, KM-WRITER-ERROR text
# It obeys lines from the console:
#   poweroff            syncs, unmounts and powers off
#   run ID COMMAND...   a line of shell; answers with lines `KM-OUT ID text` and at last `KM-DONE ID exit-code`
# with these commands beside busybox's:
#   write DISK COUNT KIB   writes COUNT new files of KIB KiB random bytes each, and syncs them
#   fstrim DISK            discards what the mounted file system does not use
#   sums DISK              prints a checksum of every file there outside of writer/
#   stop_writer            ends the writer after its present write
#   variable NAME [TEXT]   prints a variable of UEFI's, after setting it where a text is given
#   tpm HEX                sends a command to the TPM and prints its answer, in hexadecimal digits
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
stty -echo </dev/console

argument() { # NAME
  for word in $(cat /proc/cmdline); do
    case $word in "$1="*) echo "${word#*=}" ;; esac
  done
}

device() { # NAME
  for block in /sys/block/vd* /sys/block/sd*; do
    if [ -e "$block/serial" ] && [ "$(cat "$block/serial")" = "$1" ]; then
      echo "/dev/${block##*/}"
      return
    fi
    # A SCSI disk says its serial number in the unit serial number page, after four bytes.
    if [ -e "$block/device/vpd_pg80" ] && [ "$(tail -c +5 "$block/device/vpd_pg80")" = "$1" ]; then
      echo "/dev/${block##*/}"
      return
    fi
  done
  echo "/dev/$1"
}

write() { # DISK COUNT KIB
  for i in $(seq "$2"); do
    name=/mnt/$1/file-$(cat /proc/sys/kernel/random/uuid)
    dd if=/dev/urandom of="$name" bs=1k count="$3" conv=fsync 2>/dev/null || return 1
  done
}

fstrim() { busybox fstrim -v "/mnt/$1"; }

sums() { (cd "/mnt/$1" && find . -path ./writer -prune -o -type f -print | sort | xargs -r sha256sum); }

stop_writer() {
  touch /run/stop
  while [ -e /run/writing ]; do sleep 0.05; done
}

writer() { # DISK RATE
  pause=$((1000000 / $2))
  folder=/mnt/$1/writer
  mkdir -p "$folder"
  touch /run/writing
  n=0
  while [ ! -e /run/stop ]; do
    if message=$(dd if=/dev/urandom of="$folder/f$((n % 64))" bs=64k count=1 conv=notrunc,fsync 2>&1); then
      n=$((n + 1))
      echo "$n" >/run/writes
    else
      echo "KM-WRITER-ERROR $message" | tr '\n' ' '
      echo
    fi
    usleep $pause
  done
  rm /run/writing
}

variable() { # NAME [TEXT]
  file=/sys/firmware/efi/efivars/$1-9d2c8b41-6f0e-4a37-8c55-1b7e3f60a2d4
  # Kept without power, and seen by the firmware and by the system. One write sets it.
  [ -z "$2" ] || printf '\7\0\0\0%s' "$2" >"$file"
  tail -c +5 "$file"
  echo
}

tpm() { # HEX
  exec 3<>/dev/tpm0
  printf "$(echo "$1" | sed 's/../\\x&/g')" >&3
  dd bs=4096 count=1 <&3 2>/dev/null | xxd -p | tr -d '\n'
  echo
  exec 3>&-
}

beat() {
  n=0
  while :; do
    read -r uptime _ </proc/uptime
    read -r writes </run/writes
    echo "KM-BEAT $n $uptime ${writes:-0}"
    n=$((n + 1))
    usleep 200000
  done
}

start_agent() {
  for port in /sys/class/virtio-ports/*; do
    [ -e "$port/name" ] || continue
    [ "$(cat "$port/name")" = org.qemu.guest_agent.0 ] || continue
    qemu-ga -m virtio-serial -p "/dev/${port##*/}" -t /run -f /run/qga.pid -l /run/qga.log &
  done
}

power_off() {
  touch /run/stop
  sync
  for mounted in /mnt/*; do umount "$mounted" 2>/dev/null || mount -o remount,ro "$mounted" 2>/dev/null; done
  sync
  busybox poweroff -f
}

run() { # ID COMMAND...
  id=$1
  shift
  (eval "$*") >/run/out 2>&1
  code=$?
  while read -r text; do echo "KM-OUT $id $text"; done </run/out
  echo "KM-DONE $id $code"
}

while read -r module; do
  case $module in efivarfs.*) [ -d /sys/firmware/efi ] || continue ;; esac
  insmod "/modules/$module"
done </modules/order
[ ! -d /sys/firmware/efi ] || mount -t efivarfs efivarfs /sys/firmware/efi/efivars
# Controllers find their disks in the background.
for disk in $(argument km.mount | tr , ' '); do
  for try in $(seq 50); do
    [ -b "$(device "$disk")" ] && break
    usleep 100000
  done
  mkdir -p "/mnt/$disk"
  mount -t ext4 "$(device "$disk")" "/mnt/$disk" || echo "KM-MOUNT-ERROR $disk"
done
echo 0 >/run/writes
[ "$(argument km.agent)" = off ] || start_agent
wanted=$(argument km.writer)
[ -z "$wanted" ] || writer "${wanted%:*}" "${wanted#*:}" &
beat &
echo KM-READY
while read -r word rest; do
  case $word in
    poweroff) power_off ;;
    run) run "${rest%% *}" "${rest#* }" ;;
  esac
done </dev/console
# Without a console there is nothing left to obey, but /init must not end.
while :; do sleep 1000; done
