{ kennel }: { name = "kennel-reboot"; nodes = {}; testScript = ""; }
