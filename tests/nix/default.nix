# What the lab evaluates: kennel's module in a stand-in for NixOS. `nixpkgs` is the real one, or its `lib` alone, where there is any.
{
  system ? builtins.currentSystem,
  nixpkgs ? null,
}:

let
  lib = if nixpkgs == null then import ./lib.nix else import (nixpkgs + "/lib");
  pkgs = import ./pkgs.nix { inherit lib system; };
  module = ../../nixos-module;
  checked = modules: import ./system.nix { inherit lib pkgs; } ([ module ] ++ modules);

  # A unit of `systemd.services` as the file systemd reads, or as what is added to the file of a package.
  unit =
    config: name:
    let
      service = config.systemd.services.${name};
      lines = key: values: map (value: "${key}=${toString value}\n") values;
      settings = lib.concatLists (
        lib.mapAttrsToList (
          key: value: lines key (if builtins.isList value then value else [ (shown value) ])
        ) service.serviceConfig
      );
      shown = value: if value == true then "yes" else if value == false then "no" else value;
      script = pkgs.writeText "${name}-script" "#!/usr/bin/bash\nset -e\n${service.script}";
      path = map (package: "${package}/bin") service.path ++ [ "/usr/bin" ];
      environment = service.environment // {
        PATH = lib.concatStringsSep ":" path;
      };
    in
    lib.concatStringsSep "" (
      [ "[Unit]\n" ]
      ++ lib.optionals (service.description != "") [ "Description=${service.description}\n" ]
      ++ lines "Wants" service.wants
      ++ lines "Requires" service.requires
      ++ lines "After" service.after
      ++ [ "[Service]\n" ]
      ++ lib.mapAttrsToList (key: value: "Environment=\"${key}=${value}\"\n") environment
      ++ lib.optionals (service.script != "") [ "ExecStart=/usr/bin/bash ${script}\n" ]
      ++ settings
    );

  # What is added to a package's socket.
  socket =
    config: name:
    let
      lines = map (address: "ListenStream=${address}\n") config.systemd.sockets.${name}.listenStreams;
    in
    lib.concatStringsSep "" ([ "[Socket]\n" ] ++ lines);

  # All that a machine needs of a configuration to run it: the daemon's file, units, packages' units.
  machine =
    modules:
    let
      config = checked modules;
      own = lib.filterAttrs (name: _: lib.hasPrefix "kennel" name) config.systemd.services;
    in
    pkgs.runCommand "kennel-machine"
      {
        config = config.environment.etc."kennel/config.toml".source;
        package = config.services.kennel.package;
        socket = pkgs.writeText "kennel-socket" (socket config "kennel");
        names = builtins.attrNames own;
        units = map (name: pkgs.writeText name (unit config name)) (builtins.attrNames own);
      }
      ''
        mkdir -p "$out/units"
        cp "$config" "$out/config.toml"
        ln -s "$package" "$out/package"
        cp "$socket" "$out/kennel.socket"
        set -- $units
        for name in $names; do
          cp "$1" "$out/units/$name"
          shift
        done
      '';

  minimal = ../../nixos-module/tests/minimal.nix;
  full = ../../nixos-module/tests/full.nix;
in
{
  inherit
    checked
    lib
    machine
    pkgs
    unit
    ;
  configFile = modules: (checked modules).services.kennel.configFile;
  minimal = checked [ minimal ];
  full = checked [ full ];
  files = { inherit minimal full; };
  optionsPage = import ../../nixos-module/options-page.nix { inherit lib pkgs; };
}
