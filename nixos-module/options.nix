# What can be said. The keys of `settings` and `projects` are those of kennel's own file.
{
  lib,
  pkgs,
  ...
}:

let
  inherit (lib)
    literalExpression
    mkEnableOption
    mkOption
    types
    ;
  toml = pkgs.formats.toml { };
in
{
  options.services.kennel = {
    enable = mkEnableOption "kennel, which turns a git push into a running service";

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The kennel to run.";
    };

    settings = mkOption {
      type = types.submodule {
        imports = [ ./settings.nix ];
        freeformType = toml.type;
      };
      default = { };
      example = literalExpression ''
        {
          base_domain = "example.com";
          control_domain = "kennel.example.com";
          builder.max_concurrent_builds = 4;
        }
      '';
      description = ''
        The daemon's file, {file}`/etc/kennel/config.toml`, without its projects. Every key of that file may be given
        here, those that are not listed below as well; {command}`kennel check-config` reads the result while the system
        is built, so that a mistake fails {command}`nixos-rebuild`.
      '';
    };

    projects = mkOption {
      type = types.attrsOf (
        types.submodule {
          imports = [ ./project.nix ];
          freeformType = toml.type;
        }
      );
      default = { };
      example = literalExpression ''
        {
          shop = {
            repo_url = "https://forge.example.com/me/shop.git";
            repo_type = "forgejo";
            webhook_secret_file = "/run/secrets/shop-webhook";
          };
        }
      '';
      description = ''
        The repositories to serve, by name: lower-case letters, digits and `-`. A change is applied by a reload, which
        interrupts nothing; a new project, whose webhook's secret systemd has to hand over, by a restart, which loses no
        request.
      '';
    };

    operators = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "alice" ];
      description = ''
        Users who may use the command line as root may: they join the group `kennel`. What they can deploy, they can
        run on this machine.
      '';
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether to open the ports of `settings.router` to the network. Listeners on loopback are left out, and so is
        the API: forges and operators from outside come through `settings.control_domain`.
      '';
    };

    valkey = {
      createLocally = mkOption {
        type = types.bool;
        default = false;
        description = ''
          Whether to run a Valkey for preview databases: {option}`services.redis.servers.kennel`, on loopback, with a
          password made at its first start.
        '';
      };

      port = mkOption {
        type = types.port;
        default = 16379;
        description = "The port on 127.0.0.1 it listens on.";
      };

      databases = mkOption {
        type = types.ints.between 2 65536;
        default = 1024;
        description = "How many numbers it has. Each branch that wants a preview database takes one; 0 is not used.";
      };
    };

    postgresql.createLocally = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether to use {option}`services.postgresql` of this machine for preview databases. kennel gets the role
        `kennel`, which may make databases and roles and nothing else, with a password made at the first start.
      '';
    };

    nixDaemon = {
      memoryMax = mkOption {
        type = types.nullOr types.str;
        default = "75%";
        example = "12G";
        description = ''
          How much memory all builds together may use ({manpage}`systemd.resource-control(5)`, `MemoryMax=`), so that
          a build that grows without bound ends instead of the services beside it. `null` sets no limit.
        '';
      };

      tasksMax = mkOption {
        type = types.nullOr types.ints.positive;
        default = 32768;
        description = "How many processes and threads all builds together may have. `null` leaves Nix's own limit.";
      };

      cpuWeight = mkOption {
        type = types.ints.between 1 10000;
        default = 50;
        description = ''
          The weight of builds where the processor is wanted by others too. All services that kennel runs together have
          100, and so has the rest of the system.
        '';
      };

      ioWeight = mkOption {
        type = types.ints.between 1 10000;
        default = 50;
        description = "The same for the disk.";
      };
    };

    configFile = mkOption {
      type = types.path;
      internal = true;
      readOnly = true;
      description = "The daemon's file, checked.";
    };
  };
}
