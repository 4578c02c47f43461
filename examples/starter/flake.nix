{
  description = "A service and a site for kennel to run";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      eachSystem =
        make:
        nixpkgs.lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
          system: make nixpkgs.legacyPackages.${system}
        );
    in
    {
      # kennel.toml names these.
      packages = eachSystem (pkgs: {
        # Started as <store path>/bin/api.
        api = pkgs.writers.writePython3Bin "api" { flakeIgnore = [ "E501" ]; } (
          builtins.readFile ./api/main.py
        );

        # A directory of files.
        web = pkgs.runCommand "web" { } "cp -r ${./web} $out";
      });
    };
}
