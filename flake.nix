{
  description = "kennel turns a git push into a running service on a machine you own";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      eachSystem =
        make:
        lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
          system: make nixpkgs.legacyPackages.${system} self.packages.${system}
        );
    in
    {
      packages = eachSystem (
        pkgs: own: {
          default = own.kennel;
          kennel = pkgs.callPackage ./nixos-module/package.nix { };
        }
      );

      overlays.default = final: _: {
        kennel = final.callPackage ./nixos-module/package.nix { };
      };

      nixosModules = {
        default = self.nixosModules.kennel;
        kennel = ./nixos-module;
      };

      apps = eachSystem (
        pkgs: own: {
          default = {
            type = "app";
            program = lib.getExe own.kennel;
            meta.description = "kennel's command line";
          };
        }
      );

      devShells = eachSystem (
        pkgs: own: {
          default = pkgs.mkShell {
            inputsFrom = [ own.kennel ];
            packages = [
              pkgs.clippy
              pkgs.git
              pkgs.rust-analyzer
              pkgs.rustfmt
              pkgs.sqlx-cli
            ];
            env.SQLX_OFFLINE = "true";
          };
        }
      );

      formatter = eachSystem (pkgs: _: pkgs.nixfmt-tree);

      # `nix flake check`. The machines of `nixos-*` want /dev/kvm and a binary cache; docs/nixos.md says more.
      checks = eachSystem (
        pkgs: own:
        import ./nixos-module/checks.nix {
          inherit pkgs;
          inherit (own) kennel;
        }
      );

      templates.default = {
        path = ./examples/starter;
        description = "A service and a site for kennel to run";
      };
    };
}
