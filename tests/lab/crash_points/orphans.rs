//! Things that bear kennel's names and that no row names, two of each kind.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

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
        fs::create_dir_all(Path::new(STATE).join("sites/ghost/main")).unwrap();
        symlink(store_path, Path::new(STATE).join(format!("sites/ghost/main/w{n}"))).unwrap();
        symlink(store_path, Path::new(STATE).join(format!("gcroots/900{n}-ghost"))).unwrap();
    }
}
