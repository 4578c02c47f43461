//! Services that speak HTTP/2 in clear text, such as those of gRPC: few connections, many requests on each.
//!
//! Nothing is put together or taken apart on the way: messages stream both ways as they come, trailers included.
//!
//! **Invariant:** a visitor who takes or sends nothing holds up nobody else on the same connection.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Request, Response, Uri, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use tokio_util::task::TaskTracker;

use super::Timeouts;
use super::body::{Body, BodyError, RequestBody, Source};
use super::connection::Visitor;
use super::forward;
use super::headers;
use super::origin::Origin;
use super::pages::Problem;
use super::upstream::Claim;
use super::visitor_body::VisitorBody;
use super::watch::Moment;

/// Requests on one connection before there is another. Many servers allow a hundred.
const REQUESTS_MAX: usize = 100;
/// How often a request is sent before it is given up, if nothing of it was.
const TRIES: usize = 3;
/// Bytes of one answer that a service may send before the visitor has taken them.
const STREAM_WINDOW: u32 = 128 * 1024;
/// The same for all of a connection: as much as there is (RFC 9113, section 6.9.1), so that those who take nothing do
/// not use up what the others need.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Bytes of one request that wait for the service.
const SEND_BUFFER: usize = 64 * 1024;

/// The connections to one version of a service: for each of the router's threads, its own.
#[derive(Debug)]
pub(super) struct Links {
    lanes: Box<[Lane]>,
    /// The tasks that read and write, which end with the connections.
    tasks: TaskTracker,
}

/// The connections of one thread.
#[derive(Debug, Default)]
struct Lane {
    open: Mutex<Vec<Link>>,
    /// Held while there is to be another: those who want one meanwhile wait for it.
    opening: tokio::sync::Mutex<()>,
}

/// One connection.
#[derive(Debug, Clone)]
struct Link {
    send: SendRequest<Upload>,
    /// Held by each request on it, and once here.
    inside: Arc<()>,
}

impl Links {
    /// None yet, for so many threads.
    pub(super) fn new(lanes: usize) -> Self {
        Self { lanes: (0..lanes).map(|_| Lane::default()).collect(), tasks: TaskTracker::new() }
    }

    /// Lets go of the connections: each closes after its last request.
    pub(super) fn empty(&self) {
        (0..self.lanes.len()).for_each(|lane| self.lane(lane).clear());
    }

    fn lane(&self, lane: usize) -> MutexGuard<'_, Vec<Link>> {
        self.lanes[lane].open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that has room.
    fn find(&self, lane: usize) -> Option<Link> {
        let mut links = self.lane(lane);
        links.retain(|link| !link.send.is_closed());
        links.iter().find(|link| Arc::strong_count(&link.inside) <= REQUESTS_MAX).cloned()
    }
}

/// Where hyper's tasks for a connection run.
#[derive(Debug, Clone)]
struct Tasks(TaskTracker);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// What a visitor asks of a service.
#[derive(Debug)]
pub(super) struct Asked {
    request: Request<Upload>,
    progress: Arc<Progress>,
    /// Whether it is a call of gRPC, in which both sides may be silent for long.
    is_call: bool,
}

impl Asked {
    /// What the visitor described by `origin` asks of `host`.
    pub(super) fn new(mut parts: Parts, host: &str, origin: &Origin, body: VisitorBody, timeouts: &Timeouts) -> Self {
        headers::to_http2(&mut parts.headers, host, origin);
        let target = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        let uri = Uri::builder().scheme("http").authority(host).path_and_query(target).build();
        parts.uri = uri.expect("a canonical host is an authority");
        parts.version = Version::HTTP_2;
        let kind = parts.headers.get(header::CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
        let is_call = kind.starts_with(b"application/grpc");
        let progress = Arc::new(Progress::new());
        let idle = if is_call { timeouts.streaming_idle } else { timeouts.idle };
        let body = Upload { body: RequestBody::new(body, idle), progress: Arc::clone(&progress) };
        Self { request: Request::from_parts(parts, body), progress, is_call }
    }
}

/// How far a request's body has come.
#[derive(Debug)]
struct Progress {
    moved_ms: AtomicU64,
    /// As [`Stop`].
    stopped: AtomicU8,
}

/// Why a request's body did not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// It did.
    No,
    /// The visitor was silent for too long.
    Silent,
    /// The visitor broke off.
    Broken,
}

impl Progress {
    fn new() -> Self {
        Self { moved_ms: AtomicU64::new(Moment::now().as_ms()), stopped: AtomicU8::new(Stop::No as u8) }
    }

    fn note(&self, stop: Stop) {
        self.moved_ms.store(Moment::now().as_ms(), Ordering::Relaxed);
        self.stopped.store(stop as u8, Ordering::Relaxed);
    }

    fn moved(&self) -> Moment {
        Moment::from_ms(self.moved_ms.load(Ordering::Relaxed))
    }

    fn stopped(&self) -> Stop {
        let number = self.stopped.load(Ordering::Relaxed);
        [Stop::Silent, Stop::Broken].into_iter().find(|stop| *stop as u8 == number).unwrap_or(Stop::No)
    }
}

