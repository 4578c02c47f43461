# shellcheck shell=bash
# The demo: kennel in a machine that shares this one's network, with a small forge beside it.
# Sourced by `lab`. What happens inside the machine is in demo.py.

demo_ports() {
  router_port=${KENNEL_LAB_ROUTER_PORT:-8080}
  api_port=${KENNEL_LAB_API_PORT:-3000}
  forge_port=${KENNEL_LAB_FORGE_PORT:-3001}
}

demo_runs() { machine_runs demo; }

demo_up() {
  cd "$repo"
  need_host
  need_cargo
  ! demo_runs || die "the demo is running already; \`tests/lab/lab down\` ends it"
  demo_ports
  port_check KENNEL_LAB_ROUTER_PORT "$router_port"
  port_check KENNEL_LAB_API_PORT "$api_port"
  port_check KENNEL_LAB_FORGE_PORT "$forge_port"
  cargo_build build --bin kennel
  root_ensure
  say "Booting a machine"
  machine_boot demo
  say "Starting kennel"
  demo_inside up
  # From here on it is the visitor's, and stays whatever happens.
  machine_keep demo
  demo_inside push || demo_failed
  demo_hints
}

demo_push() {
  need_host
  demo_runs || die "no demo is running; \`tests/lab/lab demo\` starts one"
  demo_ports
  demo_inside push --change "$@" || demo_failed
}

demo_inside() {
  machine_run demo env ROUTER_PORT="$router_port" API_PORT="$api_port" FORGE_PORT="$forge_port" \
    COLUMNS="${COLUMNS:-80}" python3 -I /lab/source/tests/lab/demo.py "$@" </dev/null
}

demo_failed() {
  die "the machine is still there to look at:
  tests/lab/lab shell journalctl -u kennel
  tests/lab/lab down"
}

# port_check VARIABLE PORT: dies when something listens there.
port_check() {
  if (exec 3<>"/dev/tcp/127.0.0.1/$2") 2>/dev/null; then
    die "port $2 is taken: stop what listens there, or choose another with $1=…"
  fi
}

demo_hints() {
  cat <<TEXT

Open
  http://web-main.hello.localhost:$router_port     the site
  http://api-main.hello.localhost:$router_port     the service
Try
  tests/lab/lab demo push                    deploy a changed version
  tests/lab/lab demo push slow               a build that takes a minute, to be cancelled
  tests/lab/lab shell kennel status
  tests/lab/lab shell kennel builds
  tests/lab/lab shell journalctl -t kennel-hello-main-api -f
  tests/lab/lab down                         end it and leave nothing behind
TEXT
}
