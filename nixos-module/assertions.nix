# What is wrong with a configuration before it is built, and what to set instead.
{
  config,
  lib,
  options,
  ...
}:

let
  cfg = config.services.kennel;
  inherit (config.nix) settings;

  say = assertion: message: { inherit assertion message; };

  ofProject =
    name: project:
    let
      needs = key: example: {
        assertion = project.${key} != null;
        message = "services.kennel.projects.${name}.${key} is not set. Set it, such as to ${example}.";
      };
    in
    [
      (needs "repo_url" ''"https://forge.example.com/me/${name}.git"'')
      (needs "repo_type" ''"github" or "forgejo"'')
      (needs "webhook_secret_file" ''
        "/run/secrets/${name}-webhook", a file that holds what you also give the forge as the webhook's secret'')
    ];

  otherServers = lib.filterAttrs (
    name: server: name != "kennel" && server.enable
  ) config.services.redis.servers;

  portOf = address: lib.last (lib.splitString ":" address);
in
{
  config = lib.mkIf cfg.enable {
    assertions = [
      (say (cfg.settings.base_domain != null) ''
        services.kennel.settings.base_domain is not set. Set it to the domain your projects lie under, such as "example.com".'')
      (say (!(cfg.settings ? projects)) ''
        services.kennel.settings.projects is set. Set services.kennel.projects instead.'')
      (say config.nix.enable ''
        services.kennel needs Nix to build with. Set nix.enable = true.'')
      (say ((settings.sandbox or true) == true) ''
        services.kennel builds what is pushed, and nix.settings.sandbox is off: a build could reach this machine's files. Set nix.settings.sandbox = true.'')
      (say
        (lib.mutuallyExclusive (lib.toList (settings.trusted-users or [ ])) [
          "*"
          "kennel"
          "@kennel"
          "kennel-build"
          "@kennel-build"
        ])
        ''
          nix.settings.trusted-users lets the user kennel, who meets the network, or the user kennel-build, who evaluates what is pushed, do everything. Take "*", "kennel", "@kennel", "kennel-build" and "@kennel-build" out of it.''
      )
      (say
        (cfg.valkey.createLocally -> cfg.settings.valkey.url_file == "/var/lib/kennel-secrets/valkey-url")
        ''
          services.kennel.settings.valkey.url_file names a Valkey of your own. Set services.kennel.valkey.createLocally = false, or remove the file.''
      )
      (say
        (
          cfg.postgresql.createLocally
          -> cfg.settings.postgres.url_file == "/var/lib/kennel-secrets/postgres-url"
        )
        ''
          services.kennel.settings.postgres.url_file names a PostgreSQL of your own. Set services.kennel.postgresql.createLocally = false, or remove the file.''
      )
      (say
        (
          cfg.valkey.createLocally && otherServers != { }
          -> options.services.redis.package.highestPrio < 1400
        )
        ''
          services.kennel.valkey.createLocally would run the Redis servers ${lib.concatStringsSep ", " (builtins.attrNames otherServers)} with Valkey too, which cannot read the data of every Redis. Set services.redis.package to pkgs.valkey if that is wanted, or to pkgs.redis: kennel works with both.''
      )
      (say
        (
          config.services.nginx.enable
          -> portOf cfg.settings.router.http != toString config.services.nginx.defaultHTTPListenPort
        )
        ''
          nginx listens on port ${portOf cfg.settings.router.http}, where kennel's router would. Set services.kennel.settings.router.http = "127.0.0.1:8080" and let nginx pass requests on to it, or disable nginx.''
      )
    ]
    ++ lib.concatLists (lib.mapAttrsToList ofProject cfg.projects);
  };
}
