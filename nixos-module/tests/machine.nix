# What any machine has to say beside kennel's part, for configurations that are only evaluated.
{
  boot.loader.grub.enable = false;
  fileSystems."/".device = "/dev/vda";
  system.stateVersion = "26.05";
}
