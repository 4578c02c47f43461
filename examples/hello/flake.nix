{
  description = "One service and one static site for kennel to run";

  # No inputs: it builds without a network. A project of your own would take nixpkgs here
  # and say `pkgs.buildGoModule`, `pkgs.writers.writePython3Bin`, `pkgs.buildNpmPackage` …
  outputs =
    { self }:
    let
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];

      # Reads every file given and says so: what it prints is the build's log.
      check =
        system: name: files:
        derivation {
          inherit system name files;
          builder = "/bin/sh";
          args = [
            "-eu"
            ./build.sh
          ];
        };

      # A store path with the directories of `tree`, made by the builder Nix uses for profiles.
      package =
        name: tree: checked:
        derivation {
          inherit name;
          system = "builtin";
          builder = "builtin:buildenv";
          preferLocalBuild = true;
          derivations = [
            "true" # active
            5 # priority
            1 # number of outputs
            tree
          ];
          manifest = checked;
        };

      packagesFor = system: {
        api =
          package "hello-api" ./api (check system "hello-api-check" [ ./api/bin/hello ])
          // {
            meta.mainProgram = "hello"; # kennel starts <store path>/bin/hello
          };

        frontend = package "hello-web" ./web (
          check system "hello-web-check" [
            ./web/index.html
            ./web/style.css
          ]
        );
      };
    in
    {
      packages = builtins.listToAttrs (
        map (system: {
          name = system;
          value = packagesFor system;
        }) systems
      );
    };
}
