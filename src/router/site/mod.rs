//! A static site: the files of one store path, and the hashed ones of the versions before it.
//!
//! Files of the store never change and all bear the same date, so the version is told by the store path alone:
//! ETags are made of it, and there is no `Last-Modified` (RFC 9110, section 8.8).
//!
//! **Invariant:** nothing outside the store is ever read, whatever a link says; and what is kept in memory is
//! answered with before the request's future is first polled, without a system call.

mod cache;
mod compress;
mod condition;
mod media;
mod negotiate;
mod path;
mod representation;
mod stream;
mod tree;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};

pub(super) use self::cache::{Files, Tree};
use self::negotiate::{Encoding, Liking};
use self::representation::{Reply, Representation, Sense};
pub(super) use self::stream::FileBody;
use self::tree::{Found, SiteFile};
use super::body::Body;
use super::pages::{self, Problem};

/// What a single-page application answers with for every page.
const FRONT_PAGE: &str = "/index.html";
/// What a site may say when there is nothing at a path.
const NOT_FOUND_PAGE: &str = "/404.html";

/// One site.
#[derive(Debug)]
pub(super) struct Site {
    /// The live version.
    live: Arc<Tree>,
    /// The versions before it, the newest first, as far as they are still in the store.
    previous: Vec<Arc<Tree>>,
    spa: bool,
}

/// The answer to a request.
type Answer = Result<Response<Body>, Problem>;

/// What has to be done before there can be an answer.
enum Missing<'a> {
    /// Finding out what is at this path of a request.
    Find(&'a Arc<Tree>, &'a str),
    /// Reading this file in this encoding.
    Read(&'a Arc<Tree>, Arc<SiteFile>, Option<Encoding>),
    /// Opening this file, of which only a part at a time is in memory.
    Open(PathBuf),
}

/// What has been done for one request. It counts even where there was no room to keep it.
#[derive(Default)]
struct Learned<'a> {
    found: Vec<(&'a Arc<Tree>, &'a str, Found)>,
    representation: Option<Arc<Representation>>,
    open: Option<Arc<File>>,
}

impl Site {
    /// The site whose files are `live`; `previous` are those of the versions before it, the newest first.
    pub(super) fn new(live: Arc<Tree>, previous: Vec<Arc<Tree>>, spa: bool) -> Self {
        Self { live, previous, spa }
    }

    /// The files of all its versions.
    pub(super) fn trees(&self) -> impl Iterator<Item = &Arc<Tree>> {
        std::iter::once(&self.live).chain(&self.previous)
    }

    /// Answers a request with what is in memory; `None` when that is not enough.
    pub(super) fn answer_at_once(&self, request: &Parts) -> Option<Answer> {
        self.try_answer(request, &Learned::default()).ok()
    }

    /// Answers a request.
    ///
    /// # Errors
    /// When there is no such file, or it cannot be given as asked.
    pub(super) async fn answer(&self, request: &Parts) -> Answer {
        let mut learned = Learned::default();
        loop {
            let missing = match self.try_answer(request, &learned) {
                Ok(answer) => return answer,
                Err(missing) => missing,
            };
            let done = match missing {
                Missing::Find(tree, path) => match path::parse(path) {
                    Ok(parsed) => tree.find(path, parsed).await.map(|found| learned.found.push((tree, path, found))),
                    Err(problem) => return Err(problem),
                },
                Missing::Read(tree, file, encoding) => {
                    tree.read(&file, encoding).await.map(|read| learned.representation = Some(read))
                }
                Missing::Open(real) => open(real).await.map(|file| learned.open = Some(Arc::new(file))),
            };
            if let Err(err) = done {
                let site = self.live.name();
                tracing::error!(store.path = %site, error = %err, "Cannot read a file of the site `{site}`");
                return Err(Problem::SiteBroken);
            }
        }
    }

    /// Answers a request with what is in memory and what has been `learned` for it.
    fn try_answer<'a>(&'a self, request: &'a Parts, learned: &Learned<'a>) -> Result<Answer, Missing<'a>> {
        if request.method != Method::GET && request.method != Method::HEAD {
            return Ok(Err(Problem::NotForSites));
        }
        let (live, path) = (&self.live, request.uri.path());
        match learned.at(live, path)? {
            Found::File(file) => return give(request, live, &file, Sense::Found, learned),
            Found::WithSlash => return Ok(Ok(redirect(request, &format!("{path}/")))),
            Found::WithoutSlash => return Ok(Ok(redirect(request, path.trim_end_matches('/')))),
            Found::Nothing => {}
        }
        if media::outlives_its_version(path.trim_start_matches('/')) {
            for tree in &self.previous {
                if let Found::File(file) = learned.at(tree, path)? {
                    return give(request, tree, &file, Sense::Found, learned);
                }
            }
        }
        if self.spa
            && negotiate::wants_page(request)
            && let Found::File(file) = learned.at(live, FRONT_PAGE)?
        {
            return give(request, live, &file, Sense::Found, learned);
        }
        if !pages::prefers_json(&request.headers)
            && let Found::File(file) = learned.at(live, NOT_FOUND_PAGE)?
        {
            return give(request, live, &file, Sense::NotFound, learned);
        }
        Ok(Err(Problem::NoSuchFile))
    }
}

impl<'a> Learned<'a> {
    /// What is at `path`, a request's, in `tree`.
    fn at(&self, tree: &'a Arc<Tree>, path: &'a str) -> Result<Found, Missing<'a>> {
        let found = self.found.iter().find(|(of, at, _)| Arc::ptr_eq(of, tree) && *at == path);
        let found = found.map(|(.., found)| found.clone()).or_else(|| tree.known(path));
        found.ok_or(Missing::Find(tree, path))
    }
}

/// Answers with `file` of `tree`, in the encoding the visitor likes best.
fn give<'a>(
    request: &Parts,
    tree: &'a Arc<Tree>,
    file: &Arc<SiteFile>,
    sense: Sense,
    learned: &Learned<'a>,
) -> Result<Answer, Missing<'a>> {
    let encoding = file.varies().then(|| Liking::of(&request.headers).best(|encoding| file.has(encoding))).flatten();
    let Some(representation) = learned.representation.clone().or_else(|| tree.kept(file, encoding)) else {
        return Err(Missing::Read(tree, Arc::clone(file), encoding));
    };
    match representation.answer(request, sense, learned.open.as_ref()) {
        Reply::Ready(answer) => Ok(answer),
        Reply::Open(real) => Err(Missing::Open(real.to_owned())),
    }
}

async fn open(real: PathBuf) -> io::Result<File> {
    tokio::task::spawn_blocking(move || File::open(real)).await.map_err(io::Error::other)?
}

/// Sends the visitor to `path`, with the query he came with.
fn redirect(request: &Parts, path: &str) -> Response<Body> {
    let query = request.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = Response::new(Body::empty());
    match HeaderValue::from_str(&format!("{path}{query}")) {
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
