# shellcheck shell=bash
# The recipe of the lab's root file system: Debian with systemd, Nix, Valkey and PostgreSQL.
# Sourced by `lab`. Its own text is the cache key: a change here makes a new root.

readonly LAB_SUITE=trixie
readonly LAB_BASE=systemd,systemd-sysv,dbus,ca-certificates
readonly LAB_PACKAGES=(
  nix-bin nix-setup-systemd git python3
  valkey-server postgresql pebble openssh-server
  curl iproute2 procps
)

# The mirror the machine itself uses.
root_mirror() {
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' \
    | grep -E '/debian/?$' | head -n 1
}

# Makes the root file system in an empty directory.
root_build() {
  local root=$1 mirror
  mirror=$(root_mirror)
  [ -n "$mirror" ] || die "found no Debian mirror in this machine's apt sources"
  debootstrap --variant=minbase --include="$LAB_BASE" "$LAB_SUITE" "$root" "$mirror"
  # Nothing is started while the packages are installed.
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
  chmod +x "$root/usr/sbin/policy-rc.d"
  mount -t proc proc "$root/proc"
  chroot "$root" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 \
    apt-get install -qy --no-install-recommends \
    -o Dpkg::Options::=--force-unsafe-io "${LAB_PACKAGES[@]}" </dev/null
  root_settle "$root"
  umount "$root/proc"
  rm "$root/usr/sbin/policy-rc.d"
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
}

# Settings: no binary cache, nothing started at boot that a test may not want, kennel's users.
root_settle() {
  local root=$1
  cat >"$root/etc/nix/nix.conf" <<'CONF'
experimental-features = nix-command flakes
substituters =
sandbox = true
sandbox-fallback = false
CONF
  # PostgreSQL takes the next port when the host's own has 5432.
  sed -i 's/^port = .*/port = 5432/' "$root"/etc/postgresql/*/main/postgresql.conf
  chroot "$root" systemctl --quiet disable \
    valkey-server.service postgresql.service ssh.service ssh.socket \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    systemd-networkd.service systemd-resolved.service 2>/dev/null || true
  chroot "$root" groupadd --system kennel
  chroot "$root" useradd --system --no-create-home --home-dir /nonexistent \
    --shell /usr/sbin/nologin --groups nix-users kennel-build
  echo lab >"$root/etc/hostname"
  mkdir -p "$root/etc/kennel" "$root/var/lib/kennel" "$root/lab"
}
