//! An ssh server of a test's own on this machine, with keys made for it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::{machine, until};

/// Empties a directory, and makes keys of these names there; a server's own is `host`.
pub(crate) async fn make_keys(dir: &str, names: &[&str]) {
    if Path::new(dir).exists() {
        fs::remove_dir_all(dir).unwrap();
    }
    fs::create_dir_all(dir).unwrap();
    for name in names {
        let path = format!("{dir}/{name}");
        machine::ok("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", &path]).await;
    }
}

/// Writes a file of known hosts that holds one of the keys, for a server on this port.
pub(crate) fn pin(dir: &str, file: &str, key: &str, port: u16) {
    let key = fs::read_to_string(format!("{dir}/{key}.pub")).unwrap();
    fs::write(format!("{dir}/{file}"), format!("[127.0.0.1]:{port} {key}")).unwrap();
}

/// Starts the server, with settings for who may come in. It ends when this is dropped.
pub(crate) async fn serve(dir: &str, port: u16, settings: &[&str]) -> Child {
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {dir}/host\nUsePAM no\nPidFile none\n{}\n",
        settings.join("\n")
    );
    let file = format!("{dir}/sshd_config");
    fs::write(&file, config).unwrap();
    fs::create_dir_all("/run/sshd").unwrap();
    let server = Command::new("/usr/sbin/sshd")
        .args(["-D", "-f", &file])
        .kill_on_drop(true)
        .spawn()
        .expect("the machine has an ssh server");
    until("the ssh server listens", Duration::from_secs(5), async || {
        TcpStream::connect(("127.0.0.1", port)).await.ok()
    })
    .await;
    server
}
