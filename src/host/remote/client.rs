//! The daemon's side: asks root over the socket, and asks again when the connection breaks.
//!
//! **Invariant:** what is asked for may be asked for twice, as all of [`Machine`] may; so a call outlives a restart of
//! the other side. Of a secret only its name is sent.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::codec::{FramedRead, FramedWrite};
use tracing::warn;

use super::fault::Refusal;
use super::protocol::{ANSWER_MAX, Answer, CALL_MAX, Call, Message, VERSION, codec};
use crate::host::closure::{Freed, PathInfo, Paths};
use crate::host::disk::DiskSpace;
use crate::host::key::HostKey;
use crate::host::{
    BuildJob, BuildPhase, BuildUnitSpec, HostError, Inventory, Listener, Machine, SecretFiles, SiteLink, UnitSpec,
    UnitState, tcp,
};
use crate::model::{BranchSlug, BuildId, Environment, Port, ProjectName, ServiceName, StorePath, UnitName};

/// How long the other side may be away before callers are told.
const AWAY_MAX: Duration = Duration::from_secs(15);
/// How long until it is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the other side may take to start.
const HELLO_MAX: Duration = Duration::from_secs(40);
/// How often a connection may break under one call.
const BREAKS_MAX: u32 = 10;
/// How many calls may wait to be sent.
const QUEUE: usize = 256;

/// Whoever waits for an answer, by number; `None` when there will be none any more.
type Waiting = Mutex<Option<Callers>>;
type Callers = HashMap<u64, oneshot::Sender<Result<Value, Refusal>>>;

/// The machine, by way of `kennel host`.
#[derive(Debug)]
pub struct HostClient {
    socket: PathBuf,
    link: tokio::sync::Mutex<Option<Arc<Link>>>,
    next: AtomicU64,
}

/// A connection.
#[derive(Debug)]
struct Link {
    messages: mpsc::Sender<Bytes>,
    waiting: Arc<Waiting>,
    /// Ends reading and writing when this goes.
    _tasks: JoinSet<()>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("cannot connect to it")]
    NoConnection(#[source] io::Error),
    #[error("the connection broke")]
    Broken,
}

/// Gives up a call that nobody waits for any more.
struct Asked {
    id: u64,
    link: Arc<Link>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        let unanswered = lock(&self.link.waiting).as_mut().and_then(|callers| callers.remove(&self.id));
        if unanswered.is_some() {
            // When there is no room for it the call comes to its end by itself.
            let _ = self.link.messages.try_send(message(&Message::<Call> { id: self.id, call: None }));
        }
    }
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, Option<Callers>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

fn message(message: &Message<Call>) -> Bytes {
    serde_json::to_vec(message).expect("calls can be written as JSON").into()
}

impl Link {
    async fn connect(socket: &Path) -> io::Result<Self> {
        let (read, write) = UnixStream::connect(socket).await?.into_split();
        let (messages, mut queue) = mpsc::channel::<Bytes>(QUEUE);
        let waiting = Arc::new(Waiting::new(Some(Callers::new())));
        let mut tasks = JoinSet::new();
        let mut out = FramedWrite::new(write, codec(CALL_MAX));
        tasks.spawn(async move {
            while let Some(message) = queue.recv().await {
                // A broken connection is noticed by who reads.
                let _ = out.send(message).await;
            }
        });
        let mut answers = FramedRead::new(read, codec(ANSWER_MAX));
        let told = Arc::clone(&waiting);
        tasks.spawn(async move {
            while let Some(Ok(text)) = answers.next().await {
                match serde_json::from_slice::<Answer>(&text) {
                    Ok(Answer { id: 0, result }) => {
                        // It is about the connection, and so about all that was asked over it.
                        for caller in lock(&told).take().into_iter().flatten() {
                            let _ = caller.1.send(result.clone());
                        }
                    }
                    Ok(Answer { id, result }) => {
                        if let Some(caller) = lock(&told).as_mut().and_then(|callers| callers.remove(&id)) {
                            let _ = caller.send(result);
                        }
                    }
                    Err(err) => {
                        warn!(error = %err, "Cannot read what `kennel host` answers: {err}");
                        break;
                    }
                }
            }
            *lock(&told) = None;
        });
        Ok(Self { messages, waiting, _tasks: tasks })
    }
}

