# shellcheck shell=bash
# Machines: the cached root file system, booting it in a container, running things inside.
# Sourced by `lab`.
#
# A running machine is a directory machines/NAME in the cache folder. It holds the process id of its
# nspawn (`pid`), that of the script it belongs to (`owner`, none for the demo), each with the time
# it started, and what its console said. Whoever removes the directory has ended nspawn first.

# A directory of ours, made when it is missing.
lab_dir() {
  local dir=${KENNEL_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kennel-lab}/$1
  mkdir -p "$dir"
  printf '%s\n' "$dir"
}

root_dir() {
  printf '%s/root-%s\n' "$(lab_dir .)" "$(sha256sum <"$here/root.sh" | cut -c 1-12)"
}

# Makes the root file system unless the cache has it.
root_ensure() {
  local root lock
  root=$(root_dir)
  [ -d "$root" ] && return 0
  exec {lock}>"$(lab_dir .)/lock"
  if ! flock --nonblock "$lock"; then
    say "Waiting for another lab, which is making the root file system"
    flock "$lock"
  fi
  if [ ! -d "$root" ]; then
    roots_remove
    partial_root=$root.partial
    mkdir "$partial_root"
    quietly root "Making the root file system (once, about 2 minutes)" root_build "$partial_root"
    mv "$partial_root" "$root"
    partial_root=''
  fi
  exec {lock}>&-
}

# Removes what interrupted builds left and, unless a machine may be running on them, older roots.
roots_remove() {
  local old
  for old in "$(lab_dir .)"/root-*; do
    [ -d "$old" ] || continue
    if [[ $old == *.partial ]] || [ -z "$(ls -A "$(lab_dir machines)")" ]; then
      root_remove "$old"
    fi
  done
}

root_remove() {
  ! mountpoint -q "$1/proc" || umount "$1/proc"
  rm -rf --one-file-system "$1"
}
partial_root=''

# Boots a pristine machine, which forgets everything: machine_boot NAME NSPAWN-OPTION…; sets `machine`.
machine_boot() {
  local name=$1
  shift
  machine_start "$name" -D "$(root_dir)" --volatile=overlay "$@"
}

# Boots a machine that keeps what is on its disk until `machine_end`, and boots with that again.
machine_boot_kept() {
  local name=$1 dir
  shift
  dir=$(lab_dir "machines/$name")
  owned+=("$name")
  [ -d "$dir/root" ] || root_copy "$dir"
  machine_start "$name" -D "$dir/root" "$@"
}

# Makes a root of a machine's own, DIR/root; where there are no overlays, by copying.
root_copy() {
  mkdir "$1/root" "$1/upper" "$1/work"
  mount -t overlay kennel-lab -o "lowerdir=$(root_dir),upperdir=$1/upper,workdir=$1/work" "$1/root" 2>/dev/null \
    || cp -a "$(root_dir)/." "$1/root"
}

# Boots a machine and waits until it is up.
machine_start() {
  local name=$1 dir options
  shift
  dir=$(lab_dir "machines/$name")
  machine=$name
  owned+=("$name")
  options=(--quiet --boot --machine="kennel-$name"
    --register=no --link-journal=no --resolv-conf=off --timezone=off
    --bind-ro="$repo:/lab/source"
    --bind-ro="$repo/systemd/kennel.service:/etc/systemd/system/kennel.service")
  [ -z "$kennel_bin" ] || options+=(--bind-ro="$kennel_bin:/usr/bin/kennel")
  [ -z "$crash_bin" ] || options+=(--bind-ro="$crash_bin:/lab/kennel-crash")
  [ -z "$test_bin" ] || options+=(--bind-ro="$test_bin:/lab/tests")
  [ -z "${KENNEL_LAB_NIXPKGS:-}" ] || options+=(--bind-ro="$KENNEL_LAB_NIXPKGS:/lab/nixpkgs")
  # Without a systemd on the host there is nobody to ask for a scope.
  [ -d /run/systemd/system ] || options+=(--keep-unit)
  # A session of its own: Ctrl-C is for this script, which ends the machine itself.
  (
    trap - EXIT INT TERM HUP
    cgroups_enter "$name"
    exec setsid systemd-nspawn "${options[@]}" "$@"
  ) >"$dir/console.log" 2>&1 </dev/null &
  echo "$! $(process_start $!)" >"$dir/pid"
  echo "$$ $(process_start $$)" >"$dir/owner"
  machine_await "$name"
}
owned=()

machine_await() {
  local name=$1 dir state deadline=$((SECONDS + 60))
  dir=$(lab_dir "machines/$name")
  while [ $SECONDS -lt $deadline ] && machine_runs "$name"; do
    state=$(machine_exec "$name" timeout 60 systemctl is-system-running --wait 2>/dev/null || true)
    case $state in
      running) return 0 ;;
      degraded)
        machine_exec "$name" systemctl --failed --no-legend </dev/null >&2
        return 0
        ;;
    esac
    sleep 0.1
  done
  cp "$dir/console.log" "$(lab_dir logs)/console.log"
  tail -n 15 "$dir/console.log" >&2
  die "the machine did not boot (its console: $(lab_dir logs)/console.log)"
}

machine_runs() { process_recorded "$(lab_dir machines)/$1/pid"; }

