# A stand-in for nixpkgs' `lib`: the few functions kennel's Nix files use, since the lab reaches no nixpkgs.
#
# What it has behaves as the real one does for what is asked of it here; what it lacks is missing, so that a file that
# uses more fails its test.
let
  lib = {
    inherit (builtins)
      filter
      hasAttr
      replaceStrings
      ;
    inherit (import ./modules.nix lib)
      evalModules
      literalExpression
      mkDefault
      mkForce
      mkIf
      mkMerge
      mkOption
      mkOptionDefault
      mkOverride
      optionAttrSetToDocList
      ;
    types = import ./types.nix lib;

    # Lists and sets.
    concatLists = builtins.concatLists;
    last = list: builtins.elemAt list (builtins.length list - 1);
    toList = value: if builtins.isList value then value else [ value ];
    mutuallyExclusive = a: b: !(builtins.any (item: builtins.elem item b) a);
    filterAttrs =
      keep: set: builtins.removeAttrs set (builtins.filter (name: !keep name set.${name}) (builtins.attrNames set));
    mapAttrsToList = f: set: map (name: f name set.${name}) (builtins.attrNames set);
    genAttrs =
      names: f:
      builtins.listToAttrs (
        map (name: {
          inherit name;
          value = f name;
        }) names
      );
    optionals = condition: list: if condition then list else [ ];
    optionalAttrs = condition: set: if condition then set else { };
    recursiveUpdate =
      a: b:
      a
      // builtins.mapAttrs (
        name: value:
        if builtins.isAttrs value && builtins.isAttrs (a.${name} or null) && !(value ? _type) then
          lib.recursiveUpdate a.${name} value
        else
          value
      ) b;
    attrByPath =
      path: default: set:
      if path == [ ] then
        set
      else if builtins.isAttrs set && set ? ${builtins.head path} then
        lib.attrByPath (builtins.tail path) default set.${builtins.head path}
      else
        default;
    setAttrByPath =
      path: value:
      if path == [ ] then
        value
      else
        {
          ${builtins.head path} = lib.setAttrByPath (builtins.tail path) value;
        };
    isDerivation = value: value.type or null == "derivation";

    # Text.
    concatStringsSep = builtins.concatStringsSep;
    concatMapStringsSep = separator: f: list: builtins.concatStringsSep separator (map f list);
    optionalString = condition: text: if condition then text else "";
    hasInfix = infix: text: builtins.length (lib.splitString infix text) > 1;
    hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
    hasSuffix =
      suffix: text:
      let
        start = builtins.stringLength text - builtins.stringLength suffix;
      in
      start >= 0 && builtins.substring start (-1) text == suffix;
    removeSuffix =
      suffix: text:
      if lib.hasSuffix suffix text then
        builtins.substring 0 (builtins.stringLength text - builtins.stringLength suffix) text
      else
        text;
    splitString =
      separator: text:
      builtins.filter builtins.isString (builtins.split (lib.escapeRegex separator) (toString text));
    escapeRegex = lib.escape (builtins.filter (c: c != [ ] && c != "") (builtins.split "" "\\[{()^$?*+|."));
    escape = characters: builtins.replaceStrings characters (map (c: "\\" + c) characters);
    toInt = builtins.fromJSON;
    versionAtLeast = a: b: builtins.compareVersions a b >= 0;
    versionOlder = a: b: builtins.compareVersions a b < 0;

    # Options and packages.
    throwIf = condition: message: if condition then throw message else value: value;
    mkEnableOption =
      what:
      lib.mkOption {
        type = lib.types.bool;
        default = false;
        example = true;
        description = "Whether to enable ${what}.";
      };
    getExe = package: "${package}/bin/${package.meta.mainProgram}";
    importTOML = file: builtins.fromTOML (builtins.readFile file);
    licenses.mit.spdxId = "MIT";
    fileset = {
      unions = paths: paths;
      toSource =
        { root, fileset }:
        let
          wanted = map toString fileset;
          under = a: b: lib.hasPrefix (b + "/") (a + "/");
        in
        builtins.path {
          path = root;
          name = "source";
          filter = path: _: builtins.any (one: under path one || under one path) wanted;
        };
    };
  };
in
lib
