//! The daemon as systemd sees it: ready, reloading, ending, or giving its place to a program that has replaced it.
//!
//! A hand-over goes like this: the new program starts and reads its files; this one lets its loops and the API come to
//! their end, then lets go of rows, machine and sockets; the new one begins and becomes the unit's main process; this
//! one goes on until its last answer is out and its last WebSocket closed.

pub mod host;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use futures_util::future::OptionFuture;
use nix::unistd::geteuid;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use crate::config::{self, Config};
use crate::daemon::{Parts, RUN_DIR, Running};
use crate::deployer::Interrupt;
use crate::handover::{Draining, Predecessor, Program, Successor};
use crate::host::Machine;
use crate::host::machine::{MachineConfig, SystemdMachine};
use crate::host::remote::{self, HostClient};
use crate::sockets::Sockets;
use crate::telemetry::chain;

/// Runs the daemon until SIGTERM or SIGINT, on the sockets it was passed and those it binds itself, once `predecessor`
/// has given it its place. A reload gives that to a program that has replaced this one.
///
/// # Errors
/// When it cannot start: the file is faulty, a webhook secret is missing or empty, the state directory is in use.
pub async fn run(config_path: &Path, sockets: Sockets, predecessor: Option<Predecessor>) -> anyhow::Result<()> {
    let program = Program::running().context("cannot find kennel's own program")?;
    let config = config::load(config_path)?;
    for notice in config.notices() {
        warn!("{notice}");
    }
    let (machine, own_dir) = reach_machine(&config, &program).await?;
    let parts = Parts {
        machine,
        own_dir,
        socket: Path::new(RUN_DIR).join("kennel.sock"),
        sockets,
        store_dir: PathBuf::from("/nix/store"),
        interrupt: Interrupt::never(),
    };
    let mut earlier = match predecessor {
        Some(predecessor) => {
            // What could fail does so while the other one can still go on.
            Running::rehearse(&config).await?;
            Some(predecessor.may_begin().await?)
        }
        None => None,
    };
    let mut running = Running::start(config, parts).await?;
    let mut signals = Signals::listen()?;
    match &mut earlier {
        // It tells systemd.
        Some(earlier) => earlier.served().await,
        None => tell(&[NotifyState::Ready])?,
    }
    match serve(&running, config_path, &program, &mut signals).await? {
        None => {
            tell(&[NotifyState::Stopping])?;
            stop(running, earlier).await;
        }
        Some(mut successor) => {
            running.leave().await;
            successor.begin().await.context("the new program did not take over")?;
            tell(&[NotifyState::MainPid(successor.pid), NotifyState::Ready])?;
            info!("Gave its place to process {}; what has begun goes on here", successor.pid);
            tokio::select! {
                () = drained(&mut running, &mut earlier) => {}
                () = successor.wants_the_end() => {}
                () = signals.end() => {}
            }
            stop(running, earlier).await;
            // The other one waits for the end of this process, which is what closes the connection.
            std::mem::forget(successor);
        }
    }
    Ok(())
}

/// The machine, through `kennel host` unless this process is root's and does all by itself; and the directory of what is
/// the daemon's own: the state directory itself, unless that has been divided.
async fn reach_machine(config: &Config, program: &Program) -> anyhow::Result<(Arc<dyn Machine>, PathBuf)> {
    let own_dir = remote::own_dir(&config.state_dir);
    if !geteuid().is_root() {
        return Ok((Arc::new(HostClient::connect(Path::new(remote::SOCKET)).await?), own_dir));
    }
    let machine = Arc::new(SystemdMachine::connect(machine_config(config, program)).await?);
    if !own_dir.exists() {
        return Ok((machine, config.state_dir.clone()));
    }
    remote::estate::take_back(&config.state_dir).with_context(|| format!("cannot take {}", own_dir.display()))?;
    Ok((machine, own_dir))
}

/// What the operator decides about the machine.
fn machine_config(config: &Config, program: &Program) -> MachineConfig {
    MachineConfig {
        state_dir: config.state_dir.clone(),
        run_dir: RUN_DIR.into(),
        unit_dir: config.systemd.unit_dir.clone(),
        exe: program.path().to_owned(),
        memory_max_bytes: config.builder.memory_max_bytes,
        tasks_max: config.builder.tasks_max,
        ..MachineConfig::default()
    }
}

/// Serves until it is time to end, or until another program is ready to take over.
async fn serve(
    running: &Running,
    config_path: &Path,
    program: &Program,
    signals: &mut Signals,
) -> anyhow::Result<Option<Successor>> {
    loop {
        match signals.next().await {
            Asked::End => return Ok(None),
            Asked::Reload => {}
        }
        tell(&[NotifyState::Reloading, NotifyState::monotonic_usec_now().context("cannot read the clock")?])?;
        if let Some(newer) = program.replacement() {
            match Successor::start(newer, config_path, running.sockets()).await {
                Ok(successor) => return Ok(Some(successor)),
                Err(err) => error!(
                    error = %chain(&*err),
                    "Kept the old program: {} did not start: {}", newer.display(), chain(&*err)
                ),
            }
        }
        match running.reload(config_path).await {
            Ok(()) => info!("Read {} again", config_path.display()),
            Err(err) => error!(error = %chain(&*err), "Kept the old configuration: {}", chain(&*err)),
        }
        tell(&[NotifyState::Ready])?;
    }
}

/// Returns when nothing is left of what this process and those before it had begun.
async fn drained(running: &mut Running, earlier: &mut Option<Draining>) {
    running.drained().await;
    OptionFuture::from(earlier.as_mut().map(Draining::gone)).await;
}

/// Ends this process's work, and at the same time that of those before it.
async fn stop(running: Running, mut earlier: Option<Draining>) {
    tokio::join!(running.stop(), OptionFuture::from(earlier.as_mut().map(Draining::end)));
}

fn tell(state: &[NotifyState<'_>]) -> anyhow::Result<()> {
    sd_notify::notify(state).with_context(|| {
        let state: String = state.iter().map(|state| format!(" {state}")).collect();
        format!("cannot tell systemd:{state}")
    })
}

/// What a signal asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Reload,
    End,
}

/// The signals that ask for something.
struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.term.recv() => Asked::End,
            _ = self.int.recv() => Asked::End,
            _ = self.hup.recv() => Asked::Reload,
        }
    }

    async fn end(&mut self) {
        while self.next().await != Asked::End {}
    }
}
