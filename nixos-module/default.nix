# services.kennel: import this directory, say `enable`, a domain and a project.
{
  imports = [
    ./options.nix
    ./daemon.nix
    ./builds.nix
    ./databases.nix
    ./assertions.nix
  ];
}
