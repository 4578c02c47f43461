{
  outputs =
    { self }:
    let
      system = "@SYSTEM@";

      # What a build says, and how long it takes.
      check =
        name: script: waitsFor:
        derivation {
          inherit system waitsFor;
          name = "${name}-check";
          builder = "/bin/sh";
          args = [
            "-euc"
            "echo building ${name}; ${script}\necho built ${name} >$out"
          ];
        };

      # Waits until a test opens it. As its content is known beforehand, it is built with the
      # machine's network, and so can wait for an answer.
      gate =
        name: port:
        derivation {
          inherit name system;
          builder = "/bin/sh";
          args = [
            "-euc"
            "exec 3<>/dev/tcp/127.0.0.1/${port}; echo ${name} >&3; read -r word <&3; echo open >$out"
          ];
          outputHashMode = "flat";
          outputHashAlgo = "sha256";
          outputHash = "30da2826a39aee42b1ecc8c8f5ad1f503e430566b03e3b13655a94915f012b00";
        };

      # A store path with the directories of `tree`.
      package =
        name: tree: checked:
        derivation {
          inherit name;
          system = "builtin";
          builder = "builtin:buildenv";
          preferLocalBuild = true;
          derivations = [
            "true"
            5
            1
            tree
          ];
          manifest = checked;
        };
    in
    {
      packages.${system} = {
        # @PACKAGES@
      };
    };
}
