# The module system in small: options, priorities, conditions, free-form settings, documentation.
lib:

let
  property = type: content: { _type = type; } // content;
  isProperty = type: value: builtins.isAttrs value && value._type or null == type;
  isOption = isProperty "option";

  mkOption = attributes: property "option" attributes;
  mkIf = condition: content: property "if" { inherit condition content; };
  mkMerge = contents: property "merge" { inherit contents; };
  mkOverride = priority: content: property "override" { inherit priority content; };
  priorities = {
    force = 50;
    plain = 100;
    default = 1000;
    option = 1500;
  };

  show = builtins.concatStringsSep ".";

  # A definition's parts, conditions and all, one for each set it is made of.
  pushDown =
    definition:
    if isProperty "merge" definition then
      builtins.concatMap pushDown definition.contents
    else if isProperty "if" definition then
      map (builtins.mapAttrs (_: mkIf definition.condition)) (pushDown definition.content)
    else if isProperty "override" definition then
      map (builtins.mapAttrs (_: mkOverride definition.priority)) (pushDown definition.content)
    else
      [ definition ];

  # The values of a definition whose conditions hold, each with its priority.
  discharge =
    definition:
    if isProperty "merge" definition then
      builtins.concatMap discharge definition.contents
    else if isProperty "if" definition then
      if definition.condition then discharge definition.content else [ ]
    else if isProperty "override" definition then
      map (value: value // { inherit (definition) priority; }) (discharge definition.content)
    else
      [
        {
          priority = priorities.plain;
          value = definition;
        }
      ];

  # The values that count: those of the highest priority, which is the lowest number.
  settle =
    definitions:
    let
      values = builtins.concatMap discharge definitions;
      highest = builtins.foldl' (least: one: if one.priority < least then one.priority else least) 9999 values;
    in
    {
      inherit highest;
      values = map (one: one.value) (builtins.filter (one: one.priority == highest) values);
    };

  # What definitions come to in a type.
  mergeDefinitions =
    location: type: definitions:
    let
      settled = settle definitions;
      wrong = builtins.filter (value: !type.check value) settled.values;
    in
    {
      inherit (settled) highest;
      isDefined = settled.values != [ ];
      value =
        if wrong != [ ] then
          throw "A definition for option `${show location}' is not of type `${type.description}'."
        else if settled.values != [ ] then
          type.merge location settled.values
        else if type ? emptyValue then
          type.emptyValue
        else
          throw "The option `${show location}' was accessed but has no value defined. Try setting the option.";
    };

  evaluateOption =
    location: option: definitions:
    let
      byDefault = lib.optionals (option ? default) [ (mkOverride priorities.option option.default) ];
      merged = mergeDefinitions location option.type (definitions ++ byDefault);
      value = if definitions != [ ] && option.readOnly or false && builtins.length (settle definitions).values > 1 then
        throw "The option `${show location}' is read-only, but it's set multiple times."
      else
        merged.value;
    in
    option
    // {
      inherit location value;
      inherit (merged) isDefined;
      highestPrio = merged.highest;
    };

  # Lays definitions over declarations; `unmatched` are those that no option was declared for.
  mergeTree =
    location: declarations: definitions:
    let
      parts = builtins.concatMap pushDown definitions;
      declared = builtins.foldl' lib.recursiveUpdate { } declarations;
      under = name: map (part: part.${name}) (builtins.filter (part: part ? ${name}) parts);
      branches = builtins.mapAttrs (
        name: branch:
        let
          here = location ++ [ name ];
        in
        if isOption branch then
          rec {
            options = evaluateOption here branch (under name);
            config = options.value;
            unmatched = [ ];
          }
        else
          mergeTree here [ branch ] (under name)
      ) declared;
      strangers = builtins.concatMap (
        part:
        map (name: {
          path = [ name ];
          value = part.${name};
        }) (builtins.filter (name: !(declared ? ${name})) (builtins.attrNames part))
      ) parts;
    in
    {
      options = builtins.mapAttrs (_: branch: branch.options) branches;
      config = builtins.mapAttrs (_: branch: branch.config) branches;
      unmatched =
        strangers
        ++ builtins.concatLists (
          lib.mapAttrsToList (
            name: branch: map (one: one // { path = [ name ] ++ one.path; }) branch.unmatched
          ) branches
        );
    };

  evalModules =
    {
      modules,
      specialArgs ? { },
      prefix ? [ ],
    }:
    let
      known = {
        inherit config lib options;
      }
      // specialArgs;
      load =
        module:
        let
          read = if builtins.isPath module || builtins.isString module then import module else module;
          named = builtins.mapAttrs (name: _: known.${name}) (
            lib.filterAttrs (name: optional: !optional || known ? ${name}) (builtins.functionArgs read)
          );
          body = if builtins.isFunction read then read (known // named) else read;
          structured = body ? config || body ? options;
          own = {
            options = body.options or { };
            config =
              if structured then
                body.config or { }
              else
                builtins.removeAttrs body [
                  "imports"
                  "freeformType"
                ];
            freeform = lib.optionals (body ? freeformType) [ body.freeformType ];
          };
        in
        builtins.concatMap load (body.imports or [ ]) ++ [ own ];
      loaded = builtins.concatMap load modules;
      freeform = builtins.concatMap (module: module.freeform) loaded;
      merged = mergeTree prefix (map (module: module.options) loaded) (map (module: module.config) loaded);
      free = (builtins.head freeform).merge prefix (
        map (one: lib.setAttrByPath one.path one.value) merged.unmatched
      );
      options = merged.options;
      config =
        if merged.unmatched == [ ] then
          merged.config
        else if freeform == [ ] then
          throw "The option `${show (prefix ++ (builtins.head merged.unmatched).path)}' does not exist."
        else
          lib.recursiveUpdate free merged.config;
    in
    {
      inherit config freeform options;
    };

  # Every option below a tree of them, with those of submodules, for documentation.
  optionAttrSetToDocList =
    options:
    builtins.concatLists (
      lib.mapAttrsToList (
        _: option:
        if isOption option then
          [
            (
              {
                name = show option.location;
                description = option.description or "";
                type = option.type.description;
                internal = option.internal or false;
                visible = option.visible or true;
              }
              // lib.optionalAttrs (option ? default) {
                default = option.defaultText or (rendered option.default);
              }
              // lib.optionalAttrs (option ? example) {
                example = rendered option.example;
              }
            )
          ]
          ++ optionAttrSetToDocList (option.type.subOptions option.location)
        else
          optionAttrSetToDocList option
      ) options
    );
  rendered = value: if isProperty "literalExpression" value then value else literalExpression (pretty "" value);
  literalExpression = text: property "literalExpression" { inherit text; };

  # A value as Nix would read it.
  pretty =
    indent: value:
    let
      deeper = indent + "  ";
      lines = open: close: items: "${open}\n${lib.concatMapStringsSep "\n" (item: deeper + item) items}\n${indent}${close}";
    in
    if value == null then
      "null"
    else if builtins.isList value then
      if value == [ ] then "[ ]" else lines "[" "]" (map (pretty deeper) value)
    else if builtins.isAttrs value then
      if value == { } then "{ }" else lines "{" "}" (lib.mapAttrsToList (name: one: "${name} = ${pretty deeper one};") value)
    else
      builtins.toJSON value;
in
{
  inherit
    evalModules
    literalExpression
    mergeDefinitions
    mkIf
    mkMerge
    mkOption
    mkOverride
    optionAttrSetToDocList
    pushDown
    ;
  mkForce = mkOverride priorities.force;
  mkDefault = mkOverride priorities.default;
  mkOptionDefault = mkOverride priorities.option;
}
