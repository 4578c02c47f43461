# The daemon: its file, its unit, its command line, its ports.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  cfg = config.services.kennel;
  toml = pkgs.formats.toml { };

  # TOML has no null, and an empty section is none.
  clean =
    value:
    if builtins.isAttrs value && !lib.isDerivation value then
      lib.filterAttrs (_: value: value != null && value != { }) (builtins.mapAttrs (_: clean) value)
    else
      value;
  settings = clean cfg.settings;

  # What the daemon itself reads of secrets, by the names under which systemd hands it over: root alone need be able to
  # read these files. Those of services' secrets and of private repositories are root's side to read, when they are
  # needed.
  daemons = [
    [ "api" "token_file" ]
    [ "valkey" "url_file" ]
    [ "postgres" "url_file" ]
    [ "dns" "token_file" ]
    [ "builder" "cache" "credentials_file" ]
    [ "builder" "cache" "known_hosts_file" ]
    [ "builder" "cache" "signing_key_file" ]
  ]
  ++ builtins.concatMap (project: [
    [ "projects" project "webhook_secret_file" ]
    [ "projects" project "cachix_token_file" ]
  ]) (builtins.attrNames cfg.projects);
  named = settings // {
    projects = clean cfg.projects;
  };
  credentials = map (key: {
    inherit key;
    id = lib.concatStringsSep "." key;
    file = lib.attrByPath key null named;
  }) (builtins.filter (key: lib.attrByPath key null named != null) daemons);
  handedOver = map (
    { key, id, ... }: lib.setAttrByPath key "/run/credentials/kennel.service/${id}"
  ) credentials;
  written = toml.generate "kennel.toml" (builtins.foldl' lib.recursiveUpdate named handedOver);

  # The daemon's own check, run while the system is built. It needs neither network nor secrets.
  checked =
    pkgs.runCommand "kennel-config.toml"
      {
        preferLocalBuild = true;
        allowSubstitutes = false;
      }
      (
        if pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform then
          ''
            cp ${written} config.toml
            ${lib.getExe cfg.package} check-config config.toml
            cp config.toml $out
          ''
        else
          ''
            cp ${written} $out
          ''
      );

  # What the daemon runs, and what builds run.
  path = [
    config.nix.package
    config.programs.ssh.package
    pkgs.gitMinimal
  ];

  listeners = lib.filter (address: address != null) [
    cfg.settings.router.http
    cfg.settings.router.https
  ];
  # One for each thread that serves visitors, where their number is set: each then takes connections by itself.
  sockets = lib.concatLists (map (address: builtins.genList (_: address) (settings.router.workers or 1)) listeners);
  isLoopback = address: lib.hasPrefix "127." address || lib.hasPrefix "[::1]" address;
  portOf = address: lib.toInt (lib.last (lib.splitString ":" address));
in
{
  config = lib.mkIf cfg.enable {
    services.kennel.configFile = checked;
    environment.etc."kennel/config.toml".source = checked;
    environment.systemPackages = [ cfg.package ];
    # The daemon's user: whatever needs root it asks `kennel host` for.
    users.users.kennel = {
      description = "kennel's daemon";
      isSystemUser = true;
      group = "kennel";
    };
    users.groups.kennel.members = cfg.operators;

    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall (
      map portOf (lib.filter (address: !isLoopback address) listeners)
    );

    # The units are the package's own, of systemd/; here is what only NixOS can know.
    systemd.packages = [ cfg.package ];
    systemd.services.kennel = {
      wantedBy = [ "multi-user.target" ];
      inherit path;
      # A restart loses no request and touches no service; stopping first would.
      stopIfChanged = false;
      # A changed project is a reload; what the daemon reads at its start only is a restart.
      reloadTriggers = [ checked ];
      restartTriggers = [
        (builtins.hashString "sha256" (builtins.toJSON (removeAttrs settings [ "prune_projects" ])))
      ];
      serviceConfig.LoadCredential = map ({ id, file, ... }: "${id}:${file}") credentials;
    };
    systemd.services.kennel-host = {
      inherit path;
      stopIfChanged = false;
    };
    systemd.sockets.kennel-host.wantedBy = [ "sockets.target" ];

    # kennel asks the kernel whose a connection is, also where modules cannot be loaded later.
    boot.kernelModules = [ "tcp_diag" ];

    # systemd holds the listening sockets, so that a restart refuses nobody. The package's unit has the default ones.
    systemd.sockets.kennel = {
      wantedBy = [ "sockets.target" ];
      listenStreams = [ "" ] ++ sockets ++ [ cfg.settings.api.listen "/run/kennel/kennel.sock" ];
    };

    # Where systemd keeps the state of services with dynamic users; the unit cannot start without it.
    systemd.tmpfiles.settings."10-kennel"."/var/lib/private".d = {
      mode = "0700";
      user = "root";
      group = "root";
    };
  };
}
