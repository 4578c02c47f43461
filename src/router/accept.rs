//! Connections of visitors: taken, limited, and handed to a task each.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::connection::{self, Visitor};
use super::generation::Generation;
use super::io::Io;
use super::metrics::Connected;
use super::origin::Origin;
use super::watch::Watch;
use super::{Shared, http2, proxied, tls};
use crate::places::{Place, Source};

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
        let source = self.shared.charged(peer.ip());
        let Some(of_one) = self.shared.places_of_one.take(source) else { return };
        if stream.set_nodelay(true).is_err() {
            // It is gone already.
            return;
        }
        let generation = self.shared.generation.load_full();
        let tasks = generation.tasks.clone();
        let arrival = Arrival {
            shared: Arc::clone(self.shared),
            lane: self.lane,
            port: self.port,
            watch: self.shared.workers[self.lane].watches.add(),
            generation,
            peer,
            places: (place, of_one, self.shared.metrics.connected()),
        };
        match self.scheme {
            _ if source == Source::Proxy && self.shared.proxy_protocol => {
                tasks.spawn(arrival.announced(stream, self.scheme));
            }
            Scheme::Http => {
                // Programs on this machine may know beforehand that HTTP/2 is spoken (RFC 9113, section 3.3).
                if peer.ip().to_canonical().is_loopback() {
                    tasks.spawn(arrival.local(stream));
                } else {
                    tasks.spawn(arrival.plain(stream));
                }
            }
            Scheme::Https => {
                tasks.spawn(arrival.secured(stream));
            }
        }
    }
}

/// A connection that has come in and of which nothing has been read.
struct Arrival {
    shared: Arc<Shared>,
    lane: usize,
    port: u16,
    watch: Watch,
    generation: Arc<Generation>,
    peer: SocketAddr,
    places: (OwnedSemaphorePermit, Place, Connected),
}

impl Arrival {
    fn visitor(self, scheme: &'static str) -> Visitor {
        let origin = Origin::new(self.peer.ip(), self.port, scheme);
        Visitor::new(self.peer, origin, self.lane, self.watch, self.places, self.generation)
    }

    /// Serves it as plain HTTP.
    fn plain(self, stream: TcpStream) -> impl Future<Output = ()> {
        connection::serve(Arc::clone(&self.shared), stream, Arc::new(self.visitor("http")))
    }

    /// Serves it as plain HTTP, of either version.
    fn local(self, stream: TcpStream) -> impl Future<Output = ()> {
        connection::serve_either(Arc::clone(&self.shared), stream, Arc::new(self.visitor("http")))
    }

    /// Serves it as HTTP within TLS.
    async fn secured(self, stream: TcpStream) {
        let greeting = self.shared.tls.greet(stream);
        // In a box, so that nothing of it is left once it is over.
        let greeted = Box::pin(self.generation.begin(&self.watch, self.shared.timeouts.handshake, greeting)).await;
        let (stream, secured) = match greeted {
            Some(Ok(Some(greeted))) => greeted,
            Some(Ok(None)) => return,
            // A handshake that fails is the visitor's affair: he is told why by an alert.
            failed => return self.shared.tls.note_failure(failed.and_then(Result::err).as_ref()),
        };
        let (shared, http2) = (Arc::clone(&self.shared), stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2));
        let visitor = Arc::new(self.visitor("https").secured(secured));
        if http2 {
            let io = Io::new(stream, Arc::clone(&visitor), shared.timeouts.idle);
            http2::serve(shared, io, visitor).await;
        } else {
            connection::serve(shared, stream, visitor).await;
        }
    }

    /// Serves it as that of the visitor whom the proxy that opened it names first.
    async fn announced(mut self, mut stream: TcpStream, scheme: Scheme) {
        let reading = proxied::source(&mut stream);
        let named = Box::pin(self.generation.begin(&self.watch, self.shared.timeouts.handshake, reading)).await;
        match named {
            // The proxy itself.
            Some(Ok(None)) => {}
            Some(Ok(Some(source))) => {
                let Some(of_one) = self.shared.places_of_one.take(self.shared.charged(source.ip())) else { return };
                (self.peer, self.places.1) = (source, of_one);
            }
            Some(Err(err)) => {
                let peer = self.peer;
                tracing::warn!(
                    peer = %peer, error = %err,
                    "Closed a connection of the proxy {peer}: it does not begin by the PROXY protocol, version 2"
                );
                return;
            }
            None => return,
        }
        match scheme {
            Scheme::Http => Box::pin(self.plain(stream)).await,
            Scheme::Https => Box::pin(self.secured(stream)).await,
        }
    }
}
