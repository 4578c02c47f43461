//! The process of root's as systemd sees it: does to this machine what the daemon asks for over a socket.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use nix::unistd::User;
use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{Signals, machine_config, tell};
use crate::config;
use crate::handover::Program;
use crate::host::machine::SystemdMachine;
use crate::host::remote::{self, Guard, Peers, estate};
use crate::sockets::Sockets;

/// Answers the daemon, which runs as `user`, until SIGTERM or SIGINT, on the socket it was passed.
///
/// # Errors
/// When it cannot start: the file is faulty, there is no such user, it was not passed its socket.
pub async fn run(config_path: &Path, user: &str, mut sockets: Sockets) -> anyhow::Result<()> {
    let program = Program::running().context("cannot find kennel's own program")?;
    let config = config::load(config_path)?;
    let daemon =
        User::from_name(user)?.with_context(|| format!("there is no user `{user}`, whom the daemon runs as"))?;
    let socket = Path::new(remote::SOCKET);
    let listener = sockets.unix(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    let listener = listener.with_context(|| {
        format!("was not passed {}\nhint: systemctl start kennel-host.socket starts it", socket.display())
    })?;
    let machine = SystemdMachine::connect(machine_config(&config, &program)).await?;
    let (state_dir, uid, gid) = (config.state_dir.clone(), daemon.uid.as_raw(), daemon.gid.as_raw());
    tokio::task::spawn_blocking(move || estate::settle(&state_dir, uid, gid)).await??;
    let guard = Arc::new(Guard::new(Arc::new(machine), config_path, &config.state_dir).await?);
    let mut signals = Signals::listen()?;
    let shutdown = CancellationToken::new();
    tell(&[NotifyState::Ready])?;
    info!("kennel host does what user {uid} (`{user}`) asks for over {}", socket.display());
    let peers = Peers { daemon: uid };
    let serving = remote::serve(listener, guard, peers, || program.replacement().is_some(), shutdown.clone());
    tokio::pin!(serving);
    tokio::select! {
        () = &mut serving => {}
        () = signals.end() => {
            tell(&[NotifyState::Stopping])?;
            shutdown.cancel();
            serving.await;
        }
    }
    Ok(())
}
