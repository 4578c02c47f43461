//! Services that speak HTTP/2 in clear text, such as those of gRPC: few connections, many requests on each.
//!
//! Messages stream both ways as they come, trailers included; `links` keeps the connections.
//!
//! **Invariant:** a visitor who takes or sends nothing holds up nobody else on the same connection.

mod links;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Request, Response, Uri, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio_util::task::AbortOnDropHandle;

use self::links::Link;
pub(super) use self::links::Links;
use super::Timeouts;
use super::body::{Body, BodyError, RequestBody, Source};
use super::connection::Visitor;
use super::forward;
use super::headers;
use super::origin::Origin;
use super::outbox::Outbox;
use super::pages::Problem;
use super::streamed::Streamed;
use super::upstream::Claim;
use super::visitor_body::VisitorBody;
use super::watch::Moment;

/// How many connections are tried before a request is given up, if nothing of it was sent.
const TRIES: usize = 3;

/// What a visitor asks of a service.
#[derive(Debug)]
pub(super) struct Asked {
    head: Request<()>,
    upload: Option<Upload>,
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
        let upload = (!body.is_end_stream())
            .then(|| Upload { body: RequestBody::new(body, idle), progress: Arc::clone(&progress) });
        Self { head: Request::from_parts(parts, ()), upload, progress, is_call }
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

/// A request's body, as the visitor sends it.
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
    let Asked { head, upload, progress, is_call } = asked;
    let limit = if is_call { timeouts.streaming_idle } else { timeouts.response_header };
    let links = claim.links().ok_or(Problem::Switching)?;
    let mut tries = 0..TRIES;
    let (link, mut send) = loop {
        let link = match links.find(visitor.lane) {
            Some(link) => link,
            None => connect(&claim, links, visitor.lane, timeouts).await?,
        };
        tries.next();
        match wait(&claim, link.ready(), &progress, visitor, limit).await? {
            Ok(send) => break (link, send),
            // The connection had been closed meanwhile.
            Err(_) if !tries.is_empty() => {}
            Err(err) => return Err(problem(&claim, &progress, &err)),
        }
    };
    let sent = send.send_request(head, upload.is_none());
    drop(send);
    let (answering, stream) = sent.map_err(|err| problem(&claim, &progress, &err))?;
    let uploading = upload.map(|upload| {
        let mut rest = Outbox::new(upload, stream);
        AbortOnDropHandle::new(links.spawn(async move {
            if let Err(err) = poll_fn(|cx| rest.poll(cx)).await {
                tracing::debug!(error = %err, "A request broke off");
            }
        }))
    });
    let response = wait(&claim, answering, &progress, visitor, limit).await?;
    let (mut parts, body) = response.map_err(|err| problem(&claim, &progress, &err))?.into_parts();
    headers::clean_response(&mut parts.headers);
    parts.version = Version::HTTP_11;
    let body = if body.is_end_stream() {
        Body::empty()
    } else {
        let body = links.receive(body, &parts.headers);
        let source = Source::new(claim, body.size_hint().exact(), visitor.watch.clone(), timeouts);
        AnswerBody { body, source, _link: link, _uploading: uploading }.into()
    };
    Ok(Response::from_parts(parts, body))
}

async fn connect(claim: &Claim, links: &Links, lane: usize, timeouts: &Timeouts) -> Result<Link, Problem> {
    let deployment = claim.deployment();
    let _one_at_a_time = links.opening(lane).await;
    if let Some(link) = links.find(lane) {
        return Ok(link);
    }
    let (stream, _) = forward::connect(claim, timeouts).await?.into_parts();
    links.open(lane, stream, claim).await.map_err(|err| {
        tracing::warn!(deployment.id = %deployment, error = %err, "Deployment {deployment} does not speak HTTP/2");
        Problem::Broken
    })
}

/// Waits for `step` on the way to an answer's head.
async fn wait<T>(
    claim: &Claim,
    step: impl Future<Output = T>,
    progress: &Progress,
    visitor: &Visitor,
    limit: Duration,
) -> Result<T, Problem> {
    let mut step = pin!(step);
    let begun = Moment::now();
    poll_fn(|cx| {
        if let Poll::Ready(done) = step.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
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

fn problem(claim: &Claim, progress: &Progress, err: &h2::Error) -> Problem {
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

/// What a service answers.
#[derive(Debug)]
pub(super) struct AnswerBody {
    body: Streamed,
    source: Source,
    _link: Link,
    _uploading: Option<AbortOnDropHandle<()>>,
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { body, source, .. } = self.get_mut();
        Poll::Ready(match ready!(source.limit(body.poll_frame(cx))) {
            Ok(frame) => frame.map(|frame| frame.map_err(BodyError::Reset)),
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