impl HostClient {
    /// Connects to the process of root's that listens at `socket`.
    ///
    /// # Errors
    /// When it is not there, refuses, or is of another version.
    pub async fn connect(socket: &Path) -> Result<Self, HostError> {
        let client = Self { socket: socket.to_owned(), link: tokio::sync::Mutex::default(), next: AtomicU64::new(1) };
        let hello = tokio::time::timeout(HELLO_MAX, client.ask(Call::Hello { version: VERSION })).await;
        let () = hello.map_err(|_| {
            let silent = "it does not answer: `journalctl -u kennel-host` says why";
            HostError::new(format!("ask `kennel host` at {}", socket.display()), silent)
        })??;
        Ok(client)
    }

    /// The connection there is, or another one.
    async fn link(&self) -> Result<Arc<Link>, NoAnswer> {
        let mut link = self.link.lock().await;
        match &*link {
            Some(link) if lock(&link.waiting).is_some() => Ok(Arc::clone(link)),
            _ => {
                let made = Link::connect(&self.socket).await.map_err(NoAnswer::NoConnection)?;
                Ok(Arc::clone(link.insert(Arc::new(made))))
            }
        }
    }

    async fn ask<T: DeserializeOwned>(&self, call: Call) -> Result<T, HostError> {
        let here = |error: Box<dyn std::error::Error + Send + Sync>| {
            HostError::new(format!("ask `kennel host` at {}", self.socket.display()), error)
        };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let message = message(&Message { id, call: Some(call) });
        if message.len() > CALL_MAX {
            return Err(here(
                format!("the call would be {} bytes long, and {CALL_MAX} are taken", message.len()).into(),
            ));
        }
        let (mut breaks, mut away_since) = (0, Instant::now());
        let answer = loop {
            match self.ask_once(id, &message).await {
                Ok(answer) => break answer,
                Err(NoAnswer::Broken) if breaks < BREAKS_MAX => {
                    breaks += 1;
                    away_since = Instant::now();
                }
                Err(NoAnswer::NoConnection(error))
                    if error.kind() != io::ErrorKind::PermissionDenied && away_since.elapsed() < AWAY_MAX => {}
                Err(error) => return Err(here(error.into())),
            }
            sleep(PAUSE).await;
        };
        match answer {
            Ok(value) => serde_json::from_value(value).map_err(|error| here(error.into())),
            Err(refusal) => {
                if let Refusal::Refused(why) = &refusal {
                    warn!("`kennel host` refuses a call: {why}");
                }
                Err(refusal.into_error())
            }
        }
    }

    async fn ask_once(&self, id: u64, message: &Bytes) -> Result<Result<Value, Refusal>, NoAnswer> {
        let link = self.link().await?;
        let (caller, answer) = oneshot::channel();
        lock(&link.waiting).as_mut().ok_or(NoAnswer::Broken)?.insert(id, caller);
        let asked = Asked { id, link };
        asked.link.messages.send(message.clone()).await.map_err(|_| NoAnswer::Broken)?;
        answer.await.map_err(|_| NoAnswer::Broken)
    }
}

#[async_trait]
impl Machine for HostClient {
    async fn secret_fingerprints(
        &self,
        _key: &HostKey,
        project: &ProjectName,
        environment: Environment,
        secrets: &SecretFiles,
    ) -> Result<BTreeMap<String, String>, HostError> {
        let (project, secrets) = (project.clone(), secrets.keys().cloned().collect());
        self.ask(Call::SecretFingerprints { project, environment, secrets }).await
    }

    async fn ensure_env_file(&self, spec: &UnitSpec) -> Result<(), HostError> {
        self.ask(Call::EnsureEnvFile { spec: spec.clone() }).await
    }

    async fn ensure_unit(&self, spec: &UnitSpec) -> Result<(), HostError> {
        self.ask(Call::EnsureUnit { spec: spec.clone() }).await
    }

    async fn start_unit(&self, unit: &UnitName) -> Result<(), HostError> {
        self.ask(Call::StartUnit { unit: unit.clone() }).await
    }

    async fn stop_unit(&self, unit: &UnitName) -> Result<(), HostError> {
        self.ask(Call::StopUnit { unit: unit.clone() }).await
    }

    async fn remove_unit(&self, unit: &UnitName) -> Result<(), HostError> {
        self.ask(Call::RemoveUnit { unit: unit.clone() }).await
    }

    async fn unit_state(&self, unit: &UnitName) -> Result<UnitState, HostError> {
        self.ask(Call::UnitState { unit: unit.clone() }).await
    }

    async fn unit_uid(&self, unit: &UnitName) -> Result<Option<u32>, HostError> {
        self.ask(Call::UnitUid { unit: unit.clone() }).await
    }

