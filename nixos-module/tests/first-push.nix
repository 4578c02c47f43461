{ kennel }: { name = "kennel-first-push"; nodes = {}; testScript = ""; }
