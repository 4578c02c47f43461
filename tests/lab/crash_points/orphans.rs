//! Things that bear kennel's names and that no row names, two of each kind.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::harness::databases::{Postgres, Valkey};
use crate::harness::machine;

const STATE: &str = "/var/lib/kennel";

/// Puts them there; kennel must not run.
pub(super) async fn put(store_path: &str) {
    for n in [1, 2] {
        let unit = format!("kennel-ghost-main-x@900{n}.service");
        let text = "[Service]\nExecStart=/bin/sleep infinity\nSlice=kennel-ghost.slice\n";
        fs::write(Path::new("/run/systemd/system").join(&unit), text).unwrap();
        machine::ok("systemctl", &["start", &unit]).await;
        // A version whose unit file went first.
        fs::write(format!("/run/kennel/secrets/ghost-main-y@901{n}.env"), "WORD=\"x\"\n").unwrap();
        for (dir, name) in [("services", format!("x{n}")), ("work", format!("900{n}")), ("logs", format!("900{n}"))] {
            let place = if dir == "services" { format!("{dir}/ghost/main/{name}") } else { format!("{dir}/{name}") };
            fs::create_dir_all(Path::new(STATE).join(&place).join("inside")).unwrap();
        }
        // What is left when a crash comes between a link and the directories above it.
        fs::create_dir_all(Path::new(STATE).join(format!("sites/gone/{n}"))).unwrap();
        fs::create_dir_all(Path::new(STATE).join("sites/ghost/main")).unwrap();
        symlink(store_path, Path::new(STATE).join(format!("sites/ghost/main/w{n}"))).unwrap();
        // What was not put in its place, beside what was.
        fs::create_dir_all(Path::new(STATE).join(format!("logs/.91{n}.new"))).unwrap();
        symlink(store_path, Path::new(STATE).join(format!("sites/hello/main/.web{n}.new"))).unwrap();
        symlink(store_path, Path::new(STATE).join(format!("gcroots/900{n}-ghost"))).unwrap();
        // Since 1970: that is long enough.
        fs::create_dir_all(Path::new(STATE).join(format!("trash/100{n}-ghost.main.x/inside"))).unwrap();
    }
}

/// Puts them on the servers: users with full numbers, a role without a database and one with.
pub(super) async fn put_databases(valkey: &Valkey, postgres: &Postgres) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_millis();
    for (n, number) in [(0, 30), (1, 31)] {
        let user = format!("kennel-{number}");
        valkey.ask::<()>(&["ACL", "SETUSER", &user, "on", ">x", "~*", "+@all"]).await;
        valkey.fill(number).await;
        // A name of its own each time: it stays in a row for 7 days.
        let role = format!("kennel_ghost_main_{:012x}", now + n);
        postgres.run(&format!("create role {role} login; grant {role} to kennel with admin option")).await;
        if n == 1 {
            postgres.run(&format!("create database {role} owner {role}")).await;
        }
    }
}