/// A request's body, as the visitor sends it. It is polled by the connection's task.
#[derive(Debug)]
struct Upload {
    body: RequestBody,
    progress: Arc<Progress>,
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(frame) = &frame {
            this.progress.note(match frame {
                Some(Err(BodyError::Silent(_))) => Stop::Silent,
                Some(Err(_)) => Stop::Broken,
                Some(Ok(_)) | None => Stop::No,
            });
        }
        frame.map(|frame| frame.map(|frame| frame.map(without_control)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Trailers without what its end is too late for.
fn without_control(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(trailers) => Frame::trailers(headers::clean_trailers(trailers)),
        Err(frame) => frame,
    }
}

/// Sends what is asked to the service that `claim` leads to.
///
/// # Errors
/// When there is no answer to pass on.
pub(super) async fn forward(
    claim: Claim,
    asked: Asked,
    visitor: &Visitor,
    timeouts: &Timeouts,
) -> Result<Response<Body>, Problem> {
    let Asked { mut request, progress, is_call } = asked;
    let limit = if is_call { timeouts.streaming_idle } else { timeouts.response_header };
    let mut tries = 0..TRIES;
    loop {
        let kept = claim.links().and_then(|links| links.find(visitor.lane));
        let mut link = match kept {
            Some(link) => link,
            None => connect(&claim, visitor.lane, timeouts).await?,
        };
        tries.next();
        match wait(&claim, link.send.try_send_request(request), &progress, visitor, limit).await? {
            Ok(response) => return Ok(answer(response, link.inside, claim, visitor, timeouts)),
            // Nothing of it was sent: the connection had been closed meanwhile.
            Err((_, Some(unsent))) if !tries.is_empty() => request = unsent,
            Err((err, _)) => return Err(problem(&claim, &progress, &err)),
        }
    }
}

type Unsent = (hyper::Error, Option<Request<Upload>>);

async fn connect(claim: &Claim, lane: usize, timeouts: &Timeouts) -> Result<Link, Problem> {
    let deployment = claim.deployment();
    let links = claim.links().ok_or(Problem::Switching)?;
    let _one_at_a_time = links.lanes[lane].opening.lock().await;
    if let Some(link) = links.find(lane) {
        return Ok(link);
    }
    let (stream, _) = forward::connect(claim, timeouts).await?.into_parts();
    let mut builder = Builder::new(Tasks(links.tasks.clone()));
    builder
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER);
    let (send, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|err| {
        tracing::warn!(deployment.id = %deployment, error = %err, "Deployment {deployment} does not speak HTTP/2");
        Problem::Broken
    })?;
    links.tasks.spawn(async move {
        if let Err(err) = connection.await {
            tracing::debug!(deployment.id = %deployment, error = %err, "A connection to {deployment} broke off");
        }
    });
    let link = Link { send, inside: Arc::new(()) };
    let mut kept = links.lane(lane);
    // Under the lock: a drain empties them after it has closed the upstream.
    if !claim.is_closing() {
        kept.push(link.clone());
    }
    Ok(link)
}

/// Waits for the answer's head.
async fn wait(
    claim: &Claim,
    answering: impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Upload>>>>,
    progress: &Progress,
    visitor: &Visitor,
    limit: Duration,
) -> Result<Result<Response<Incoming>, Unsent>, Problem> {
    let mut answering = pin!(answering);
    let begun = Moment::now();
    poll_fn(|cx| {
        if let Poll::Ready(answered) = answering.as_mut().poll(cx) {
            return Poll::Ready(Ok(answered.map_err(|mut err| {
                let unsent = err.take_message();
                (err.into_error(), unsent)
            })));
        }
        let deployment = claim.deployment();
        if claim.is_cut() {
            tracing::warn!(
                deployment.id = %deployment,
                "Deployment {deployment} was cut before it answered, when its drain ended"
            );
            return Poll::Ready(Err(Problem::Broken));
        }
        let due = progress.moved().max(begun).after(limit);
        if Moment::now() >= due {
            tracing::warn!(deployment.id = %deployment, "Deployment {deployment} gave no answer in time");
            return Poll::Ready(Err(Problem::Silent));
        }
        visitor.watch.until(due);
        Poll::Pending
    })
    .await
}

fn problem(claim: &Claim, progress: &Progress, err: &hyper::Error) -> Problem {
    match progress.stopped() {
        Stop::Silent => return Problem::VisitorSilent,
        Stop::Broken => return Problem::BadRequest("The request's body broke off, or is not valid."),
        Stop::No => {}
    }
    let deployment = claim.deployment();
    tracing::warn!(
        deployment.id = %deployment, error = %crate::telemetry::chain(err),
        "Deployment {deployment} gave no proper answer"
    );
    Problem::Broken
}

fn answer(
    response: Response<Incoming>,
    inside: Arc<()>,
    claim: Claim,
    visitor: &Visitor,
    timeouts: &Timeouts,
) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    headers::clean_response(&mut parts.headers);
    parts.version = Version::HTTP_11;
    let source = Source::new(claim, body.size_hint().exact(), visitor.watch.clone(), timeouts);
    let body = AnswerBody { body, source, _inside: inside };
    Response::from_parts(parts, body.into())
}

/// What a service answers.
#[derive(Debug)]
pub(super) struct AnswerBody {
    body: Incoming,
    source: Source,
    _inside: Arc<()>,
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { body, source, .. } = self.get_mut();
        Poll::Ready(match ready!(source.limit(Pin::new(body).poll_frame(cx))) {
            Ok(frame) => frame.map(|frame| frame.map_err(BodyError::Broken)),
            Err(err) => Some(Err(err)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
