# A stand-in for NixOS: the options kennel's module sets or reads, with the types they have there.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkOption types;

  option = type: mkOption { inherit type; };
  with' = type: default: mkOption { inherit type default; };
  strings = with' (types.listOf types.str) [ ];
  table = type: with' (types.attrsOf type) { };
  record = options: types.submodule { inherit options; };
  atom = types.oneOf [
    types.bool
    types.int
    types.str
    types.path
    types.package
  ];
  setting = types.oneOf [
    atom
    (types.listOf atom)
  ];
  yes = with' types.bool true;
  no = with' types.bool false;
in
{
  options = {
    assertions = with' (types.listOf types.raw) [ ];
    warnings = strings;
    system.stateVersion = with' types.str "26.05";
    fileSystems = table types.raw;
    boot.loader.grub.enable = yes;
    boot.kernelModules = strings;

    environment.etc = table (record {
      source = option types.path;
      text = with' types.str "";
      mode = with' types.str "symlink";
    });
    environment.systemPackages = with' (types.listOf types.package) [ ];

    networking.firewall.allowedTCPPorts = with' (types.listOf types.port) [ ];

    users.mutableUsers = yes;
    users.users = table (record {
      description = with' types.str "";
      isSystemUser = no;
      isNormalUser = no;
      group = with' types.str "";
      extraGroups = strings;
    });
    users.groups = table (record {
      members = strings;
    });

    nix.enable = yes;
    nix.package = with' types.package pkgs.nix;
    nix.settings = table setting;
    programs.git.enable = no;
    programs.git.config = table (types.attrsOf types.str);
    programs.ssh.package = with' types.package pkgs.openssh;

    systemd.packages = with' (types.listOf types.package) [ ];
    systemd.tmpfiles.settings = table (types.attrsOf (types.attrsOf (types.attrsOf types.str)));
    systemd.slices = table (record {
      description = with' types.str "";
      sliceConfig = table setting;
    });
    systemd.services = table (record {
      description = with' types.str "";
      wantedBy = strings;
      wants = strings;
      requires = strings;
      after = strings;
      path = with' (types.listOf types.package) [ ];
      environment = table types.str;
      script = with' types.lines "";
      serviceConfig = table setting;
      stopIfChanged = yes;
      reloadTriggers = with' (types.listOf types.raw) [ ];
      restartTriggers = with' (types.listOf types.raw) [ ];
    });

    systemd.sockets = table (record {
      wantedBy = strings;
      listenStreams = strings;
    });

    virtualisation.cores = with' types.int 1;
    virtualisation.memorySize = with' types.int 1024;
    virtualisation.writableStore = no;

    # Of others, as far as docs/nixos.md names them.
    sops.secrets = table (
      types.submodule (
        { name, ... }:
        {
          options.path = with' types.str "/run/secrets/${name}";
          options.restartUnits = strings;
        }
      )
    );
    age.secrets = table (
      types.submodule (
        { name, ... }:
        {
          options.path = with' types.str "/run/agenix/${name}";
          options.file = option types.path;
        }
      )
    );
    security.acme = table types.raw;
    services.forgejo.settings = table types.raw;
    services.nginx.recommendedProxySettings = no;
    services.nginx.virtualHosts = table types.raw;

    services.nginx.enable = no;
    services.nginx.defaultHTTPListenPort = with' types.port 80;
    services.redis.package = with' types.package pkgs.redis;
    services.redis.servers = table (record {
      enable = no;
      bind = with' (types.nullOr types.str) "127.0.0.1";
      port = with' types.port 0;
      databases = with' types.int 16;
      requirePassFile = with' (types.nullOr types.path) null;
    });
    services.postgresql = {
      enable = no;
      settings.port = with' types.port 5432;
      finalPackage = with' types.package pkgs.postgresql;
    };
  };

  # As nixpkgs' own modules set them.
  config.nix.settings = {
    sandbox = lib.mkDefault true;
    trusted-users = [ "root" ];
  };
}
