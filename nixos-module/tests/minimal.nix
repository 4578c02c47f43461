# The least that runs.
{
  services.kennel = {
    enable = true;
    settings.base_domain = "example.com";
    projects.shop = {
      repo_url = "https://forge.example.com/me/shop.git";
      repo_type = "forgejo";
      webhook_secret_file = "/run/secrets/shop-webhook";
    };
  };
}
