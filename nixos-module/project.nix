# services.kennel.projects.<name>: one repository.
{ lib, ... }:

let
  inherit (lib) mkOption types;

  file =
    description:
    mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      inherit description;
    };

  # The files of secrets, by the name of the variable a service gets.
  secretsOf =
    environment:
    mkOption {
      type = types.attrsOf (
        types.submodule {
          options.file = mkOption {
            type = types.externalPath;
            example = "/run/secrets/shop-jwt";
            description = "The file that holds the value. It is read when a service is deployed.";
          };
        }
      );
      default = { };
      description = "Secrets of ${environment}, by the name of the variable.";
    };
in
{
  options = {
    repo_url = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "https://forge.example.com/me/shop.git";
      description = "Where the repository is.";
    };

    repo_type = mkOption {
      type = types.nullOr (
        types.enum [
          "github"
          "forgejo"
          "gitea"
        ]
      );
      default = null;
      example = "forgejo";
      description = "How its forge talks.";
    };

    webhook_secret_file = file "The file of the secret its webhooks are signed with.";

    default_branch = mkOption {
      type = types.str;
      default = "main";
      description = "The branch that is production.";
    };

    git_token_file = file "The file of a token to fetch a private repository with, over HTTPS.";
    ssh_key_file = file "The file of a key to fetch a private repository with, over SSH.";

    cachix_token_file = file "The file of the token for the Cachix cache that its `kennel.toml` names.";

    known_hosts_file = mkOption {
      type = types.nullOr types.path;
      default = null;
      description = "The host keys of the forge, needed beside `ssh_key_file`. Nothing secret.";
    };

    branches = mkOption {
      type = types.nullOr (types.listOf types.str);
      default = null;
      example = [
        "main"
        "release/*"
      ];
      description = "The branches to deploy; `null` is all of them.";
    };

    pull_requests = mkOption {
      type = types.bool;
      default = true;
      description = "Whether pull requests get previews.";
    };

    forks = mkOption {
      type = types.enum [
        "deny"
        "allow"
      ];
      default = "deny";
      description = "Whether pull requests from forks do too: `allow` lets whoever can open one run programs here.";
    };

    custom_domains = mkOption {
      type = types.nullOr (types.listOf types.str);
      default = null;
      example = [ "*.example.org" ];
      description = "The domains its kennel.toml may claim; `null` is any that is not kennel's own.";
    };

    secrets = {
      prod = secretsOf "the default branch";
      staging = secretsOf "the branch `staging`";
      dev = secretsOf "all other branches";
      preview = secretsOf "pull requests";
    };
  };
}
