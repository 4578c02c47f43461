//! A file as it goes out: its bytes and its headers, ready-made, from which whole answers, parts and 304s are cut.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use sha2::{Digest as _, Sha256};

use super::condition::{self, Verdict};
use super::media;
use super::negotiate::{self, Span};
use super::stream::FileBody;
use super::tree::{Content, SiteFile, Source};
use crate::model::StorePath;
use crate::router::backed::{Backed, Opener};
use crate::router::body::Body;
use crate::router::pages::Problem;

/// About what the headers take, in bytes.
const HEADERS: usize = 2048;

/// A file in one encoding.
#[derive(Debug)]
pub(super) struct Representation {
    etag: HeaderValue,
    length: u64,
    source: Source,
    /// The same bytes with their file, if they are many.
    backed: Option<Arc<Backed>>,
    /// Of an answer with all of it.
    whole: HeaderMap,
    /// Of a 304.
    not_modified: HeaderMap,
}

/// What becomes of a request for a file.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are answers: a box would cost each of them")]
pub(super) enum Reply<'a> {
    /// This is the answer.
    Ready(Result<Response<Body>, Problem>),
    /// This file has to be opened first.
    Open(&'a Path),
}

/// In which sense a file is the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sense {
    /// It is what was asked for.
    Found,
    /// It says that there is no such file.
    NotFound,
}

impl Representation {
    /// `content` of `file` in the store path `root`, to stay open if `opener` finds that worth it.
    pub(super) fn new(root: &StorePath, file: &SiteFile, content: Content, opener: &Opener) -> Self {
        let Content { encoding, length, source, open } = content;
        let name = file.relative.to_string_lossy();
        let encoding = encoding.map(|encoding| encoding.name());
        let etag = etag(root, file, encoding, &source);
        let mut not_modified = HeaderMap::with_capacity(4);
        not_modified.insert(header::ETAG, etag.clone());
        not_modified.insert(header::CACHE_CONTROL, HeaderValue::from_static(media::cache_control(&name)));
        if file.varies() {
            not_modified.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        }
        let mut whole = HeaderMap::with_capacity(12);
        whole.extend(not_modified.clone());
        whole.insert(header::CONTENT_TYPE, HeaderValue::from_static(file.content_type));
        whole.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        whole.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        if let Some(encoding) = encoding {
            whole.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        whole.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        let backed = match &source {
            Source::Read(bytes) => open.and_then(|open| opener.keep(open, bytes)),
            Source::Made(_) | Source::Stream(_) => None,
        };
        Self { etag, length, source, backed, whole, not_modified }
    }

    /// About how much memory it takes, in bytes.
    pub(super) fn weight(&self) -> usize {
        HEADERS
            + match &self.source {
                Source::Read(bytes) | Source::Made(bytes) => bytes.len(),
                Source::Stream(real) => real.as_os_str().len(),
            }
    }

    /// Answers `request`, a GET or HEAD; `open` is the file of [`Reply::Open`].
    pub(super) fn answer(&self, request: &Parts, sense: Sense, open: Option<&Arc<File>>) -> Reply<'_> {
        if sense == Sense::NotFound {
            return self.respond(request, StatusCode::NOT_FOUND, 0, self.length, open);
        }
        match condition::check(&request.headers, self.etag.as_bytes()) {
            Verdict::Go => {}
            Verdict::Failed => return Reply::Ready(Err(Problem::PreconditionFailed)),
            Verdict::NotModified => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                *response.headers_mut() = self.not_modified.clone();
                return Reply::Ready(Ok(response));
            }
        }
        match negotiate::span(request, self.etag.as_bytes(), self.length) {
            Span::Whole => self.respond(request, StatusCode::OK, 0, self.length, open),
            Span::Part(start, end) => self.respond(request, StatusCode::PARTIAL_CONTENT, start, end, open),
            Span::Nothing => Reply::Ready(Err(Problem::RangeRefused(self.length))),
        }
    }

    /// The bytes from `start` up to but not including `end`, with this status.
    fn respond(
        &self,
        request: &Parts,
        status: StatusCode,
        start: u64,
        end: u64,
        open: Option<&Arc<File>>,
    ) -> Reply<'_> {
        let body = match (&request.method, &self.source) {
            (&Method::HEAD, _) => Body::empty(),
            (_, Source::Read(bytes) | Source::Made(bytes)) => {
                let place = |at: u64| usize::try_from(at).expect("what is in memory has a length that fits");
                Body::kept(bytes.slice(place(start)..place(end)), self.backed.as_ref())
            }
            (_, Source::Stream(real)) => match open {
                Some(file) => FileBody::new(Arc::clone(file), start, end).into(),
                None => return Reply::Open(real),
            },
        };
        let mut headers = self.whole.clone();
        match status {
            StatusCode::PARTIAL_CONTENT => {
                let range = format!("bytes {start}-{}/{}", end - 1, self.length);
                let range = HeaderValue::from_maybe_shared(Bytes::from(range)).expect("digits are ASCII");
                headers.insert(header::CONTENT_RANGE, range);
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(end - start));
            }
            StatusCode::NOT_FOUND => {
                // It is the answer to a path where another version may have something.
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
                headers.remove(header::ETAG);
                headers.remove(header::ACCEPT_RANGES);
            }
            _ => {}
        }
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Reply::Ready(Ok(response))
    }
}

/// A strong ETag: store path, path within the site, encoding; and the bytes themselves where kennel has made them,
/// since another version of kennel may make others.
fn etag(root: &StorePath, file: &SiteFile, encoding: Option<&str>, source: &Source) -> HeaderValue {
    let made: &[u8] = match source {
        Source::Made(bytes) => bytes,
        Source::Read(_) | Source::Stream(_) => b"",
    };
    let mut hasher = Sha256::new();
    for part in [root.as_str().as_bytes(), file.name(), encoding.unwrap_or_default().as_bytes(), made] {
        hasher.update(part);
        hasher.update([0]);
    }
    let hex = hex::encode(&hasher.finalize()[..16]);
    HeaderValue::from_str(&format!("\"{hex}\"")).expect("hexadecimal digits are ASCII")
}
