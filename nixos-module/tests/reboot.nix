# The machine is switched off and on: what was live is live again, with nobody doing anything.
{ kennel }:
{ pkgs, lib, ... }:

let
  inherit (import ./machine-with-forge.nix { inherit kennel; } { inherit pkgs lib; }) node words;
in
{
  name = "kennel-reboot";
  nodes.machine = node;

  testScript = words + ''

    begin()
    push("main", "one")
    serves("main", "one")
    machine.succeed("sync")

    machine.crash()
    machine.start()
    serves("main", "one")
    machine.succeed("curl --fail -H 'Host: web-main.hello.test' http://127.0.0.1/")

    push("main", "two")
    serves("main", "two")
  '';
}
