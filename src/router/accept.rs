//! Connections of visitors: taken, limited, and handed to a task each.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::connection::{self, Visitor};
use super::origin::Origin;
use super::{origin, tls};
use crate::places::Source;

/// How long to wait for a descriptor or memory to become free.
const SHORTAGE: Duration = Duration::from_millis(100);

/// What is spoken on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP within TLS.
    Https,
}

/// Where connections come in.
#[derive(Debug)]
struct Door<'a> {
    shared: &'a Arc<Shared>,
    lane: usize,
    port: u16,
    scheme: Scheme,
}

/// Takes connections on `listener` until `shutdown`, and then those that the kernel has queued by then.
pub(super) async fn accept(
    shared: Arc<Shared>,
    lane: usize,
    listener: std::net::TcpListener,
    scheme: Scheme,
    shutdown: CancellationToken,
) {
    let listening = listener.local_addr().and_then(|address| Ok((address, TcpListener::from_std(listener)?)));
    let (address, listener) = match listening {
        Ok(listening) => listening,
        Err(err) => {
            tracing::error!(error = %err, "Cannot listen for visitors");
            return;
        }
    };
    let door = Door { shared: &shared, lane, port: address.port(), scheme };
    let mut short = false;
    loop {
        let place = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            place = Arc::clone(&shared.places).acquire_owned() => place.expect("the semaphore is never closed"),
        };
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                short = false;
                door.admit(stream, peer, place);
            }
            Err(err) if is_of_one_connection(&err) => {}
            Err(err) => {
                if !short {
                    short = true;
                    tracing::error!(error = %err, "Cannot accept connections; trying again until it works");
                }
                tokio::time::sleep(SHORTAGE).await;
            }
        }
    }
    // The kernel has completed the handshake of these: they would be reset.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() {
        match listener.accept() {
            Ok((stream, peer)) => {
                if stream.set_nonblocking(true).is_ok()
                    && let Ok(stream) = TcpStream::from_std(stream)
                {
                    door.admit(stream, peer, place);
                }
            }
            Err(err) if is_of_one_connection(&err) => {}
            Err(_) => break,
        }
    }
}

/// Whether an error is about the connection, and not about accepting (`accept(2)`).
fn is_of_one_connection(err: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(err.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
        || err.raw_os_error() == Some(nix::libc::EPROTO)
}

impl Door<'_> {
    fn admit(&self, stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
        // A proxy brings many visitors.
        let trusted = origin::is_trusted(peer.ip(), &self.shared.trusted);
        let source = if trusted { Source::Proxy } else { Source::of(Some(peer.ip())) };
        let Some(of_one) = self.shared.places_of_one.take(source) else { return };
        if stream.set_nodelay(true).is_err() {
            // It is gone already.
            return;
        }
        let watch = self.shared.workers[self.lane].watches.add();
        let places = (place, of_one, self.shared.metrics.connected());
        let (shared, port, lane) = (Arc::clone(self.shared), self.port, self.lane);
        let generation = self.shared.generation.load_full();
        let tasks = generation.tasks.clone();
        match self.scheme {
            Scheme::Http => {
                let origin = Origin::new(peer.ip(), port, "http");
                let visitor = Visitor::new(peer, origin, lane, watch, places, generation);
                tasks.spawn(connection::serve(shared, stream, Arc::new(visitor)));
            }
            Scheme::Https => {
                tasks.spawn(async move {
                    // In a box, so that nothing of it is left once it is over.
                    let greeted = Box::pin(tls::handshake(&shared, &generation, stream, &watch)).await;
                    let Some((stream, secured)) = greeted else { return };
                    let origin = Origin::new(peer.ip(), port, "https");
                    let visitor = Visitor::new(peer, origin, lane, watch, places, generation).secured(secured);
                    connection::serve(shared, stream, Arc::new(visitor)).await;
                });
            }
        }
    }
}
