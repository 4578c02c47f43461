//! A static site: the files of one store path.
//!
//! Files of the store never change and all bear the same date, so the version is told by the store path alone:
//! ETags are made of it, and there is no `Last-Modified` (RFC 9110, section 8.8).
//!
//! **Invariant:** nothing outside the store is ever read, whatever a link says.

mod file;
mod negotiate;
mod path;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use sha2::{Digest as _, Sha256};

pub(super) use self::file::FileBody;
use self::file::{Found, Opened, Wanted};
use self::negotiate::{Encodings, Span};
use super::body::Body;
use super::pages::Problem;
use crate::model::StorePath;

/// One site.
#[derive(Debug)]
pub(super) struct Site {
    /// The store path, from which ETags are made.
    name: StorePath,
    /// Where links may lead.
    store_dir: PathBuf,
    /// The directory.
    root: PathBuf,
    spa: bool,
}

impl Site {
    /// The site whose files are `root`, a path of the store that lies at `store_dir`.
    pub(super) fn new(store_dir: &Path, root: &StorePath, spa: bool) -> Self {
        let base = root.as_str().rsplit('/').next().unwrap_or_default();
        Self { name: root.clone(), store_dir: store_dir.to_owned(), root: store_dir.join(base), spa }
    }

    /// Whether this is the site of `root`.
    pub(super) fn serves(&self, root: &StorePath, spa: bool) -> bool {
        self.name == *root && self.spa == spa
    }

    /// Answers a request.
    ///
    /// # Errors
    /// When there is no such file, or it cannot be given as asked.
    pub(super) async fn answer(self: &Arc<Self>, request: &Parts) -> Result<Response<Body>, Problem> {
        if request.method != Method::GET && request.method != Method::HEAD {
            return Err(Problem::NotForSites);
        }
        let wanted = Wanted {
            path: path::parse(request.uri.path())?,
            encodings: Encodings::accepted(&request.headers),
            fallback: self.spa && negotiate::wants_page(request),
        };
        let site = Arc::clone(self);
        let found = tokio::task::spawn_blocking(move || file::find(&site.store_dir, &site.root, &wanted)).await;
        match found {
            Ok(Ok(Found::File(file))) => self.file(request, file),
            Ok(Ok(Found::Directory)) => Ok(to_directory(request)),
            Ok(Ok(Found::Nothing)) => Err(Problem::NoSuchFile),
            Ok(Err(err)) => {
                let site = &self.name;
                tracing::error!(store.path = %site, error = %err, "Cannot read a file of the site `{site}`");
                Err(Problem::SiteBroken)
            }
            Err(panic) => {
                tracing::error!(error = %panic, "Looking up a file panicked");
                Err(Problem::SiteBroken)
            }
        }
    }

    fn file(&self, request: &Parts, file: Opened) -> Result<Response<Body>, Problem> {
        let etag = self.etag(&file);
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(header::ETAG, etag.clone());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(negotiate::cache_control(&file.relative)));
        if file.varies {
            headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        }
        let etag = etag.as_bytes();
        if request.headers.contains_key(header::IF_MATCH) && !named(&request.headers, &header::IF_MATCH, etag) {
            return Err(Problem::PreconditionFailed);
        }
        if named(&request.headers, &header::IF_NONE_MATCH, etag) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return Ok(response);
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(negotiate::content_type(&file.relative)));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        if let Some(encoding) = file.encoding {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding.name()));
        }
        let length = file.length;
        let (start, end) = match negotiate::span(request, etag, length) {
            Span::Whole => (0, length),
            Span::Part(start, end) => {
                let value = format!("bytes {start}-{}/{length}", end - 1);
                headers.insert(header::CONTENT_RANGE, HeaderValue::from_str(&value).expect("digits are ASCII"));
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                (start, end)
            }
            Span::Nothing => return Err(Problem::RangeRefused(length)),
        };
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(end - start));
        if request.method == Method::GET {
            *response.body_mut() = file.body(start, end);
        }
        Ok(response)
    }

    /// A strong ETag: store path, path within the site, encoding.
    fn etag(&self, file: &Opened) -> HeaderValue {
        let mut hasher = Sha256::new();
        for part in [self.name.as_str(), &file.relative, file.encoding.map_or("", |encoding| encoding.name())] {
            hasher.update(part.as_bytes());
            hasher.update([0]);
        }
        let hex = hex::encode(&hasher.finalize()[..16]);
        HeaderValue::from_str(&format!("\"{hex}\"")).expect("hexadecimal digits are ASCII")
    }
}

/// Whether a list of ETags names `etag`, strong or weak, or any.
fn named(headers: &HeaderMap, list: &HeaderName, etag: &[u8]) -> bool {
    headers.get_all(list).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).any(|tag| {
        let tag = tag.trim_ascii();
        tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == etag
    })
}

/// The same address with a slash at its end, so that relative links in the directory's page are right.
fn to_directory(request: &Parts) -> Response<Body> {
    let query = request.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = Response::new(Body::empty());
    match HeaderValue::from_str(&format!("{}/{query}", request.uri.path())) {
        Ok(location) => {
            *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
            response.headers_mut().insert(header::LOCATION, location);
            // Another version may have a file there.
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        }
        Err(_) => *response.status_mut() = StatusCode::BAD_REQUEST,
    }
    response
}
