//! systemd over D-Bus: start, stop, watch and list units.
//!
//! One task owns the connection and reads its signals, so that no caller can hold them up; when the bus goes
//! away it connects again. **Invariant:** a signal only makes an answer come sooner; whoever waits also looks
//! at the state now and then.

mod ending;
mod jobs;
mod proxies;
mod steady;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryFutureExt as _, future::try_join3};
use tokio::sync::{Mutex, RwLock, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};
use zbus::message::Type as MessageType;
use zbus::proxy::CacheProperties;
use zbus::{Connection, MatchRule, MessageStream, ObjectPath, OwnedObjectPath};

use self::ending::{Seen, ending};
use self::jobs::Jobs;
use self::proxies::{JobRemovedStream, ManagerProxy, ServiceProxy, UnitProxy};
pub(super) use self::steady::Steady;
use super::Fault;
use super::render::build::Property;
use crate::host::UnitState;
use crate::model::UnitName;

const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
/// How often whoever waits looks for itself.
const LOOK: Duration = Duration::from_secs(5);
/// How long a job may take: longer than any unit of ours may take to start or stop.
const JOB_MAX: Duration = Duration::from_secs(60);
/// How long the bus may be away before callers are told.
const RECONNECT_MAX: Duration = Duration::from_secs(5);

/// Why a job did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum JobError {
    #[error("systemd's job ended as `{job}`, the unit as `{unit}`")]
    Failed { job: String, unit: String },
    #[error("the unit is still {0:?} after its job has ended")]
    StillThere(UnitState),
    #[error("processes are left: {0:?}")]
    ProcessesLeft(Vec<u32>),
    #[error("systemd did not finish its job within {} s", JOB_MAX.as_secs())]
    TimedOut,
    #[error("no connection to the system bus")]
    NoBus,
}

/// A connection and the manager at its other end.
#[derive(Debug, Clone)]
struct Link {
    connection: Connection,
    manager: ManagerProxy<'static>,
}

impl Link {
    /// Connects; signals flow from here on.
    async fn connect() -> zbus::Result<(Self, JobRemovedStream)> {
        let connection = Connection::system().await?;
        let manager = ManagerProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?;
        let removed = manager.receive_job_removed().await?;
        manager.subscribe().await?;
        Ok((Self { connection, manager }, removed))
    }

    async fn unit(&self, path: &OwnedObjectPath) -> zbus::Result<UnitProxy<'static>> {
        let builder = UnitProxy::builder(&self.connection).path(path.clone());
        builder.cache_properties(CacheProperties::No).build().await
    }

    async fn service(&self, path: &OwnedObjectPath) -> zbus::Result<ServiceProxy<'static>> {
        let builder = ServiceProxy::builder(&self.connection).path(path.clone());
        builder.cache_properties(CacheProperties::No).build().await
    }

    /// How the service ended, last time it did.
    async fn ending(&self, path: &OwnedObjectPath) -> zbus::Result<String> {
        let service = self.service(path).await?;
        let (result, code, status) =
            try_join3(service.result(), service.exec_main_code(), service.exec_main_status()).await?;
        Ok(ending(&result, code, status))
    }

    /// Every change of one unit's properties.
    async fn changes(&self, path: &OwnedObjectPath) -> zbus::Result<MessageStream> {
        let rule = MatchRule::builder()
            .msg_type(MessageType::Signal)
            .sender("org.freedesktop.systemd1")
            .interface("org.freedesktop.DBus.Properties")
            .member("PropertiesChanged")
            .path(ObjectPath::from(path.clone()))
            .build()?;
        MessageStream::for_match_rule(rule, &self.connection, None).await
    }
}

/// systemd, as far as kennel deals with it.
#[derive(Debug)]
pub(super) struct Systemd {
    link: watch::Receiver<Option<Link>>,
    jobs: Arc<Jobs>,
    reloading: Mutex<()>,
    /// Held while units start, so that no slice is taken for empty that is about to be used.
    starting: RwLock<()>,
    /// Ends the reading of signals when this goes.
    _reader: JoinSet<()>,
}

impl Systemd {
    /// Connects to the system bus.
    pub(super) async fn connect() -> Result<Self, Fault> {
        let (link, removed) = Link::connect().await?;
        let (sender, link) = watch::channel(Some(link));
        let jobs = Arc::new(Jobs::default());
        let mut reader = JoinSet::new();
        reader.spawn(read_signals(sender, removed, Arc::clone(&jobs)));
        Ok(Self { link, jobs, reloading: Mutex::new(()), starting: RwLock::new(()), _reader: reader })
    }

    async fn link(&self) -> Result<Link, Fault> {
        let mut link = self.link.clone();
        match timeout(RECONNECT_MAX, link.wait_for(Option::is_some)).await {
            Ok(Ok(link)) => link.clone().ok_or(JobError::NoBus.into()),
            _ => Err(JobError::NoBus.into()),
        }
    }

