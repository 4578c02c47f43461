# kennel is restarted, as an upgrade does, while visitors come and a build runs: no request is refused, and none fails.
{ kennel }:
{ pkgs, lib, ... }:

let
  inherit (import ./machine-with-forge.nix { inherit kennel; } { inherit pkgs lib; }) node words;
in
{
  name = "kennel-restart-under-load";
  nodes.machine = node;

  testScript = words + ''

    begin()
    push("main", "one")
    serves("main", "one")
    service = machine.succeed("systemctl list-units --plain --no-legend 'kennel-hello-main-api@*' | cut -d ' ' -f 1").strip()
    pid = machine.succeed(f"systemctl show {service} -p MainPID")

    machine.succeed(
        "systemd-run --unit=visitors bash -c 'while :; do"
        f" {get('main').replace(chr(39), chr(34))} >/dev/null;"
        " case $? in 0) echo ok;; *) echo failed;; esac; done >/tmp/visits'"
    )
    push("topic", "two")
    for _ in range(5):
        machine.succeed("systemctl restart kennel.service")
        machine.wait_until_succeeds("kennel status")
    serves("topic", "two")
    machine.succeed("systemctl stop visitors.service")

    machine.succeed("grep -c ok /tmp/visits")
    machine.fail("grep failed /tmp/visits")
    assert pid == machine.succeed(f"systemctl show {service} -p MainPID"), "the service was not touched"
  '';
}