# The process recorded in a file is there, and is not a later one that got the same number.
process_recorded() {
  local pid='' start=''
  { read -r pid start <"$1"; } 2>/dev/null || return 1
  [ -n "$start" ] && [ "$(process_start "$pid")" = "$start" ]
}

# When a process started, in clock ticks since boot; nothing when there is none.
process_start() {
  local stat=''
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 0
  # The name may hold spaces; after it the state comes third and the start 22nd.
  read -ra stat <<<"${stat##*) }"
  printf '%s\n' "${stat[19]}"
}

# The machine's PID 1, as the host numbers it; nothing before there is one.
machine_init() {
  local pid child
  read -r pid _ <"$(lab_dir machines)/$1/pid"
  for child in $(pgrep -P "$pid" || true); do
    if grep -qsP '^NSpid:.*\t1$' "/proc/$child/status"; then
      printf '%s\n' "$child"
      return 0
    fi
  done
}

# Runs a command inside, as root, with an environment of its own.
machine_exec() {
  local init
  init=$(machine_init "$1")
  [ -n "$init" ] || return 1
  shift
  nsenter -t "$init" -m -u -i -p -n -C --root="/proc/$init/root" --wdns=/ \
    env -i HOME=/root USER=root SHELL=/bin/bash LANG=C.UTF-8 TERM="${TERM:-dumb}" \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    NIX_REMOTE=daemon KENNEL_LAB=1 RUST_BACKTRACE="${RUST_BACKTRACE:-1}" "$@"
}

# The same for commands that may take long: a signal to this script need not wait for their end.
machine_run() {
  if [ -t 0 ]; then
    machine_exec "$@"
  else
    machine_exec "$@" <&0 &
    wait $!
  fi
}

# Switches a machine off as its operator does: machine_power_off NAME.
machine_power_off() {
  local pid deadline=$((SECONDS + 60))
  read -r pid _ <"$(lab_dir machines)/$1/pid"
  machine_exec "$1" systemctl poweroff </dev/null
  while machine_runs "$1"; do
    [ $SECONDS -lt $deadline ] || die "the machine did not switch itself off"
    sleep 0.05
  done
  wait "$pid" || true
  cgroups_remove "$1"
}

# Switches a machine off as a power cut does: machine_power_cut NAME.
machine_power_cut() {
  local pid
  read -r pid _ <"$(lab_dir machines)/$1/pid"
  # With its init all that runs in it is gone at once; nspawn, which is no part of it, cleans up.
  kill -KILL "$(machine_init "$1")"
  process_await_end "$pid"
  wait "$pid" || true
  cgroups_remove "$1"
}

# Ends a machine at once (nothing in it is to be kept) and removes what it left.
machine_end() {
  local name=$1 dir pid init
  dir=$(lab_dir "machines/$name")
  if machine_runs "$name"; then
    read -r pid _ <"$dir/pid"
    init=$(machine_init "$name")
    # With its init the whole machine dies, and nspawn then cleans up after itself.
    kill -KILL "${init:-$pid}" 2>/dev/null || true
    process_await_end "$pid"
  fi
  cgroups_remove "$name"
  ! mountpoint -q "$dir/root" || umount "$dir/root"
  rm -rf --one-file-system "$dir"
}

process_await_end() {
  local deadline=$((SECONDS + 10))
  while kill -0 "$1" 2>/dev/null; do
    [ $SECONDS -lt $deadline ] || kill -KILL "$1" 2>/dev/null || true
    sleep 0.05
  done
}

# Ends the demo and what killed scripts left; the machines of running scripts are theirs to end.
machines_end() {
  local dir ended=()
  for dir in "$(lab_dir machines)"/*/; do
    [ -d "$dir" ] || continue
    ! process_recorded "$dir/owner" || continue
    machine_end "$(basename "$dir")"
    ended+=("$(basename "$dir")")
  done
  if [ ${#ended[@]} -gt 0 ]; then say "Ended ${ended[*]}"; else say "Nothing was running"; fi
}

# Lets a machine outlive this script.
machine_keep() {
  rm "$(lab_dir machines)/$1/owner"
  owned=()
}

# Ends what this run of the script started; runs at its end, whatever that is.
lab_cleanup() {
  # In a trap a bare `return` gives the status the script ends with: say `return 0`.
  local status=$? name
  trap '' INT TERM HUP
  for name in "${owned[@]}"; do
    machine_end "$name"
  done
  [ -z "$partial_root" ] || root_remove "$partial_root"
  exit "$status"
}

# On a host without systemd nspawn uses the caller's control group; two machines in the same one
# would take each other's services for their own.
cgroups_enter() {
  local top
  [ ! -d /run/systemd/system ] || return 0
  for top in $(cgroup_tops); do
    mkdir -p "$top/kennel-lab-$1"
    echo "$BASHPID" >"$top/kennel-lab-$1/cgroup.procs"
  done
}

cgroups_remove() {
  local top
  for top in $(cgroup_tops); do
    [ -d "$top/kennel-lab-$1" ] || continue
    find "$top/kennel-lab-$1" -depth -type d -exec rmdir {} + || true
  done
}

# The hierarchies systemd uses: version 2, or version 1 with its own one beside.
cgroup_tops() {
  local top
  for top in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    [ ! -w "$top/cgroup.procs" ] || echo "$top"
  done
}
