//! Serves the API on a TCP or Unix listener, and notes with each request where it came from.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use http::header::{self, HeaderValue};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use nix::unistd::{Group, Uid, chown};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::UCred;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::{debug, warn};

use super::access::{Caller, owner_of};
use crate::places::{Places, Source};
use crate::telemetry::chain;

/// How long a client may take for the head of a request, and between requests.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How many clients are served at once; more wait.
const CONNECTIONS_MAX: usize = 2048;
/// How many of them may have one address; more are turned away, so that there is room for others.
const CONNECTIONS_OF_ONE_MAX: usize = 1024;
/// How a delivery begins, which everybody may send: whose connection it is need not be known.
const DELIVERY: &[u8] = b"POST /webhook/";
/// How long a request that is on its way is waited for once the daemon stops.
const LAME_DUCK: Duration = Duration::from_millis(300);
/// How long requests may go on once the daemon stops.
const STOP_TIME: Duration = Duration::from_secs(5);

/// Serves until `shutdown`, then lets requests come to their end for at most 5 s, each answer closing its connection.
///
/// Clients of a listener on a loopback address are [`Caller::Local`], all others [`Caller::Outside`].
///
/// # Errors
/// When the listener has no address.
pub async fn serve_tcp(listener: TcpListener, app: Router, shutdown: CancellationToken) -> io::Result<()> {
    let loopback = listener.local_addr()?.ip().to_canonical().is_loopback();
    serve(&Tcp { listener, loopback }, app, shutdown).await;
    Ok(())
}

/// Serves until `shutdown`, then lets requests come to their end for at most 5 s. Clients are [`Caller::Unix`].
pub async fn serve_unix(listener: UnixListener, app: Router, shutdown: CancellationToken) {
    serve(&listener, app, shutdown).await;
}

/// Listens on a socket file of mode 0660 that belongs to root and the group, in place of one left over by an
/// earlier run. Without such a group it is for root alone. Blocks for a moment.
///
/// # Errors
/// When the file cannot be made.
pub fn listen_unix(path: &Path, group: &str) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let mode = match Group::from_name(group) {
        Ok(Some(group)) => {
            chown(path, Some(Uid::effective()), Some(group.gid))?;
            0o660
        }
        _ => {
            warn!("There is no group `{group}`: only root can use {}", path.display());
            0o600
        }
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// A listener whose clients have a [`Caller`].
trait Listener {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static;
    /// What is known of a client at once.
    type Peer: Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::Peer)>> + Send;
    /// The client's address, if it has one.
    fn address(peer: &Self::Peer) -> Option<SocketAddr>;
    /// Where what the client asks for comes from; `None` when it asks for nothing.
    fn identify(stream: &Self::Stream, peer: Self::Peer) -> impl Future<Output = Option<Caller>> + Send;
}

struct Tcp {
    listener: TcpListener,
    loopback: bool,
}

/// Both ends of a connection.
struct Ends {
    peer: SocketAddr,
    local: SocketAddr,
    loopback: bool,
}

impl Listener for Tcp {
    type Stream = TcpStream;
    type Peer = Ends;

    async fn accept(&self) -> io::Result<(TcpStream, Ends)> {
        let (stream, peer) = self.listener.accept().await?;
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        Ok((stream, Ends { peer, local, loopback: self.loopback }))
    }

    fn address(ends: &Ends) -> Option<SocketAddr> {
        Some(ends.peer)
    }

    async fn identify(stream: &TcpStream, Ends { peer, local, loopback }: Ends) -> Option<Caller> {
        if !loopback {
            return Some(Caller::Outside);
        }
        // The kernel tells whose a socket is by the table of all there are: not to be read for each delivery of a
        // flood. A client that asks for more than that on the same connection is refused.
        let mut head = [0; DELIVERY.len()];
        let length = tokio::time::timeout(HEAD_TIME, stream.peek(&mut head)).await.ok()?.ok()?;
        let owner = if &head[..length] == DELIVERY { None } else { owner_of(peer, local).await };
        Some(Caller::Local { peer, local, owner })
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;
    type Peer = UCred;

    async fn accept(&self) -> io::Result<(UnixStream, UCred)> {
        let (stream, _) = UnixListener::accept(self).await?;
        let peer = stream.peer_cred()?;
        Ok((stream, peer))
    }

    fn address(_peer: &UCred) -> Option<SocketAddr> {
        None
    }

    async fn identify(_stream: &UnixStream, peer: UCred) -> Option<Caller> {
        Some(Caller::Unix { uid: peer.uid(), gid: peer.gid() })
    }
}

async fn serve<L: Listener>(listener: &L, app: Router, shutdown: CancellationToken) {
    let mut connections = JoinSet::new();
    let places = Places::new(CONNECTIONS_OF_ONE_MAX);
    let graceful = GracefulShutdown::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => note_end(ended),
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, peer)) => {
                    let address = L::address(&peer);
                    let Some(place) = places.take(Source::of(address.map(|address| address.ip()))) else { continue };
                    let (app, watcher, shutdown) = (app.clone(), graceful.watcher(), shutdown.clone());
                    connections.spawn(async move {
                        let _place = place;
                        let caller = tokio::select! {
                            biased;
                            caller = L::identify(&stream, peer) => caller,
                            () = async { shutdown.cancelled().await; tokio::time::sleep(LAME_DUCK).await } => None,
                        };
                        let Some(caller) = caller else { return Ok(()) };
                        watcher.watch(connection(stream, app, caller, address, shutdown)).await
                    });
                }
                Err(err) => {
                    warn!(error = %chain(&err), "Could not accept a connection");
                    // Out of file descriptors, most likely: others must end first.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    if !connections.is_empty() {
        tokio::time::sleep(LAME_DUCK).await;
    }
    if tokio::time::timeout(STOP_TIME, graceful.shutdown()).await.is_err() {
        debug!("Cut what operators still had open");
    }
}

fn connection<S>(
    stream: S,
    app: Router,
    caller: Caller,
    address: Option<SocketAddr>,
    shutdown: CancellationToken,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error, Output = Result<(), hyper::Error>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(caller);
        if let Some(address) = address {
            request.extensions_mut().insert(ConnectInfo(address));
        }
        let (answering, shutdown) = (app.clone().oneshot(request), shutdown.clone());
        async move {
            let mut response = answering.await?;
            if shutdown.is_cancelled() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service)
}

fn note_end(ended: Result<Result<(), hyper::Error>, tokio::task::JoinError>) {
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(err)) => debug!(error = %chain(&err), "A client's connection broke"),
        Err(err) => warn!(error = %chain(&err), "A request was not answered"),
    }
}
