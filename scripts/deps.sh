#!/usr/bin/env bash
# Installs every system package that building, testing and demonstrating keepmark needs, on Debian 12 or later.
#
# QEMU and libvirt come from the backports suite on Debian 12. Its source is derived from the source that the machine has
# configured already, so that mirrors and proxies keep working. The guest's kernel and agent are only unpacked, into
# .tools/guest, never installed. When everything is there, nothing is asked of the network.
set -euo pipefail
cd "$(dirname "$0")/.."

rust_min=1.91
# Versions below these lack what the tests rely on.
qemu_min=1:10.0~
libvirt_min=11.0~

plain=(
  ca-certificates gcc libc6-dev make pkg-config git                       # build
  nbdkit libnbd-bin restic virtnbdbackup                                  # other implementations to test against and to compare with
  busybox-static e2fsprogs kmod ovmf                                      # the guest
  swtpm swtpm-tools                                                       # its TPM
  jq python3 util-linux procps socat strace time faketime                 # scripts and tests
)
backported_qemu=(qemu-system-x86 qemu-utils)
backported_libvirt=(libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients libvirt-dev)
# The guest's parts: the kernel's real package is found through the meta package.
guest_kernel_meta=linux-image-cloud-amd64
guest_agent=qemu-guest-agent

say() { printf 'deps: %s\n' "$*" >&2; }
fail() { printf 'Error: %s\nHint: %s\n' "$1" "$2" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -- "$@"; fi
}

apt_get() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 "$@" >&2
}

check_rust() {
  local have
  have=$(cargo --version 2>/dev/null | cut -d' ' -f2) ||
    fail "cargo is not installed" "install Rust $rust_min or newer with rustup, then run 'make deps' again"
  [ "$(printf '%s\n' "$rust_min" "$have" | sort -V | head -n1)" = "$rust_min" ] ||
    fail "cargo $have is too old, $rust_min is needed" "rustup update stable"
}

# Prints those of the packages in $2... that are not installed in version $1 or newer.
missing() {
  local min=$1 package version
  shift
  for package in "$@"; do
    version=$(dpkg-query -W -f '${db:Status-Status} ${Version}' "$package" 2>/dev/null) || version=
    case $version in
      "installed "*) dpkg --compare-versions "${version#installed }" ge "$min" || echo "$package" ;;
      *) echo "$package" ;;
    esac
  done
}

# Prints "URI<tab>KEYRING" of the configured source of suite $1, component main; the keyring may be empty.
configured_source() {
  local files=()
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    [ -r "$file" ] && files+=("$file")
  done
  python3 - "$1" "${files[@]}" <<'PY'
import re, sys

def stanzas(text):
    for block in re.split(r"\n\s*\n", text):
        fields, key = {}, None
        for line in block.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace() and key:
                fields[key] += "\n" + line
            elif ":" in line:
                key, value = line.split(":", 1)
                key = key.lower()
                fields[key] = value.strip()
        yield fields

def one_line(text):
    for line in text.splitlines():
        found = re.match(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+(.*)", line.strip())
        if found:
            options = dict(o.split("=", 1) for o in (found[1] or "").split() if "=" in o)
            yield {"types": "deb", "uris": found[2], "suites": found[3], "components": found[4],
                   "signed-by": options.get("signed-by", "")}

suite = sys.argv[1]
for path in sys.argv[2:]:
    text = open(path, encoding="utf-8", errors="replace").read()
    for s in (stanzas if path.endswith(".sources") else one_line)(text):
        if ("deb" in s.get("types", "").split() and suite in s.get("suites", "").split()
                and "main" in s.get("components", "").split() and s.get("enabled", "yes").lower() not in ("no", "false")):
            key = s.get("signed-by", "")
            print(s["uris"].split()[0], key if "\n" not in key else "", sep="\t")
            sys.exit()
sys.exit(1)
PY
}

add_backports() {
  local codename=$1 source uri keyring target=/etc/apt/sources.list.d/keepmark-backports.sources
  configured_source "$codename-backports" >/dev/null && return
  source=$(configured_source "$codename") ||
    fail "no source of Debian $codename is configured" "add one to /etc/apt/sources.list.d, then run 'make deps' again"
  uri=${source%%$'\t'*} keyring=${source#*$'\t'}
  say "adding the backports suite of the configured source"
  {
    printf 'Types: deb\nURIs: %s\nSuites: %s-backports\nComponents: main\n' "$uri" "$codename"
    [ -z "$keyring" ] || printf 'Signed-By: %s\n' "$keyring"
  } | as_root tee "$target" >/dev/null
  updated=
}

updated=
update_once() {
  [ -z "$updated" ] || return 0
  apt_get update
  updated=1
}

install_packages() {
  local codename from=() lacking
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  mapfile -t lacking < <(missing 0 "${plain[@]}")
  if [ ${#lacking[@]} -gt 0 ]; then
    update_once
    apt_get install --no-install-recommends "${lacking[@]}"
  fi
  mapfile -t lacking < <(missing "$qemu_min" "${backported_qemu[@]}"; missing "$libvirt_min" "${backported_libvirt[@]}")
  if [ ${#lacking[@]} -gt 0 ]; then
    if [ "$codename" = bookworm ]; then
      add_backports "$codename"
      from=(-t "$codename-backports")
    fi
    update_once
    apt_get install --no-install-recommends "${from[@]}" "${lacking[@]}"
  fi
}

# Unpacks package $1 under folder $2. The download's complaint of being unsandboxed means only that _apt may not write here.
unpack() {
  local package=$1 folder=$2 fetched
  fetched=$(mktemp -d)
  chmod 755 "$fetched"
  if ! (cd "$fetched" && apt-get -q download "$package" >&2); then
    update_once
    (cd "$fetched" && apt-get -q download "$package" >&2)
  fi
  dpkg-deb -x "$fetched"/*.deb "$folder"
  rm -rf "$fetched"
}

kernel_package() {
  apt-cache depends "$guest_kernel_meta" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n1
}

# The stamp is written last: a folder without it is made again from nothing.
unpack_guest() {
  local kernel stamp=.tools/guest/stamp
  [ -e "$stamp" ] && return 0
  kernel=$(kernel_package)
  if [ -z "$kernel" ]; then
    update_once
    kernel=$(kernel_package)
  fi
  [ -n "$kernel" ] || fail "apt knows no $guest_kernel_meta" "check that the main component of Debian for amd64 is configured"
  say "unpacking $kernel and $guest_agent for the guest"
  rm -rf .tools/guest
  mkdir -p .tools/guest
  unpack "$kernel" .tools/guest
  unpack "$guest_agent" .tools/guest
  /sbin/depmod -b .tools/guest "${kernel#linux-image-}"
  printf '%s\n' "$kernel" "$guest_agent" >"$stamp"
}

write_stamp() {
  mkdir -p .tools
  dpkg-query -W -f '${Package} ${Version}\n' "${plain[@]}" "${backported_qemu[@]}" "${backported_libvirt[@]}" >.tools/deps.stamp
}

check_rust
install_packages
unpack_guest
write_stamp
say "all there (.tools/deps.stamp)"
