//! kennel in two: the daemon as a user of its own, and `kennel host` for what needs root, by the units of systemd/.

use std::fs;
use std::path::{Path, PathBuf};

use super::leftovers::STATE;
use super::{ROUTER, machine};

/// Where the shipped units are.
const SHIPPED: &str = "/lab/source/systemd";
const UNITS: &str = "/etc/systemd/system";
const HOST_UNITS: [&str; 2] = ["kennel-host.socket", "kennel-host.service"];
/// What makes one process of root's of it.
const ONE_PROCESS: &str = "one-process.conf";
const DROP_IN: &str = "/run/systemd/system/kennel.service.d";
/// Where the URLs of databases are.
const DATABASES: &str = "/srv/databases";
/// Whom the daemon runs as.
pub(crate) const USER: &str = "kennel";

/// Whether all tests are to run on one process of root's instead.
pub(super) fn is_unwanted() -> bool {
    std::env::var_os("KENNEL_ONE_PROCESS").is_some()
}

/// Whether kennel's next start is in two.
pub(crate) fn is_installed() -> bool {
    Path::new(UNITS).join(HOST_UNITS[0]).exists()
}

/// Installs it, for kennel's next start. The daemon binds its ports by itself, so that it is not started by visitors.
pub(crate) async fn install() {
    if !machine::run("id", &[USER]).await.status.success() {
        let user = ["--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"];
        machine::ok("useradd", &[&user[..], &["--gid", "kennel", "--groups", "nix-users", USER]].concat()).await;
    }
    // What was written before there was a user to give it to.
    for name in machine::names(Path::new(DATABASES)).iter().filter(|name| name.ends_with("-url")) {
        machine::ok("chown", &[USER, &format!("{DATABASES}/{name}")]).await;
    }
    for name in HOST_UNITS {
        fs::copy(Path::new(SHIPPED).join(name), Path::new(UNITS).join(name)).unwrap();
    }
    let socket = fs::read_to_string(Path::new(SHIPPED).join("kennel.socket")).unwrap();
    let unix = socket.lines().filter(|line| !line.starts_with("ListenStream=") || line.ends_with(".sock"));
    let unix: Vec<_> = unix.collect();
    assert!(!unix.concat().contains(&ROUTER.port().to_string()), "the ports are the daemon's");
    fs::write(Path::new(UNITS).join("kennel.socket"), unix.join("\n")).unwrap();
    let _ = fs::remove_file(Path::new(DROP_IN).join(ONE_PROCESS));
    machine::ok("systemctl", &["daemon-reload"]).await;
}

/// Has kennel's next start be that of one process of root's; kennel does not run.
pub(crate) async fn merge() {
    super::sockets::let_go().await;
    remove().await;
    fs::create_dir_all(DROP_IN).unwrap();
    fs::copy(Path::new(SHIPPED).join(ONE_PROCESS), Path::new(DROP_IN).join(ONE_PROCESS)).unwrap();
    machine::ok("systemctl", &["daemon-reload"]).await;
}

/// Ends the sockets that systemd holds for it, as a reboot does; kennel does not run.
pub(crate) async fn stop_sockets() {
    if is_installed() {
        machine::ok("systemctl", &["stop", "kennel.socket", HOST_UNITS[0]]).await;
    }
}

/// Undoes [`install`]; kennel does not run.
pub(crate) async fn remove() {
    if is_installed() {
        machine::ok("systemctl", &[&["stop"], &HOST_UNITS[..]].concat()).await;
        let _ = machine::run("systemctl", &["reset-failed", "kennel-host.service"]).await;
        for name in HOST_UNITS {
            fs::remove_file(Path::new(UNITS).join(name)).unwrap();
        }
    }
}

/// The directory of what is the daemon's own.
pub(crate) fn own_dir() -> PathBuf {
    let own = Path::new(STATE).join("daemon");
    if own.exists() { own } else { PathBuf::from(STATE) }
}

/// Whose it is.
pub(crate) fn owner() -> &'static str {
    if is_installed() { USER } else { "root" }
}

/// kennel's database.
pub(crate) fn database() -> PathBuf {
    own_dir().join("kennel.db")
}
