# Where nixpkgs has the function that evaluates a NixOS configuration.
{ system, modules }:

let
  lib = import ../../lib.nix;
in
{
  config = import ../../system.nix {
    inherit lib;
    pkgs = import ../../pkgs.nix { inherit lib system; };
  } modules;
}
