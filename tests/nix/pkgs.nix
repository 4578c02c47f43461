# A stand-in for nixpkgs' packages. What is built from them runs in Nix's real sandbox, with the lab machine's own
# /usr in it: `--option extra-sandbox-paths "/usr /lib=/usr/lib /lib64=/usr/lib64"`.
{ lib, system }:

let
  # nixpkgs' function of that name, for texts without `#`.
  substituteInPlace = ''
    substituteInPlace() {
      local file=$1
      shift
      while [ $# -gt 0 ]; do
        [ "$1" = --replace-quiet ] || grep -qF -- "$2" "$file" || { echo "nothing in $file reads $2" >&2; exit 1; }
        sed -i "s#$2#$3#" "$file"
        shift 3
      done
    }
  '';

  run =
    name: attributes: script:
    derivation (
      attributes
      // {
        inherit name system;
        builder = "/usr/bin/bash";
        args = [
          "-euc"
          # The shell ends last: Nix kills a builder whose standard error is closed, as coreutils' own end closes it.
          "${substituteInPlace}${script}\nexit 0"
        ];
        PATH = "/usr/bin";
      }
    )
    // {
      inherit name;
    };

  # A package of the machine's own programs.
  machines = name: attributes: run name { } ''mkdir "$out"; ln -s /usr/bin "$out/bin"'' // attributes;

  # A package that is only named.
  named = name: attributes: run name { } ''echo ${name} >"$out"'' // attributes;

  text = name: content: run name { inherit content; } ''printf %s "$content" >"$out"'';

  toml =
    let
      key = name: if builtins.match "[A-Za-z0-9_-]+" name != null then name else builtins.toJSON name;
      value =
        it:
        if builtins.isAttrs it then
          "{ ${lib.concatStringsSep ", " (lib.mapAttrsToList (name: one: "${key name} = ${value one}") it)} }"
        else if builtins.isList it then
          "[ ${lib.concatMapStringsSep ", " value it} ]"
        else
          builtins.toJSON it;
      table =
        path: it:
        let
          plain = lib.filterAttrs (_: one: !builtins.isAttrs one) it;
          tables = lib.filterAttrs (_: one: builtins.isAttrs one) it;
          header = lib.optionalString (path != [ ]) "[${lib.concatMapStringsSep "." key path}]\n";
          lines = lib.mapAttrsToList (name: one: "${key name} = ${value one}\n") plain;
        in
        header
        + lib.concatStringsSep "" lines
        + lib.concatStringsSep "" (lib.mapAttrsToList (name: one: table (path ++ [ name ]) one) tables);
      valueType =
        (lib.types.oneOf [
          lib.types.bool
          lib.types.int
          lib.types.float
          lib.types.str
          lib.types.path
          (lib.types.attrsOf valueType)
          (lib.types.listOf valueType)
        ])
        // {
          description = "TOML value";
        };
    in
    {
      type = valueType;
      generate = name: it: text name (table [ ] it);
    };

  # Does what `rustPlatform` would do after compiling, with the machine's own kennel: nothing here compiles Rust.
  buildRustPackage =
    arguments:
    let
      self =
        run "${arguments.pname}-${arguments.version}"
          {
            inherit (arguments) src postInstall;
            lock = arguments.cargoLock.lockFile;
            env = builtins.toJSON arguments.env;
          }
          ''
            cp -r "$src" source
            chmod -R u+w source
            cd source
            test -e Cargo.lock -a -e src/main.rs -a -d .sqlx
            install -D -m 555 /usr/bin/kennel "$out/bin/kennel"
            eval "$postInstall"
            chmod -R u+w "$out"
          '';
    in
    self
    // arguments
    // {
      overrideAttrs =
        change:
        let
          changed = arguments // change arguments;
        in
        buildRustPackage changed;
    };

  pkgs = {
    inherit lib system;
    path = ./.;
    callPackage =
      file: extra:
      let
        f = import file;
      in
      f (builtins.intersectAttrs (builtins.functionArgs f) pkgs // extra);
    stdenv = rec {
      hostPlatform = {
        inherit system;
      };
      buildPlatform.canExecute = other: other == hostPlatform;
    };
    rustPlatform.buildRustPackage = buildRustPackage;
    formats.toml = { }: toml;
    runCommand = run;
    writeText = text;
    writeTextDir = path: content: run (baseNameOf path) { inherit content; } ''
      mkdir -p "$out/$(dirname ${path})"
      printf %s "$content" >"$out/${path}"
    '';
    writers.writePython3Bin =
      name: attributes: content:
      run name { inherit content; } ''
        mkdir -p "$out/bin"
        { echo '#!/usr/bin/python3'; printf %s "$content"; } >"$out/bin/${name}"
        chmod 555 "$out/bin/${name}"
      ''
      // {
        meta.mainProgram = name;
      };
    mkShell = attributes: named "shell" { inherit attributes; };
    testers.runNixOSTest =
      test:
      let
        called = if builtins.isFunction test then test { inherit lib pkgs; } else test;
      in
      run "vm-test-${called.name}"
        {
          inherit (called) testScript;
          passAsFile = [ "testScript" ];
          # Evaluated and built, not booted.
          configs = lib.mapAttrsToList (
            _: node: (import ./system.nix { inherit lib pkgs; } [ node ]).services.kennel.configFile
          ) called.nodes;
        }
        ''
          /usr/bin/python3 -c 'import ast, sys; ast.parse(open(sys.argv[1]).read())' "$testScriptPath"
          cp "$testScriptPath" "$out"
        '';

    gitMinimal = machines "git-minimal" { };
    curl = machines "curl" { meta.mainProgram = "curl"; };
    git = machines "git" { };
    nix = machines "nix" { };
    openssh = machines "openssh" { };
    postgresql = machines "postgresql" { };
    python3.interpreter = "/usr/bin/python3";
    valkey = named "valkey" { };
    redis = named "redis" { };
    libgit2 = named "libgit2" { version = "1.9.7"; };
    nixfmt-tree = named "nixfmt-tree" { };
    openssl = named "openssl" { };
    rustc = named "rustc" { version = "1.95.0"; };
  }
  // lib.genAttrs [
    "clippy"
    "libssh2"
    "pkg-config"
    "rust-analyzer"
    "rustfmt"
    "sqlx-cli"
    "zlib"
  ] (name: named name { });
in
pkgs
