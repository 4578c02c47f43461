# The types of options that kennel's module and the stand-in for NixOS use.
lib:

let
  inherit (import ./modules.nix lib) mergeDefinitions pushDown evalModules;

  show = builtins.concatStringsSep ".";
  mergeEqual =
    location: values:
    if builtins.all (value: value == builtins.head values) values then
      builtins.head values
    else
      throw "The option `${show location}' has conflicting definition values.";
  simple =
    description: check:
    {
      inherit description check;
      merge = mergeEqual;
      subOptions = _: { };
    };
  # In a longer description, what is neither a noun nor a list of choices stands in parentheses.
  phrase =
    type: if type.isPhrase or false then "(${type.description})" else type.description;
  isStringLike = value: builtins.isString value || builtins.isPath value || value ? outPath;
  absolute = value: isStringLike value && lib.hasPrefix "/" (toString value);

  types = {
    str = simple "string" builtins.isString;
    bool = simple "boolean" builtins.isBool;
    int = simple "signed integer" builtins.isInt;
    float = simple "floating point number" builtins.isFloat;
    path = simple "absolute path" absolute;
    externalPath = simple "absolute path not in the Nix store" (
      value: builtins.isString value && absolute value && !(lib.hasPrefix builtins.storeDir value)
    );
    package = simple "package" (value: lib.isDerivation value || builtins.isPath value);
    raw = simple "raw value" (_: true);
    port =
      simple "16 bit unsigned integer; between 0 and 65535 (both inclusive)" (types.ints.between 0 65535).check;
    lines = simple "strings concatenated with \"\\n\"" builtins.isString // {
      merge = _: builtins.concatStringsSep "\n";
    };
    ints = {
      between =
        low: high:
        simple "integer between ${toString low} and ${toString high} (both inclusive)" (
          value: builtins.isInt value && value >= low && value <= high
        );
      positive = simple "positive integer, meaning >0" (value: builtins.isInt value && value > 0) // {
        isPhrase = true;
      };
    };
    enum =
      values:
      simple "one of ${lib.concatMapStringsSep ", " builtins.toJSON values}" (value: builtins.elem value values);

    nullOr = type: {
      description = "null or ${phrase type}";
      check = value: value == null || type.check value;
      merge =
        location: values:
        if builtins.all (value: value == null) values then null else type.merge location values;
      inherit (type) subOptions;
    };

    oneOf = choices: {
      description = lib.concatMapStringsSep " or " (type: type.description) choices;
      check = value: builtins.any (type: type.check value) choices;
      merge =
        location: values:
        let
          fitting = builtins.filter (type: builtins.all type.check values) choices;
        in
        if fitting == [ ] then
          throw "The option `${show location}' has definitions of different types."
        else
          (builtins.head fitting).merge location values;
      subOptions = _: { };
    };

    listOf = type: {
      description = "list of ${phrase type}";
      isPhrase = true;
      check = builtins.isList;
      emptyValue = [ ];
      merge =
        location: values:
        map (value: (mergeDefinitions (location ++ [ "*" ]) type [ value ]).value) (builtins.concatLists values);
      subOptions = location: type.subOptions (location ++ [ "*" ]);
    };

    attrsOf = type: {
      description = "attribute set of ${phrase type}";
      isPhrase = true;
      check = value: builtins.isAttrs value && !lib.isDerivation value;
      emptyValue = { };
      merge =
        location: values:
        let
          parts = builtins.concatMap pushDown values;
          names = builtins.attrNames (builtins.foldl' (a: b: a // b) { } parts);
          merged = lib.genAttrs names (
            name:
            mergeDefinitions (location ++ [ name ]) type (
              map (part: part.${name}) (builtins.filter (part: part ? ${name}) parts)
            )
          );
        in
        builtins.mapAttrs (_: one: one.value) (lib.filterAttrs (_: one: one.isDefined) merged);
      subOptions = location: type.subOptions (location ++ [ "<name>" ]);
    };

    submodule = module: rec {
      inherit (evalModules { modules = [ module ]; }) freeform;
      description = if freeform == [ ] then "submodule" else "open submodule of (${(builtins.head freeform).description})";
      isPhrase = true;
      check = value: builtins.isAttrs value || builtins.isFunction value || builtins.isPath value;
      emptyValue = { };
      merge =
        location: values:
        (evalModules {
          modules = [ module ] ++ values;
          specialArgs.name = lib.last location;
          prefix = location;
        }).config;
      subOptions =
        prefix:
        (evalModules {
          modules = [ module ];
          specialArgs.name = "<name>";
          inherit prefix;
        }).options;
    };
  };
in
types
