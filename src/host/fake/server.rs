//! What a unit's program does: a small HTTP server on the allotted port.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::Gate;
use crate::host::UnitSpec;
use crate::model::Port;

/// How a program comes to listen.
pub(super) enum Listening {
    /// It does already.
    Now(std::net::TcpListener),
    /// It will.
    After(Duration, Port),
    /// It never will.
    Never,
}

/// A running program, from outside.
#[derive(Clone)]
pub(super) struct Program {
    pub(super) spec: Arc<UnitSpec>,
    /// Opened to have it end.
    pub(super) stop: Gate,
    /// Opened when it has ended, and its socket is closed.
    pub(super) ended: Gate,
    /// What it answers.
    pub(super) status: Arc<AtomicU16>,
}

/// A unit that systemd knows of.
pub(super) enum Running {
    /// Its program runs.
    Active(Program),
    /// It failed, and is started again and again.
    Restarting(String),
    /// It failed, and systemd remembers how.
    Dead(String),
}

/// Runs until it is told to stop; connections end with it.
pub(super) async fn run(program: Program, listening: Listening) {
    tokio::select! {
        () = program.stop.pass() => {}
        () = listen(&program, listening) => {}
    }
    program.ended.open();
}

async fn listen(program: &Program, listening: Listening) {
    let spec = &program.spec;
    let listener = match listening {
        Listening::Now(listener) => TcpListener::from_std(listener),
        Listening::After(delay, port) => {
            tokio::time::sleep(delay).await;
            TcpListener::bind(("127.0.0.1", port.get())).await
        }
        Listening::Never => return std::future::pending().await,
    };
    let Ok(listener) = listener else { return std::future::pending().await };
    let body = format!("{} {} {}\n", spec.service, spec.deployment, spec.store_path);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((socket, _)) = accepted else { continue };
                let (status, body) = (Arc::clone(&program.status), body.clone());
                connections.spawn(async move {
                    let service = service_fn(async |_| {
                        Ok::<_, Infallible>(answer(status.load(Ordering::Relaxed), body.clone()))
                    });
                    // A client that hangs up is its own affair.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

fn answer(status: u16, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}
