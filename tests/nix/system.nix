# Evaluates a configuration as NixOS does: there is no system while an assertion fails.
{ lib, pkgs }:

modules:
let
  inherit
    (lib.evalModules {
      modules = [ ./nixos.nix ] ++ modules;
      specialArgs = { inherit pkgs; };
    })
    config
    ;
  failed = map (one: one.message) (builtins.filter (one: !one.assertion) config.assertions);
in
if failed == [ ] then
  config
else
  throw "\nFailed assertions:\n${lib.concatMapStringsSep "\n" (message: "- ${message}") failed}"
