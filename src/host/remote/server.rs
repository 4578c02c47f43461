//! The side of root: takes connections from the daemon, and has the [`Guard`] do what comes over them.
//!
//! **Invariant:** whoever is not the daemon's user or root gets one refusal and nothing else; connections, calls under
//! way and the size of a message are bounded.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::codec::{FramedRead, FramedWrite};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::Guard;
use super::fault::Refusal;
use super::protocol::{ANSWER_MAX, Answer, CALL_MAX, Call, Message, codec, describe, printable};
use crate::telemetry::chain;

/// The most connections at once: one for each daemon, and a hand-over has two.
const CONNECTIONS_MAX: usize = 8;
/// How many bytes the calls of one connection may be that are under way; more wait.
const ROOM: u32 = 8 << 20;
/// What a short one counts.
const CALL_MIN: u32 = 16 << 10;
/// The most calls of one connection at once.
pub(super) const CALLS_MAX: usize = (ROOM / CALL_MIN) as usize;
/// How long nobody is taken on when there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);
/// How often it is said that there are too many connections: thousands of lines would hide others.
const QUIET: Duration = Duration::from_secs(10);

/// Who may ask.
#[derive(Debug, Clone, Copy)]
pub struct Peers {
    /// The daemon's user; root may as well.
    pub daemon: u32,
}

impl Peers {
    pub(super) fn may_ask(self, uid: u32) -> bool {
        uid == 0 || uid == self.daemon
    }
}

/// Serves until it is told to end, or until `replaced` says that another program has taken this one's place: whoever
/// connects then is served by that.
pub async fn serve(
    listener: UnixListener,
    guard: Arc<Guard>,
    peers: Peers,
    replaced: impl Fn() -> bool,
    shutdown: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let mut crowded: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = shutdown.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(err) => {
                error!(error = %err, "Cannot take a connection: {err}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if replaced() {
            info!("Another program has taken this one's place: it is started when the daemon connects again");
            break;
        }
        let uid = match stream.peer_cred() {
            Ok(peer) => peer.uid(),
            Err(err) => {
                warn!(error = %err, "Refused a connection whose user cannot be told: {err}");
                continue;
            }
        };
        if !peers.may_ask(uid) {
            warn!(peer.uid = uid, "Refused a connection of user {uid}, who is not the daemon's");
            connections.spawn(refuse(stream, format!("user {uid} may not ask: only root and the daemon's user")));
            continue;
        }
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            if crowded.is_none_or(|since| since.elapsed() > QUIET) {
                crowded = Some(Instant::now());
                warn!(peer.uid = uid, "Refused a connection of user {uid}: there are {CONNECTIONS_MAX}");
            }
            continue;
        };
        let guard = Arc::clone(&guard);
        connections.spawn(async move {
            if let Err(err) = converse(stream, guard, uid).await {
                warn!(peer.uid = uid, error = %err, "Ended a connection of user {uid}: {}", chain(&err));
            }
            drop(permit);
        });
    }
}

async fn refuse(stream: UnixStream, why: String) {
    let mut out = FramedWrite::new(stream, codec(ANSWER_MAX));
    // It may be gone, or not read; nothing is lost.
    let _ = tokio::time::timeout(PAUSE, out.send(refusal(&why))).await;
}

/// What ends a connection.
fn refusal(why: &str) -> Bytes {
    answer(0, Err(Refusal::refused(why)))
}

fn answer(id: u64, result: Result<Value, Refusal>) -> Bytes {
    let text = serde_json::to_vec(&Answer { id, result }).expect("JSON values can be written");
    if text.len() <= ANSWER_MAX {
        return text.into();
    }
    answer(id, Err(Refusal::refused(format_args!("the answer would be {} bytes long", text.len()))))
}

/// Serves one connection to its end.
async fn converse(stream: UnixStream, guard: Arc<Guard>, uid: u32) -> io::Result<()> {
    let (read, write) = stream.into_split();
    let mut messages = FramedRead::new(read, codec(CALL_MAX));
    let (answers, mut queue) = mpsc::channel::<Bytes>(CALLS_MAX);
    let mut out = FramedWrite::new(write, codec(ANSWER_MAX));
    let mut calls = Calls::default();
    let asking = async {
        let room = Arc::new(Semaphore::new(ROOM as usize));
        while let Some(message) = messages.next().await {
            let message = match message {
                Ok(message) => message,
                Err(err) => {
                    let _ = answers.send(refusal(&format!("a message cannot be read: {err}"))).await;
                    return Err(err);
                }
            };
            let Message { id, call } = match serde_json::from_slice::<Message<Value>>(&message) {
                Ok(message) => message,
                Err(err) => {
                    let _ = answers.send(refusal(&format!("a message is no call: {err}"))).await;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, err));
                }
            };
            match call {
                None => calls.forget(id),
                Some(call) => {
                    let weight = u32::try_from(message.len()).unwrap_or(ROOM).clamp(CALL_MIN, ROOM);
                    let permit = Arc::clone(&room).acquire_many_owned(weight).await.expect("it is never closed");
                    let (guard, answers) = (Arc::clone(&guard), answers.clone());
                    calls.begin(id, async move {
                        let done = perform(&guard, call, uid).await;
                        let _ = answers.send(answer(id, done)).await;
                        drop(permit);
                    });
                }
            }
        }
        Ok(())
    };
    let telling = async {
        while let Some(text) = queue.recv().await {
            out.send(text).await?;
        }
        Ok(())
    };
    tokio::pin!(asking, telling);
    // What ends the conversation is told before it ends.
    let ended = tokio::select! {
        asked = &mut asking => asked,
        told = &mut telling => return told,
    };
    if ended.is_err() {
        let _ = tokio::time::timeout(PAUSE, &mut telling).await;
    }
    ended
}

/// Calls under way, by number; they end with the connection.
#[derive(Default)]
struct Calls {
    tasks: JoinSet<()>,
    by_id: HashMap<u64, AbortHandle>,
}

impl Calls {
    fn begin(&mut self, id: u64, call: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.by_id.retain(|_, task| !task.is_finished());
        self.by_id.insert(id, self.tasks.spawn(call));
    }

    fn forget(&mut self, id: u64) {
        if let Some(task) = self.by_id.remove(&id) {
            task.abort();
        }
    }
}

/// Has one call done, and says in the log which.
async fn perform(guard: &Guard, call: Value, uid: u32) -> Result<Value, Refusal> {
    let what = describe(&call);
    let done = match serde_json::from_value::<Call>(call) {
        Ok(call) => {
            if call.only_looks() {
                debug!(call = %what, "Asked to {what}");
            } else {
                info!(call = %what, "Asked to {what}");
            }
            guard.perform(call).await
        }
        Err(err) => Err(Refusal::refused(printable(&err.to_string()))),
    };
    match &done {
        Ok(_) => {}
        Err(Refusal::Refused(why)) => {
            warn!(call = %what, peer.uid = uid, reason = %why, "Refused to {what}: {why}");
        }
        Err(Refusal::Failed { action, causes }) => {
            debug!(call = %what, "Could not {action}: {}", causes.join(": "));
        }
    }
    done
}
