# Preview databases on this machine: a Valkey of kennel's own, a role in the machine's PostgreSQL.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  cfg = config.services.kennel;
  useValkey = cfg.enable && cfg.valkey.createLocally;
  usePostgresql = cfg.enable && cfg.postgresql.createLocally;
  postgresql = config.services.postgresql;

  # Root's alone, and beside the state directory: kennel removes what it does not know from there.
  secrets = "/var/lib/kennel-secrets";

  # Makes a password once, and from it what others read: a server its password, kennel a URL.
  passwordUnit =
    name: urlBefore: urlAfter:
    {
      description = "A password of kennel's for ${name}";
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        StateDirectory = "kennel-secrets";
        StateDirectoryMode = "0700";
        UMask = "0077";
        CapabilityBoundingSet = "";
        NoNewPrivileges = true;
        PrivateNetwork = true;
        PrivateTmp = true;
        ProtectHome = true;
        ProtectSystem = "strict";
      };
      script = ''
        cd ${secrets}
        if ! [ -s ${name}-password ]; then
          head -c 32 /dev/urandom | sha256sum | cut -c 1-64 >${name}-password.new
          sync ${name}-password.new
          mv ${name}-password.new ${name}-password
        fi
        printf '%s%s%s\n' '${urlBefore}' "$(cat ${name}-password)" '${urlAfter}' >${name}-url.new
        mv ${name}-url.new ${name}-url
      '';
    };
in
{
  config = lib.mkMerge [
    (lib.mkIf useValkey {
      services.kennel.settings.valkey.url_file = lib.mkDefault "${secrets}/valkey-url";

      services.redis = {
        # For all servers of this machine: an assertion asks when there are others.
        package = lib.mkOverride 1400 pkgs.valkey;
        servers.kennel = {
          enable = true;
          bind = "127.0.0.1";
          inherit (cfg.valkey) port databases;
          requirePassFile = "${secrets}/valkey-password";
        };
      };

      systemd.services.kennel-valkey-password =
        passwordUnit "valkey" "redis://default:" "@127.0.0.1:${toString cfg.valkey.port}";
      systemd.services.redis-kennel = rec {
        requires = [ "kennel-valkey-password.service" ];
        after = requires;
      };
      systemd.services.kennel = rec {
        wants = [
          "kennel-valkey-password.service"
          "redis-kennel.service"
        ];
        after = wants;
      };
    })

    (lib.mkIf usePostgresql {
      services.kennel.settings.postgres.url_file = lib.mkDefault "${secrets}/postgres-url";
      services.postgresql.enable = true;

      systemd.services.kennel-postgres-password =
        passwordUnit "postgres" "postgres://kennel:"
          "@127.0.0.1:${toString postgresql.settings.port}/postgres";

      systemd.services.kennel-postgres-role = rec {
        description = "kennel's role in PostgreSQL";
        requires = [
          "kennel-postgres-password.service"
          "postgresql.target"
        ];
        after = requires;
        path = [ postgresql.finalPackage ];
        environment.PGPORT = toString postgresql.settings.port;
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
          User = "postgres";
          LoadCredential = "password:${secrets}/postgres-password";
        };
        # `psql` reads the password itself: in an argument everybody could see it.
        script = ''
          psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname postgres <<'SQL'
          \set password `cat "$CREDENTIALS_DIRECTORY/password"`
          select 'create role kennel' where not exists (select from pg_roles where rolname = 'kennel') \gexec
          alter role kennel with login nosuperuser createdb createrole password :'password';
          SQL
        '';
      };
      systemd.services.kennel = rec {
        wants = [ "kennel-postgres-role.service" ];
        after = wants;
      };
    })
  ];
}
