//! Pushes what builds made to binary caches, in the background: no build and no deployment waits for it, or fails by it.
//!
//! The rows are made with the end of a build. A push that fails is tried again, later each time, for as long as what it
//! pushes is kept; a restart finds the row.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::chance::BackOff;
use crate::config;
use crate::host::cache::{self, Destination};
use crate::model::Cache;
use crate::store::{PendingPush, Store};
use crate::telemetry::chain;
use crate::wake::Bell;

/// How often rows are looked at when no bell rings.
const TICK: Duration = Duration::from_secs(30);
/// How long until a push that failed is tried again.
const BACK_OFF: BackOff = BackOff::of_secs(2, 3_600);

/// The loop that pushes, one build after the other.
#[derive(Debug)]
pub struct Caches {
    store: Store,
    config: config::Shared,
    /// For what Nix remembers of caches: it may be removed at any time.
    scratch: PathBuf,
    bell: Bell,
}

/// What is to become of a push.
enum Task {
    /// It is to be done.
    Do(Destination),
    /// Nobody wants it; why, if that is worth a line.
    Forget(Option<String>),
    /// It cannot be done as long as that is so.
    Fail(String),
}

impl Caches {
    /// A loop that has pushed nothing yet; `scratch` is a directory for what Nix remembers of caches.
    #[must_use]
    pub fn new(store: Store, config: config::Shared, scratch: PathBuf, bell: Bell) -> Self {
        Self { store, config, scratch, bell }
    }

    /// Pushes until shutdown. What is under way then is done again by the next run.
    pub async fn run(self, shutdown: CancellationToken) {
        loop {
            let pushed = tokio::select! {
                pushed = self.run_once() => pushed,
                () = shutdown.cancelled() => return,
            };
            let due = match pushed {
                Ok(()) => self.store.next_push().await.ok().flatten().unwrap_or(TICK),
                Err(err) => {
                    // Not at once: what could not be written down would be pushed over and over.
                    error!(error = %chain(&*err), "Could not look after pushes to binary caches");
                    TICK
                }
            };
            tokio::select! {
                () = self.bell.rung() => {}
                () = tokio::time::sleep(due.min(TICK)) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Does every push that is due.
    ///
    /// # Errors
    /// When rows could not be read or written.
    pub async fn run_once(&self) -> anyhow::Result<()> {
        while let Some(push) = self.store.due_push().await? {
            self.settle(&push).await?;
        }
        Ok(())
    }

    async fn settle(&self, push: &PendingPush) -> anyhow::Result<()> {
        let paths = self.store.push_paths(push.build).await?;
        let task = if paths.is_empty() {
            Task::Forget(Some("what it made is not kept any more".to_owned()))
        } else {
            self.task(push).await
        };
        let begun = Instant::now();
        let outcome = match task {
            Task::Forget(why) => {
                if let Some(why) = why {
                    info!(build.id = %push.build, "Build {} of {} is not pushed: {why}", push.build, push.project);
                }
                return Ok(self.store.forget_push(push).await?);
            }
            Task::Fail(problem) => Err(problem),
            Task::Do(destination) => cache::push(&destination, &paths, &self.scratch).await.map_err(|err| chain(&err)),
        };
        match outcome {
            Ok(()) => {
                let duration_ms = begun.elapsed().as_millis();
                self.store.note_pushed(push).await?;
                info!(
                    build.id = %push.build, duration_ms, paths.count = paths.len(),
                    "Pushed build {} of {} to {}", push.build, push.project, self.place(push)
                );
            }
            Err(problem) => {
                let pause = BACK_OFF.doubled(push.attempts);
                self.store.put_push_off(push, &problem, pause).await?;
                warn!(
                    build.id = %push.build, error = %problem,
                    "Could not push build {} of {}; it is tried again in {} s: {problem}",
                    push.build, push.project, pause.as_secs()
                );
            }
        }
        Ok(())
    }

    async fn task(&self, push: &PendingPush) -> Task {
        let config = self.config.load_full();
        match push.cache {
            Cache::Store => match &config.builder.cache {
                Some(cache) => Task::Do(Destination::Store(cache.clone())),
                None => Task::Forget(None),
            },
            Cache::Cachix => {
                let Some(name) = push.name.clone() else { return Task::Forget(None) };
                let file = config.projects.get(&push.project).and_then(|project| project.cachix_token_file.clone());
                let Some(file) = file else {
                    return Task::Forget(Some(format!(
                        "its kennel.toml names the Cachix cache `{name}`, and `[projects.{}]` of the daemon's file has \
                         no `cachix_token_file`",
                        push.project
                    )));
                };
                match tokio::task::spawn_blocking(move || config::read_secret(&file)).await {
                    Ok(Ok(token)) => Task::Do(Destination::Cachix { name, token }),
                    Ok(Err(err)) => Task::Fail(chain(&err)),
                    Err(err) => Task::Fail(format!("reading the token was interrupted: {err}")),
                }
            }
        }
    }

    fn place(&self, push: &PendingPush) -> String {
        match &push.name {
            Some(name) => format!("the Cachix cache `{name}`"),
            None => self.config.load().builder.cache.as_ref().map_or_else(String::new, |cache| cache.to.clone()),
        }
    }
}
