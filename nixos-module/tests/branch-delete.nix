# A branch is deleted: its service goes with everything it had, and the other branch serves on.
{ kennel }:
{ pkgs, lib, ... }:

let
  inherit (import ./machine-with-forge.nix { inherit kennel; } { inherit pkgs lib; }) node words;
in
{
  name = "kennel-branch-delete";
  nodes.machine = node;

  testScript = words + ''

    begin()
    push("main", "one")
    serves("main", "one")
    push("topic", "two")
    serves("topic", "two")

    machine.succeed("git -C /root/hello push origin --delete topic")
    deliver("delete", {"ref": "topic", "ref_type": "branch", "repository": repository})
    machine.wait_until_fails(get("topic"), timeout=60)
    for find in [
        "systemctl list-units --all --plain --no-legend 'kennel-hello-topic-*' | grep .",
        "ls /run/systemd/system /run/kennel/secrets | grep hello-topic",
        "find /var/lib/kennel/sites /var/lib/kennel/services -name topic | grep .",
    ]:
        machine.wait_until_fails(find, timeout=60)
    serves("main", "one")
  '';
}
