# shellcheck shell=bash
# An ordinary program that nobody here wrote, for a test to deploy: Radicale, from PyPI.
# Sourced by `lab`. The machines have no network, so it is fetched here, once, and kept in the cache.

# Fetches it unless the cache has it; sets `ordinary_dir`.
ordinary_ensure() {
  local cache lock
  cache=$(lab_dir .)
  ordinary_dir=$cache/ordinary-$(sha256sum <"$here/ordinary.txt" | cut -c 1-12)
  [ ! -d "$ordinary_dir" ] || return 0
  install_missing pip3 python3-pip
  exec {lock}>"$cache/ordinary.lock"
  flock "$lock"
  if [ ! -d "$ordinary_dir" ]; then
    rm -rf "$cache"/ordinary-*/
    quietly ordinary "Fetching an ordinary program from PyPI (once)" ordinary_fetch "$ordinary_dir.partial"
    mv "$ordinary_dir.partial" "$ordinary_dir"
  fi
  exec {lock}>&-
}
ordinary_dir=''

ordinary_fetch() {
  pip3 install --quiet --no-compile --no-deps --require-hashes --only-binary=:all: --platform any \
    --implementation py --python-version 3.13 --target "$1" --requirement "$here/ordinary.txt"
}