    async fn journal_tail(&self, unit: &UnitName, lines: usize) -> Result<Vec<String>, HostError> {
        self.ask(Call::JournalTail { unit: unit.clone(), lines }).await
    }

    /// Asked of the kernel from here: the other side has no network, and so sees nobody listen.
    async fn listener(&self, port: Port) -> Result<Listener, HostError> {
        let looked = tokio::task::spawn_blocking(move || tcp::listener(port)).await;
        let looked = looked.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
        looked.map_err(|error| HostError::new(format!("look for listeners on port {port}"), error))
    }

    async fn own_units(&self) -> Result<Vec<UnitName>, HostError> {
        self.ask(Call::OwnUnits {}).await
    }

    async fn ensure_site_link(&self, link: &SiteLink, to: &StorePath) -> Result<(), HostError> {
        self.ask(Call::EnsureSiteLink { link: link.clone(), to: to.clone() }).await
    }

    async fn remove_site_link(&self, link: &SiteLink) -> Result<(), HostError> {
        self.ask(Call::RemoveSiteLink { link: link.clone() }).await
    }

    async fn remove_data_dir(
        &self,
        project: &ProjectName,
        slug: &BranchSlug,
        service: &ServiceName,
    ) -> Result<(), HostError> {
        let (project, slug, service) = (project.clone(), slug.clone(), service.clone());
        self.ask(Call::RemoveDataDir { project, slug, service }).await
    }

    async fn ensure_gc_root(&self, build: BuildId, name: &ServiceName, path: &StorePath) -> Result<(), HostError> {
        self.ask(Call::EnsureGcRoot { build, name: name.clone(), path: path.clone() }).await
    }

    async fn remove_gc_root(&self, build: BuildId, name: &ServiceName) -> Result<(), HostError> {
        self.ask(Call::RemoveGcRoot { build, name: name.clone() }).await
    }

    async fn ensure_build_dirs(&self, _build: BuildId, job: &BuildJob) -> Result<(), HostError> {
        self.ask(Call::EnsureBuildDirs { job: job.clone() }).await
    }

    async fn start_build(&self, spec: &BuildUnitSpec) -> Result<(), HostError> {
        let BuildUnitSpec { build, phase, project, timeout_secs, .. } = spec.clone();
        self.ask(Call::StartBuild { build, phase, project, timeout_secs }).await
    }

    async fn release_build(&self, build: BuildId) -> Result<(), HostError> {
        self.ask(Call::ReleaseBuild { build }).await
    }

    async fn wait_unit(&self, unit: &UnitName) -> Result<UnitState, HostError> {
        self.ask(Call::WaitUnit { unit: unit.clone() }).await
    }

    async fn build_report(&self, build: BuildId, phase: BuildPhase) -> Result<Option<Vec<u8>>, HostError> {
        self.ask(Call::BuildReport { build, phase }).await
    }

    async fn build_output(&self, build: BuildId, name: &ServiceName) -> Result<StorePath, HostError> {
        self.ask(Call::BuildOutput { build, name: name.clone() }).await
    }

    async fn remove_work_dir(&self, build: BuildId) -> Result<(), HostError> {
        self.ask(Call::RemoveWorkDir { build }).await
    }

    async fn remove_log_dir(&self, build: BuildId) -> Result<(), HostError> {
        self.ask(Call::RemoveLogDir { build }).await
    }

    async fn empty_trash(&self, older_than: Duration) -> Result<(), HostError> {
        self.ask(Call::EmptyTrash { older_than }).await
    }

    async fn remove_remains(&self) -> Result<(), HostError> {
        self.ask(Call::RemoveRemains {}).await
    }

    async fn inventory(&self) -> Result<Inventory, HostError> {
        self.ask(Call::Inventory {}).await
    }

    async fn disk_space(&self) -> Result<Vec<DiskSpace>, HostError> {
        self.ask(Call::DiskSpace {}).await
    }

    async fn closure(&self, paths: &[StorePath]) -> Result<Paths, HostError> {
        self.ask(Call::Closure { paths: paths.to_vec() }).await
    }

    async fn garbage(&self, released: &[StorePath]) -> Result<Vec<PathInfo>, HostError> {
        self.ask(Call::Garbage { released: released.to_vec() }).await
    }

    async fn free_garbage(&self, released: &[StorePath]) -> Result<Freed, HostError> {
        self.ask(Call::FreeGarbage { released: released.to_vec() }).await
    }
}
