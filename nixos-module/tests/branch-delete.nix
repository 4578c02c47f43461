{ kennel }: { name = "kennel-branch-delete"; nodes = {}; testScript = ""; }