    /// Asks for a job and waits for that very job to end. `Err` of the inner result is systemd's refusal.
    async fn job(
        &self,
        unit: &str,
        ask: impl Future<Output = zbus::Result<OwnedObjectPath>>,
    ) -> Result<zbus::Result<Option<String>>, Fault> {
        let asking = self.jobs.ask();
        let mut waiting = match ask.await {
            Ok(path) => asking.job(path.as_str()),
            Err(error) => return Ok(Err(error)),
        };
        let deadline = Instant::now() + JOB_MAX;
        while Instant::now() < deadline {
            tokio::select! {
                result = waiting.result() => return Ok(Ok(Some(result))),
                () = sleep(LOOK) => if !self.has_job(unit).await? { return Ok(Ok(None)) },
            }
        }
        Err(JobError::TimedOut.into())
    }

    async fn has_job(&self, unit: &str) -> Result<bool, Fault> {
        let link = self.link().await?;
        match link.manager.get_unit(unit).await {
            Ok(path) => Ok(link.unit(&path).await?.job().await?.0 != 0),
            Err(error) if is(&error, NO_SUCH_UNIT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Starts a unit that has a file, unless it runs.
    pub(super) async fn start(&self, unit: &UnitName) -> Result<(), Fault> {
        let _starting = self.starting.read().await;
        let link = self.link().await?;
        let path = link.manager.load_unit(unit.as_str()).await?;
        if link.unit(&path).await?.need_daemon_reload().await? {
            self.reload(&link, &path).await?;
        }
        let ended = self.job(unit.as_str(), link.manager.start_unit(unit.as_str(), "replace")).await??;
        self.expect_started(unit, ended).await
    }

    /// Has systemd read its units again: it knows an older version of this one. New units need none of this.
    async fn reload(&self, link: &Link, path: &OwnedObjectPath) -> Result<(), Fault> {
        let _one_at_a_time = self.reloading.lock().await;
        if link.unit(path).await?.need_daemon_reload().await? {
            link.manager.reload().await?;
        }
        Ok(())
    }

    async fn expect_started(&self, unit: &UnitName, ended: Option<String>) -> Result<(), Fault> {
        if ended.as_deref() == Some("done") {
            return Ok(());
        }
        let unit = match self.state(unit).await? {
            UnitState::Active { .. } if ended.is_none() => return Ok(()),
            UnitState::Dead { result } | UnitState::Restarting { result } => result,
            other => format!("{other:?}"),
        };
        Err(JobError::Failed { job: ended.unwrap_or_else(|| "unknown".to_owned()), unit }.into())
    }

    /// Starts a transient unit, unless it runs.
    pub(super) async fn start_transient(&self, unit: &UnitName, properties: &[Property]) -> Result<(), Fault> {
        let link = self.link().await?;
        let ask = || link.manager.start_transient_unit(unit.as_str(), "fail", properties, &[]);
        let ended = match self.job(unit.as_str(), ask()).await? {
            Err(error) if is(&error, UNIT_EXISTS) => {
                if !matches!(self.state(unit).await?, UnitState::Dead { .. } | UnitState::Absent) {
                    return Ok(());
                }
                // A failure that systemd remembers is in the way of the name.
                self.forget(unit).await?;
                self.job(unit.as_str(), ask()).await??
            }
            other => other?,
        };
        match self.expect_started(unit, ended).await {
            // It may have come to its end before we looked.
            Err(_) if matches!(self.state(unit).await?, UnitState::Absent) => Ok(()),
            other => other,
        }
    }

    /// Stops a unit, and returns when none of its processes is left.
    pub(super) async fn stop(&self, unit: &UnitName) -> Result<(), Fault> {
        let link = self.link().await?;
        match self.job(unit.as_str(), link.manager.stop_unit(unit.as_str(), "replace")).await? {
            Err(error) if is(&error, NO_SUCH_UNIT) => return Ok(()),
            other => other?,
        };
        match self.state(unit).await? {
            UnitState::Dead { .. } | UnitState::Absent => {}
            other => return Err(JobError::StillThere(other).into()),
        }
        match link.manager.get_unit_processes(unit.as_str()).await {
            Ok(processes) if processes.is_empty() => Ok(()),
            Ok(processes) => Err(JobError::ProcessesLeft(processes.iter().map(|process| process.1).collect()).into()),
            Err(error) if is(&error, NO_SUCH_UNIT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Has systemd forget that a unit failed, so that it forgets the unit.
    pub(super) async fn forget(&self, unit: &UnitName) -> Result<(), Fault> {
        match self.link().await?.manager.reset_failed_unit(unit.as_str()).await {
            Err(error) if !is(&error, NO_SUCH_UNIT) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Stops the slices that `ours` says yes to and no unit is in: systemd keeps them once they were used.
    pub(super) async fn stop_empty_slices(&self, ours: impl Fn(&str) -> bool) -> Result<(), Fault> {
        // Stopping a slice stops all that is in it.
        let _nothing_starts = self.starting.write().await;
        let link = self.link().await?;
        let rows = link.manager.list_units_by_patterns(&["active"], &["kennel-*.slice"]).await?;
        for row in rows.iter().filter(|row| ours(&row.0)) {
            if link.unit(&row.6).await?.slice_of().await?.is_empty() {
                self.job(&row.0, link.manager.stop_unit(&row.0, "replace")).await??;
            }
        }
        Ok(())
    }

    /// What systemd says of a unit.
    pub(super) async fn state(&self, unit: &UnitName) -> Result<UnitState, Fault> {
        let link = self.link().await?;
        let path = match link.manager.get_unit(unit.as_str()).await {
            Err(error) if is(&error, NO_SUCH_UNIT) => return Ok(UnitState::Absent),
            other => other?,
        };
        let unit = link.unit(&path).await?;
        let (load, active, sub) = try_join3(unit.load_state(), unit.active_state(), unit.sub_state()).await?;
        Ok(match active.as_str() {
            _ if sub.contains("auto-restart") => UnitState::Restarting { result: link.ending(&path).await? },
            "active" | "reloading" | "refreshing" => {
                UnitState::Active { pid: link.service(&path).and_then(async |s| s.main_pid().await).await? }
            }
            "activating" => UnitState::Activating,
            "deactivating" => UnitState::Deactivating,
            _ if load == "not-found" => UnitState::Absent,
            _ => UnitState::Dead { result: link.ending(&path).await? },
        })
    }

    /// Returns once the unit does not run.
    pub(super) async fn wait(&self, unit: &UnitName) -> Result<UnitState, Fault> {
        let mut seen = Seen::default();
        loop {
            let link = self.link().await?;
            let path = match link.manager.get_unit(unit.as_str()).await {
                Err(error) if is(&error, NO_SUCH_UNIT) => return Ok(seen.or(UnitState::Absent)),
                other => other?,
            };
            let mut changes = link.changes(&path).await?;
            // Only now: what happens from here on is told.
            loop {
                let state = self.state(unit).await?;
                if matches!(state, UnitState::Dead { .. } | UnitState::Absent) {
                    return Ok(seen.or(state));
                }
                let look = sleep(LOOK);
                tokio::pin!(look);
                let heard = loop {
                    tokio::select! {
                        () = &mut look => break true,
                        change = changes.next() => match change {
                            Some(Ok(change)) => if let Some(state) = seen.take_in(&change) { return Ok(state) },
                            Some(Err(_)) | None => break false,
                        },
                    }
                };
                if !heard {
                    break;
                }
            }
            // The bus went away. Give the reader a moment to notice.
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// All loaded units that match one of the patterns.
    pub(super) async fn list(&self, patterns: &[&str]) -> Result<Vec<Listed>, Fault> {
        let rows = self.link().await?.manager.list_units_by_patterns(&[], patterns).await?;
        // A name that something refers to is listed, though there is no such unit.
        let there = rows.into_iter().filter(|row| row.2 != "not-found" || row.3 != "inactive");
        // As `state` has it: everything else is neither dead nor absent.
        let runs =
            |active: &str| matches!(active, "active" | "reloading" | "refreshing" | "activating" | "deactivating");
        Ok(there.map(|row| Listed { runs: runs(&row.3), name: row.0 }).collect())
    }
}

/// A unit that systemd has loaded.
#[derive(Debug)]
pub(in crate::host::machine) struct Listed {
    pub(in crate::host::machine) name: String,
    /// Whether it runs, or is on its way up or down.
    pub(in crate::host::machine) runs: bool,
}

/// Reads signals for as long as there is a bus, and connects again when there is one again.
async fn read_signals(link: watch::Sender<Option<Link>>, mut removed: JobRemovedStream, jobs: Arc<Jobs>) {
    loop {
        while let Some(signal) = removed.next().await {
            if let Ok(args) = signal.args() {
                jobs.ended(args.job.as_str(), &args.result);
            }
        }
        link.send_replace(None);
        warn!("Lost the system bus; connecting again");
        removed = loop {
            sleep(Duration::from_millis(200)).await;
            if let Ok((new, removed)) = Link::connect().await {
                link.send_replace(Some(new));
                break removed;
            }
        };
        info!("Connected to the system bus again");
    }
}

fn is(error: &zbus::Error, name: &str) -> bool {
    matches!(error, zbus::Error::MethodError(found, ..) if found.as_str() == name)
}
