# A project is added, somebody pushes, visitors find the service and the site.
{ kennel }:
{ pkgs, lib, ... }:

let
  inherit (import ./machine-with-forge.nix { inherit kennel; } { inherit pkgs lib; }) node words;
in
{
  name = "kennel-first-push";
  nodes.machine = node;

  testScript = words + ''

    begin()
    push("main", "one")
    serves("main", "one")
    machine.succeed("curl --fail -H 'Host: web-main.hello.test' http://127.0.0.1/ | grep -i '<title>'")
    machine.succeed("kennel status | grep api-main.hello.test")
    machine.succeed("journalctl -t kennel-hello-main-api | grep 'version one'")

    push("main", "two")
    serves("main", "two")

    # Builds are Nix's own, below limits; who evaluates them is nobody.
    machine.succeed("systemctl show nix-daemon.service -p ControlGroup | grep builds.slice")
    machine.fail("nix config show trusted-users | grep kennel-build")
  '';
}
