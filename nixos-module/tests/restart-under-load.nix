{ kennel }: { name = "kennel-restart-under-load"; nodes = {}; testScript = ""; }
