# Everything there is to say, with secrets where sops-nix and agenix put them.
{
  users.mutableUsers = false;
  users.users.alice.isNormalUser = true;

  services.kennel = {
    enable = true;
    openFirewall = true;
    operators = [ "alice" ];

    settings = {
      base_domain = "example.com";
      control_domain = "kennel.example.com";
      prune_projects = true;
      api = {
        listen = "0.0.0.0:3000";
        token_file = "/run/secrets/kennel-token";
      };
      router = {
        http = "0.0.0.0:80";
        https = "[::]:443";
      };
      builder = {
        max_concurrent_builds = 4;
        max_parallel = 2;
        timeout = "30m";
        log_limit_bytes = 1048576;
      };
      systemd.unit_dir = "/run/systemd/system";
      acme.email = "ops@example.com";
      dns = {
        provider = "cloudflare";
        token_file = "/run/agenix/dns";
      };
    };

    projects.shop = {
      repo_url = "git@forge.example.com:me/shop.git";
      repo_type = "gitea";
      webhook_secret_file = "/run/secrets/shop-webhook";
      default_branch = "trunk";
      ssh_key_file = "/run/agenix/shop-key";
      known_hosts_file = "/etc/ssh/ssh_known_hosts";
      branches = [
        "trunk"
        "release/*"
      ];
      pull_requests = true;
      forks = "allow";
      custom_domains = [ "*.example.org" ];
      allowed_uris = [ "github:" ];
      allow_ifd = true;
      secrets.prod.JWT_SECRET.file = "/run/secrets/shop-jwt";
      secrets.preview.JWT_SECRET.file = "/run/secrets/shop-jwt-preview";
    };
    projects.site = {
      repo_url = "https://github.com/me/site.git";
      repo_type = "github";
      webhook_secret_file = "/run/secrets/site-webhook";
      git_token_file = "/run/secrets/site-token";
    };

    valkey = {
      createLocally = true;
      port = 16380;
      databases = 64;
    };
    postgresql.createLocally = true;
    nixDaemon = {
      memoryMax = "8G";
      tasksMax = null;
      cpuWeight = 20;
      ioWeight = 20;
    };
  };
}
