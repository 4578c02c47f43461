//! Setting up: what the operator decides about the machine, the directories there have to be, the way to systemd.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::chown;
use std::path::PathBuf;

use nix::unistd::{Group, User};

use super::layout::Layout;
use super::render::build::BuildLimits;
use super::systemd::Steady;
use super::{Fault, SystemdMachine};
use crate::host::{HostError, files};

/// What the operator decides about the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineConfig {
    /// What outlives a reboot: `/var/lib/kennel`. It has to lie below `/var/lib`.
    pub state_dir: PathBuf,
    /// What does not: `/run/kennel`.
    pub run_dir: PathBuf,
    /// Where units of deployments are written: `/run/systemd/system`.
    pub unit_dir: PathBuf,
    /// The kennel binary, for `build-worker`.
    pub exe: PathBuf,
    /// The user builds run as: `kennel-build`.
    pub build_user: String,
    /// The group that may read build logs: `kennel`. Nobody else may when there is no such group.
    pub log_group: String,
    /// Variables of build units, such as the daemon's own `PATH`, so that the worker finds `nix` and `git`.
    pub build_env: BTreeMap<String, String>,
    /// How much memory one build may use.
    pub memory_max_bytes: u64,
    /// How many processes and threads one build may have.
    pub tasks_max: u64,
}

impl Default for MachineConfig {
    fn default() -> Self {
        let path = std::env::var("PATH").ok().map(|path| ("PATH".to_owned(), path));
        Self {
            state_dir: "/var/lib/kennel".into(),
            run_dir: "/run/kennel".into(),
            unit_dir: "/run/systemd/system".into(),
            exe: std::env::current_exe().unwrap_or_else(|_| "/usr/bin/kennel".into()),
            build_user: "kennel-build".to_owned(),
            log_group: "kennel".to_owned(),
            build_env: path.into_iter().collect(),
            memory_max_bytes: 4 << 30,
            tasks_max: 1024,
        }
    }
}

impl SystemdMachine {
    /// Connects to systemd and makes the base directories.
    ///
    /// # Errors
    /// When a path of `config` cannot be used, there is no build user, or no system bus.
    pub async fn connect(config: MachineConfig) -> Result<Self, HostError> {
        let setting_up = |fault: Fault| HostError::new("set up this machine for kennel", fault);
        let layout = Layout { state_dir: config.state_dir, run_dir: config.run_dir, unit_dir: config.unit_dir };
        layout.check().map_err(|error| setting_up(error.into()))?;
        let user = User::from_name(&config.build_user)
            .map_err(|error| setting_up(error.into()))?
            .ok_or_else(|| setting_up(format!("there is no user `{}` for builds", config.build_user).into()))?;
        let group = Group::from_name(&config.log_group).map_err(|error| setting_up(error.into()))?;
        let limits = BuildLimits {
            exe: config.exe,
            user: config.build_user,
            env: config.build_env,
            memory_max_bytes: config.memory_max_bytes,
            tasks_max: config.tasks_max,
        };
        let log_gid = group.map(|group| group.gid.as_raw());
        ensure_base_dirs(&layout, log_gid).map_err(|error| setting_up(error.into()))?;
        let systemd = Steady::connect().await.map_err(setting_up)?;
        let build_ids = (user.uid.as_raw(), user.gid.as_raw());
        Ok(Self { layout, limits, build_ids, log_gid, systemd })
    }
}

fn ensure_base_dirs(layout: &Layout, log_gid: Option<u32>) -> io::Result<()> {
    files::ensure_dir(&layout.unit_dir, 0o755)?;
    files::ensure_dir(&layout.run_dir, 0o755)?;
    files::ensure_dir(&layout.secrets_dir(), 0o700)?;
    files::ensure_dir(&layout.state_dir, 0o755)?;
    files::ensure_dir(&layout.sites_dir(), 0o755)?;
    files::ensure_dir(&layout.gc_roots_dir(), 0o755)?;
    files::ensure_dir(&layout.work_dirs(), 0o700)?;
    files::ensure_dir(&layout.log_dirs(), 0o750)?;
    chown(layout.log_dirs(), Some(0), log_gid)
}
