# docs/options.md: every option of services.kennel, as Markdown.
{ lib, pkgs }:

let
  evaluated = lib.evalModules {
    modules = [ ./options.nix ];
    specialArgs = { inherit pkgs; };
  };
  all = lib.optionAttrSetToDocList evaluated.options;
  shown = lib.filter (option: option.visible && !option.internal && lib.hasPrefix "services.kennel." option.name) all;

  # Names with `<…>` are placeholders; Markdown reads the markup of NixOS descriptions but for these.
  plain = lib.replaceStrings [ "{file}`" "{option}`" "{command}`" "{manpage}`" ] [ "`" "`" "`" "`" ];
  value =
    title: option:
    let
      text = lib.removeSuffix "\n" option.text;
    in
    if lib.hasInfix "\n" text then "\n${title}:\n\n```nix\n${text}\n```\n" else "- ${title}: `${text}`\n";
  section = option: ''
    ## `${option.name}`

    ${lib.removeSuffix "\n" (plain option.description)}

    - Type: ${option.type}
    ${lib.optionalString (option ? default) (value "Default" option.default)}${
      lib.optionalString (option ? example) (value "Example" option.example)
    }'';
  tidy = text: lib.removeSuffix "\n" text + "\n";
in
tidy ''
  # Options of services.kennel

  Made from the module by `tests/nix/renew`; [nixos.md](nixos.md) shows them at work.

  ${lib.concatMapStringsSep "\n" (option: tidy (section option)) shown}''
