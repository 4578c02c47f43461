# services.kennel.settings: what the module itself needs to know, and every key that names a secret's file.
{ lib, ... }:

let
  inherit (lib) mkOption types;

  # A string: a Nix path would be copied to the store, where everybody can read it.
  secretFile =
    description:
    mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      inherit description;
    };
in
{
  options = {
    base_domain = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "example.com";
      description = ''
        What every hostname ends in: `<service>-<branch>.<project>.<base_domain>`. Let `*.<project>.<base_domain>` in
        the DNS point at this machine.
      '';
    };

    control_domain = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "kennel.example.com";
      description = "Where the forge's webhooks arrive, at `/webhook/<project>`, and operators with a token.";
    };

    state_dir = mkOption {
      type = types.externalPath;
      default = "/var/lib/kennel";
      description = "What outlives a reboot. It has to lie below {file}`/var/lib`.";
    };

    api.listen = mkOption {
      type = types.str;
      default = "127.0.0.1:3000";
      description = "Where the operator's API listens over TCP.";
    };

    api.token_file = secretFile "The bearer token's file, needed by whoever uses the API from outside.";

    router.http = mkOption {
      type = types.str;
      default = "0.0.0.0:80";
      example = "127.0.0.1:8080";
      description = "Where visitors are served over HTTP. Behind another proxy: an address on loopback.";
    };

    router.https = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "0.0.0.0:443";
      description = "Where visitors are served over HTTPS, if anywhere.";
    };

    valkey.url_file = secretFile ''
      The file of the URL of a Valkey of your own, `redis://user:password@127.0.0.1:6379`, for preview databases. Its
      user manages ACLs.
    '';

    postgres.url_file = secretFile ''
      The file of the URL of a PostgreSQL of your own, `postgres://user:password@127.0.0.1`, for preview databases. Its
      role has CREATEDB and CREATEROLE.
    '';

    tls.certificates = mkOption {
      type = types.nullOr (
        types.listOf (
          types.submodule {
            options = {
              certificate_file = mkOption {
                type = types.externalPath;
                example = "/var/lib/acme/shop.example.com/fullchain.pem";
                description = "The certificate and those above it, as PEM text.";
              };
              key_file = mkOption {
                type = types.externalPath;
                example = "/var/lib/acme/shop.example.com/key.pem";
                description = "Its private key, as PEM text.";
              };
            };
          }
        )
      );
      default = null;
      description = ''
        Certificates that something else keeps, such as `security.acme`. kennel reads them again when they change, and
        orders none for the hosts they cover. The user `kennel` has to be able to read them:
        `users.users.kennel.extraGroups = [ "acme" ]`.
      '';
    };

    acme.ca_file = mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      example = "/etc/kennel/private-ca.pem";
      description = "The root certificate of a certificate authority of your own, which orders certificates by ACME.";
    };

    builder.cache.credentials_file = secretFile ''
      With what `builder.cache.to` is written to: AWS credentials for `s3`, a private key for `ssh-ng`, a netrc file for
      `https`.
    '';

    builder.cache.known_hosts_file = secretFile "The host keys to trust, for a cache over `ssh-ng`.";

    builder.cache.signing_key_file = secretFile "The file of the key that what is copied to the cache is signed with.";

    dns.token_file = secretFile "The file of the token that may change DNS records.";
  };
}
