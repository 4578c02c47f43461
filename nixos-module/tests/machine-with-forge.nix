# A machine with kennel, a forge beside it, and an application to push; and the words the tests speak of them in.
{ kennel }:
{ pkgs, lib, ... }:

let
  # The example has no inputs, so the machine builds it without a network. Its program starts from Debian's Python.
  hello = pkgs.runCommand "hello" { } ''
    cp -r ${../../examples/hello} $out
    chmod -R u+w $out
    substituteInPlace $out/api/bin/hello --replace-fail /usr/bin/python3 ${pkgs.python3.interpreter}
  '';
in
{
  node = {
    imports = [ ../. ];

    services.kennel = {
      enable = true;
      package = kennel;
      settings.base_domain = "test";
      projects.hello = {
        repo_url = "http://127.0.0.1:3001/hello.git";
        repo_type = "forgejo";
        webhook_secret_file = "/etc/hello-webhook";
      };
    };
    environment.etc."hello-webhook" = {
      text = "hush";
      mode = "0400";
    };

    systemd.services.forge = {
      wantedBy = [ "multi-user.target" ];
      path = [ pkgs.git ];
      serviceConfig.ExecStart = "${pkgs.python3.interpreter} ${../../tests/lab/forge.py} /srv/git 3001";
    };
    environment.systemPackages = [
      pkgs.curl
      pkgs.git
    ];
    programs.git.enable = true;
    programs.git.config = {
      init.defaultBranch = "main";
      safe.directory = "*";
      user = {
        name = "Ada";
        email = "ada@example.com";
      };
    };

    nix.settings.substituters = lib.mkForce [ ];
    virtualisation = {
      cores = 2;
      memorySize = 2048;
      writableStore = true;
    };
  };

  words = ''
    import hashlib
    import hmac
    import json
    import shlex


    def begin():
        machine.wait_for_unit("kennel.service")
        machine.wait_for_unit("forge.service")
        machine.succeed(
            "git init --bare /srv/git/hello.git",
            "git -C /srv/git/hello.git config uploadpack.allowAnySHA1InWant true",
            "cp -r ${hello} /root/hello && chmod -R u+w /root/hello",
            "git -C /root/hello init && git -C /root/hello remote add origin /srv/git/hello.git",
        )


    def deliver(event, payload):
        body = json.dumps(payload)
        signature = hmac.new(b"hush", body.encode(), hashlib.sha256).hexdigest()
        deliver.count += 1
        machine.succeed(
            "curl --fail-with-body --silent --show-error http://127.0.0.1:3000/webhook/hello"
            " -H 'Content-Type: application/json'"
            f" -H 'X-Forgejo-Event: {event}' -H 'X-Forgejo-Delivery: {deliver.count}'"
            f" -H 'X-Forgejo-Signature: {signature}' --data-raw {shlex.quote(body)}"
        )


    deliver.count = 0
    repository = {"name": "hello", "full_name": "me/hello", "default_branch": "main"}


    def push(branch, version):
        """Commits a version, pushes it, and tells kennel, as a forge does."""
        machine.succeed(
            f"cd /root/hello && git checkout -B {branch}"
            f" && sed -i 's/^VERSION = .*/VERSION = \"{version}\"/' api/bin/hello"
            f" && git add -A && git commit -m {version} && git push -f origin {branch}"
        )
        commit = machine.succeed("git -C /root/hello rev-parse HEAD").strip()
        deliver("push", {"ref": f"refs/heads/{branch}", "before": "0" * 40, "after": commit, "repository": repository})


    def get(branch, path="/"):
        return f"${lib.getExe pkgs.curl} --fail --silent --show-error -H 'Host: api-{branch}.hello.test' http://127.0.0.1{path}"


    def serves(branch, version):
        machine.wait_until_succeeds(f"{get(branch)} | grep -F '\"version\": \"{version}\"'", timeout=120)
  '';
}
