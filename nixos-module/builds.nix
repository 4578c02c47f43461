# Builds: who runs them, and how much of the machine they get.
{ config, lib, ... }:

let
  cfg = config.services.kennel;
in
{
  config = lib.mkIf cfg.enable {
    # Fetches and evaluates what was pushed; not one of Nix's trusted users.
    users.users.kennel-build = {
      description = "kennel's builds";
      isSystemUser = true;
      group = "kennel-build";
    };
    users.groups.kennel-build = { };

    nix.settings = {
      # The daemon asks Nix what there is, and copies to caches.
      extra-allowed-users = [
        "kennel"
        "kennel-build"
      ];
      extra-experimental-features = [
        "nix-command"
        "flakes"
      ];
    };

    # Builds run in the control group of Nix's daemon, where limits of kennel's own unit do not reach. Weights count
    # among siblings: in a slice of its own it has services, all of them in kennel.slice, beside it.
    systemd.slices.builds = {
      description = "What Nix builds";
      sliceConfig = {
        CPUWeight = cfg.nixDaemon.cpuWeight;
        IOWeight = cfg.nixDaemon.ioWeight;
      };
    };
    systemd.services.nix-daemon.serviceConfig = {
      Slice = lib.mkDefault "builds.slice";
      # One build too big ends, not all that run beside it.
      OOMPolicy = lib.mkDefault "continue";
      MemoryMax = lib.mkIf (cfg.nixDaemon.memoryMax != null) (lib.mkDefault cfg.nixDaemon.memoryMax);
      TasksMax = lib.mkIf (cfg.nixDaemon.tasksMax != null) (lib.mkDefault cfg.nixDaemon.tasksMax);
    };
  };
}
