//! One line in the journal for a request, once its answer is over, if the operator wants it.
//!
//! **Invariant:** of what a visitor sends only method, host and path are written, and never a query, which may hold secrets.

use std::net::IpAddr;
use std::time::Duration;

use http::request::Parts;
use http::{Method, StatusCode};

use crate::config::AccessLog;

/// The most that is kept of a path, in bytes.
const PATH_MAX: usize = 512;

/// What a line says of a request.
#[derive(Debug)]
pub(super) struct Line {
    wanted: AccessLog,
    method: Method,
    host: String,
    path: String,
    visitor: IpAddr,
}

impl Line {
    /// The line for a request, if it may be wanted.
    pub(super) fn of(wanted: AccessLog, request: &Parts, host: &str, visitor: IpAddr) -> Option<Box<Self>> {
        if wanted == AccessLog::Off {
            return None;
        }
        let mut path = request.uri.path();
        // A path is ASCII.
        path = path.get(..PATH_MAX).unwrap_or(path);
        let (method, host, path) = (request.method.clone(), host.to_owned(), path.to_owned());
        Some(Box::new(Self { wanted, method, host, path, visitor }))
    }

    /// Writes it, now that it is known what was answered.
    pub(super) fn write(&self, status: StatusCode, bytes: u64, took: Duration) {
        if self.wanted == AccessLog::Errors && !status.is_server_error() {
            return;
        }
        let Self { method, host, path, visitor, .. } = self;
        let (status, ms) = (status.as_u16(), took.as_secs_f64() * 1000.0);
        tracing::info!(
            http.method = %method, http.host = %host, http.path = %path, http.status = status, http.bytes = bytes,
            http.duration_ms = ms, http.visitor = %visitor,
            "{method} {host}{path} {status}, {bytes} bytes in {ms:.1} ms for {visitor}"
        );
    }
}
