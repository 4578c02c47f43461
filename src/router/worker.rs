//! The router's threads: each has a runtime of its own, accepts for itself, and keeps its own connections to services.
//!
//! Nothing of a request crosses from one to another, so none of them waits for another. At the end they are told,
//! stage by stage, what is still to be served.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::accept::{Scheme, accept};
use super::generation::{Generation, Stage};
use super::watch::Watches;
use super::{Listeners, Shared};

/// The least that the last requests to come have for their answers.
const LAST: Duration = Duration::from_secs(5);

/// What belongs to one thread.
#[derive(Debug, Default)]
pub(super) struct Worker {
    /// The tasks of its connections.
    pub(super) watches: Watches,
}

/// Serves visitors until `shutdown`, then lets what has begun finish, within bounds.
pub(super) async fn serve(shared: &Arc<Shared>, listeners: Listeners, shutdown: &CancellationToken) {
    let over = CancellationToken::new();
    // The threads end when this is no longer polled, too.
    let _end = over.clone().drop_guard();
    let closed = shared.closed.clone().drop_guard();
    let mut threads = Vec::new();
    let mut accepting = Vec::new();
    let Listeners { http, https } = listeners;
    let hands = deal(http, shared.workers.len()).into_iter().zip(deal(https, shared.workers.len()));
    for (lane, hand) in hands.enumerate() {
        let (shared, over) = (Arc::clone(shared), over.clone());
        let (accepts, accepted) = oneshot::channel();
        let thread = thread::Builder::new().name(format!("router-{lane}"));
        match thread.spawn(move || run(&shared, lane, hand, accepts, over)) {
            Ok(thread) => {
                threads.push(thread);
                accepting.push(accepted);
            }
            Err(err) => tracing::error!(error = %err, "Cannot start a thread for visitors"),
        }
    }
    let leaves = tokio::select! {
        biased;
        () = shared.leaving.cancelled() => true,
        () = shutdown.cancelled() => false,
    };
    if leaves {
        drop(closed);
        leave(shared, accepting, shutdown).await;
    } else {
        stop(shared, accepting, closed).await;
    }
    over.cancel();
    let joined = tokio::task::spawn_blocking(|| threads.into_iter().try_for_each(thread::JoinHandle::join)).await;
    if !matches!(joined, Ok(Ok(()))) {
        tracing::error!("A thread of the router panicked");
    }
}

/// Brings everything to its end, visitors who come meanwhile included.
async fn stop(shared: &Shared, accepting: Vec<oneshot::Receiver<()>>, closed: DropGuard) {
    let deadline = Instant::now() + shared.timeouts.finish;
    let young = Arc::new(Generation::new(Stage::Stopping));
    let old = shared.generation.swap(Arc::clone(&young));
    // A long answer must not keep everybody else waiting for the next process: until it is out, visitors are served.
    old.end(shared, shared.timeouts.finish).await;
    drop(closed);
    no_longer(accepting).await;
    shared.away.cancel();
    shared.tunnels.close();
    tokio::join!(
        young.end(shared, deadline.saturating_duration_since(Instant::now()).max(LAST)),
        // Who came in at the very moment of the change.
        old.end(shared, LAST),
        shared.tunnels.wait(),
    );
}

/// Lets what has begun go on until `shutdown`, [`Timeouts::hand_over`] at most, while another process takes connections.
///
/// [`Timeouts::hand_over`]: super::Timeouts::hand_over
async fn leave(shared: &Shared, accepting: Vec<oneshot::Receiver<()>>, shutdown: &CancellationToken) {
    no_longer(accepting).await;
    let generation = shared.generation.load_full();
    generation.enter(Stage::Stopping, shared);
    tokio::time::sleep(shared.timeouts.lame_duck).await;
    generation.enter(Stage::Closing, shared);
    shared.control_requests.close();
    if tokio::time::timeout(shared.timeouts.finish, shared.control_requests.wait()).await.is_err() {
        tracing::warn!("Requests to kennel itself did not finish in time");
    }
    shared.left.cancel();
    generation.tasks.close();
    shared.tunnels.close();
    tokio::select! {
        () = async { tokio::join!(generation.tasks.wait(), shared.tunnels.wait()); } => return,
        () = tokio::time::sleep(shared.timeouts.hand_over) => {}
        () = shutdown.cancelled() => {}
    }
    shared.away.cancel();
    tokio::join!(generation.end(shared, shared.timeouts.finish), shared.tunnels.wait());
}

/// Waits until nothing is accepted any more.
async fn no_longer(accepting: Vec<oneshot::Receiver<()>>) {
    for accepted in accepting {
        // It says nothing when it ends: that is the sign.
        let _ = accepted.await;
    }
}

/// Sockets on one address, one for each worker where there are enough; fewer are shared by all workers.
///
/// A socket that nobody accepts on would let its visitors hang.
fn deal(listeners: Vec<tokio::net::TcpListener>, workers: usize) -> Vec<Vec<TcpListener>> {
    let mut by_address: BTreeMap<Option<SocketAddr>, Vec<TcpListener>> = BTreeMap::new();
    for listener in listeners {
        match listener.into_std() {
            Ok(listener) => by_address.entry(listener.local_addr().ok()).or_default().push(listener),
            Err(err) => tracing::error!(error = %err, "Cannot use a listening socket"),
        }
    }
    let mut hands: Vec<Vec<TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    for sockets in by_address.into_values() {
        let enough = sockets.len() >= workers;
        for (number, socket) in sockets.into_iter().enumerate() {
            let (last, others) = match number % workers {
                own if enough => (own, 0..0),
                _ => (0, 1..workers),
            };
            for hand in &mut hands[others] {
                let shared: io::Result<TcpListener> = socket.try_clone();
                match shared {
                    Ok(socket) => hand.push(socket),
                    Err(err) => tracing::error!(error = %err, "Cannot share a listening socket between threads"),
                }
            }
            hands[last].push(socket);
        }
    }
    hands
}

fn run(
    shared: &Arc<Shared>,
    lane: usize,
    (http, https): (Vec<TcpListener>, Vec<TcpListener>),
    accepts: oneshot::Sender<()>,
    over: CancellationToken,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(err) => {
            tracing::error!(error = %err, "Cannot start a runtime for visitors");
            return;
        }
    };
    runtime.block_on(async {
        let mut loops = JoinSet::new();
        for (scheme, listeners) in [(Scheme::Http, http), (Scheme::Https, https)] {
            for listener in listeners {
                loops.spawn(accept(Arc::clone(shared), lane, listener, scheme, shared.closed.clone()));
            }
        }
        let serving = async {
            while loops.join_next().await.is_some() {}
            drop(accepts);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = over.cancelled() => {}
            () = serving => {}
            () = shared.workers[lane].watches.run() => {}
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn listeners(count: usize) -> Vec<tokio::net::TcpListener> {
        let mut listeners: Vec<tokio::net::TcpListener> = Vec::new();
        for _ in 0..count {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_reuseport(true).unwrap();
            let port = listeners.first().map_or(0, |first| first.local_addr().unwrap().port());
            socket.bind(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
            listeners.push(socket.listen(16).unwrap());
        }
        listeners
    }

    #[tokio::test]
    async fn every_socket_is_accepted_on_and_every_worker_accepts() {
        for (sockets, workers, each) in [(1, 1, 1), (1, 3, 1), (2, 3, 2), (3, 3, 1), (4, 2, 2)] {
            let hands = deal(listeners(sockets).await, workers);
            assert_eq!(hands.iter().map(Vec::len).collect::<Vec<_>>(), vec![each; workers], "{sockets} for {workers}");
        }
    }
}
