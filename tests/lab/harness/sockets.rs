//! kennel's listening sockets in systemd's hands, as `systemd/kennel.socket` has it.

use std::fs;
use std::path::Path;

use super::{ROUTER, machine};

const UNIT: &str = "/etc/systemd/system/kennel.socket";

/// Has systemd hold the sockets from kennel's next start on, and these as well.
pub(crate) async fn hold(more: &[&str]) {
    let unit = fs::read_to_string("/lab/source/systemd/kennel.socket").unwrap();
    assert!(unit.contains("ListenStream=0.0.0.0:80\n"), "the unit listens where kennel does by default");
    let more: String = more.iter().map(|address| format!("ListenStream={address}\n")).collect();
    let unit = unit.replace("ListenStream=0.0.0.0:80\n", &format!("ListenStream={ROUTER}\n{more}"));
    fs::write(UNIT, unit).unwrap();
    machine::ok("systemctl", &["daemon-reload"]).await;
    // Sockets cannot be passed to a service that runs.
    machine::ok("systemctl", &["stop", "kennel.service", "kennel.socket"]).await;
    machine::ok("systemctl", &["start", "kennel.socket"]).await;
}

/// Undoes [`hold`], for whoever ends kennel.
pub(crate) async fn let_go() {
    if Path::new(UNIT).exists() {
        machine::ok("systemctl", &["stop", "kennel.socket", "kennel.service"]).await;
        fs::remove_file(UNIT).unwrap();
        machine::ok("systemctl", &["daemon-reload"]).await;
    }
}
