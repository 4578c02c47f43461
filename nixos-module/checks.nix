# The flake's checks: the package, its tests and lints, the module, and machines that run it.
{ pkgs, kennel }:

let
  inherit (pkgs) lib;

  evaluated =
    configuration:
    import (pkgs.path + "/nixos/lib/eval-config.nix") {
      inherit (pkgs.stdenv.hostPlatform) system;
      modules = [
        ./.
        ./tests/machine.nix
        configuration
      ];
    };
  configFile = configuration: (evaluated configuration).config.services.kennel.configFile;

  machine = test: pkgs.testers.runNixOSTest (import test { inherit kennel; });
in
{
  package = kennel;

  # Tests that ask the API want to be root, which nobody is in a sandbox; `tests/lab/lab test` runs them all.
  tests = kennel.overrideAttrs (old: {
    pname = "kennel-tests";
    doCheck = true;
    nativeCheckInputs = (old.nativeCheckInputs or [ ]) ++ [ pkgs.gitMinimal ];
    preCheck = "export HOME=$TMPDIR";
    cargoTestFlags = [ "--lib" ];
    checkFlags = [ "--skip=api::tests" ];
  });

  clippy = kennel.overrideAttrs (old: {
    pname = "kennel-clippy";
    nativeBuildInputs = old.nativeBuildInputs ++ [ pkgs.clippy ];
    buildPhase = ''
      cargo clippy --offline --no-default-features --all-targets -- -D warnings
      cargo clippy --offline --no-default-features --test lab -- -D warnings
    '';
    installPhase = "touch $out";
  });

  # Building the daemon's file runs `kennel check-config` on it.
  module-minimal = configFile ./tests/minimal.nix;
  module-full = configFile ./tests/full.nix;

  options-page =
    pkgs.runCommand "kennel-options-page"
      {
        page = import ./options-page.nix { inherit lib pkgs; };
        passAsFile = [ "page" ];
      }
      ''
        diff -u ${../docs/options.md} $pagePath || {
          echo "docs/options.md is stale: tests/nix/renew writes it anew" >&2
          exit 1
        }
        touch $out
      '';

  nixos-first-push = machine ./tests/first-push.nix;
  nixos-restart = machine ./tests/restart-under-load.nix;
  nixos-reboot = machine ./tests/reboot.nix;
  nixos-branch-delete = machine ./tests/branch-delete.nix;
}
