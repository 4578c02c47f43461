//! Visitors: as many connections as wanted, each sending one request after the other, or at a fixed rate.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::future::try_join_all;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::secure::Tls;

/// How the visitors behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Each asks as fast as it is answered, over one connection.
    Keep,
    /// Each asks as fast as it is answered, over a new connection every time.
    Renew,
    /// Each asks as fast as it is answered, several over one connection of HTTP/2.
    Many,
    /// All together ask this many times a second.
    Rate(u32),
}

/// What is asked for.
#[derive(Clone)]
pub(crate) struct Requests {
    /// Where.
    pub(crate) address: SocketAddr,
    /// The requests, taken in turn by all visitors together.
    pub(crate) texts: Rc<[String]>,
    /// What every answer's status must be.
    pub(crate) status: u16,
    /// How they come by TLS, if they do.
    pub(crate) tls: Option<Tls>,
}

/// What the visitors have seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    answers: Cell<u64>,
    bytes: Cell<u64>,
    closed: Cell<u64>,
    latencies: RefCell<Vec<f64>>,
    stop: Cell<bool>,
}

impl Seen {
    /// Answers so far.
    pub(crate) fn answers(&self) -> u64 {
        self.answers.get()
    }

    /// Bytes of bodies so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Connections that were closed between two requests, so far.
    pub(crate) fn closed(&self) -> u64 {
        self.closed.get()
    }

    /// How long answers took, in milliseconds, since the last call.
    pub(crate) fn take_latencies(&self) -> Vec<f64> {
        self.latencies.take()
    }

    /// Whether there has been enough.
    pub(crate) fn is_over(&self) -> bool {
        self.stop.get()
    }

    /// Lets every visitor finish the answer it waits for and go.
    pub(crate) fn stop(&self) {
        self.stop.set(true);
    }

    /// So many bytes of a body came.
    pub(crate) fn received(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes as u64);
    }

    /// There was an answer.
    pub(crate) fn answered(&self, latency: Duration) {
        self.answers.set(self.answers.get() + 1);
        self.latencies.borrow_mut().push(latency.as_secs_f64() * 1000.0);
    }
}

/// Runs `visitors` until `measure`, which looks at what they have seen, is done. A visitor who is failed ends it.
pub(crate) async fn run<T>(
    requests: &Requests,
    visitors: usize,
    manner: Manner,
    measure: impl AsyncFnOnce(&Seen) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let seen = Rc::new(Seen::default());
    let local = LocalSet::new();
    let turn = Rc::new(Cell::new(0));
    let tasks: Vec<_> = (0..visitors)
        .map(|number| {
            let (requests, seen, turn) = (requests.clone(), Rc::clone(&seen), Rc::clone(&turn));
            let visiting = async move { visit(&requests, manner, number, visitors, &turn, &seen).await };
            let visiting = local.spawn_local(visiting);
            async move { visiting.await.context("a visitor panicked")? }
        })
        .collect();
    local
        .run_until(async {
            let mut visiting = pin!(try_join_all(tasks));
            let measured = tokio::select! {
                measured = measure(&seen) => measured?,
                ended = &mut visiting => {
                    ended?;
                    anyhow::bail!("there are no visitors");
                }
            };
            seen.stop();
            visiting.await?;
            Ok(measured)
        })
        .await
}

async fn visit(
    requests: &Requests,
    manner: Manner,
    number: usize,
    visitors: usize,
    turn: &Cell<usize>,
    seen: &Seen,
) -> anyhow::Result<()> {
    if let (Manner::Many, Some(tls)) = (manner, &requests.tls) {
        return tls.visit(requests, number, seen).await;
    }
    let mut connection: Option<Box<dyn Stream>> = None;
    let mut buffer = vec![0; 256 * 1024];
    let pace = match manner {
        Manner::Rate(rate) => Some(Duration::from_secs_f64(visitors as f64 / f64::from(rate))),
        Manner::Keep | Manner::Renew | Manner::Many => None,
    };
    let mut due = tokio::time::Instant::now() + pace.unwrap_or_default().mul_f64(number as f64 / visitors as f64);
    while !seen.stop.get() {
        if let Some(pace) = pace {
            tokio::time::sleep_until(due).await;
            due += pace;
        }
        let text = &requests.texts[turn.get() % requests.texts.len()];
        turn.set(turn.get() + 1);
        let begun = Instant::now();
        let reused = connection.is_some();
        let mut stream = match connection.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(requests.address).await?;
                stream.set_nodelay(true)?;
                match &requests.tls {
                    Some(tls) => Box::new(tls.connect(stream).await?) as Box<dyn Stream>,
                    None => Box::new(stream),
                }
            }
        };
        match ask(&mut stream, text, requests.status, &mut buffer, seen).await {
            Ok(Some(Answer { closes })) => {
                seen.answered(begun.elapsed());
                if manner != Manner::Renew && !closes {
                    connection = Some(stream);
                }
            }
            // A proxy may close a connection between two requests.
            Ok(None) if reused => seen.closed.set(seen.closed.get() + 1),
            Ok(None) => anyhow::bail!("the connection was closed without an answer"),
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

/// A connection, by TLS or not.
trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

struct Answer {
    closes: bool,
}

/// One request and its answer; `None` when the connection was closed before the answer's first byte.
async fn ask<S>(
    stream: &mut S,
    text: &str,
    status: u16,
    buffer: &mut [u8],
    seen: &Seen,
) -> anyhow::Result<Option<Answer>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if stream.write_all(text.as_bytes()).await.is_err() {
        return Ok(None);
    }
    let mut filled = 0;
    let head = loop {
        let read = stream.read(&mut buffer[filled..]).await.unwrap_or_default();
        if read == 0 {
            anyhow::ensure!(filled == 0, "the answer broke off in its head");
            return Ok(None);
        }
        filled += read;
        if let Some(end) = buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = std::str::from_utf8(&buffer[..head])?.to_ascii_lowercase();
    let given: u16 = text.get(9..12).context("no status")?.parse()?;
    anyhow::ensure!(given == status, "an answer of {given} instead of {status}: {text}");
    let closes = text.contains("\r\nconnection: close\r\n");
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
    let Some(length) = length else {
        anyhow::ensure!(matches!(status, 204 | 304), "an answer without length: {text}");
        return Ok(Some(Answer { closes }));
    };
    let body: usize = if matches!(status, 204 | 304) { 0 } else { length.trim().parse()? };
    let mut left = body - (filled - head);
    seen.received(filled - head);
    while left > 0 {
        let read = stream.read(buffer).await?;
        anyhow::ensure!(read > 0, "the answer broke off {left} bytes before its end");
        left -= read;
        seen.received(read);
    }
    Ok(Some(Answer { closes }))
}

/// Opens `count` connections, each of which has had one answer.
pub(crate) async fn open(requests: &Requests, count: usize) -> anyhow::Result<Vec<TcpStream>> {
    let mut buffer = vec![0; 64 * 1024];
    let mut streams = Vec::with_capacity(count);
    for number in 0..count {
        let mut stream = TcpStream::connect(requests.address).await?;
        let text = &requests.texts[number % requests.texts.len()];
        ask(&mut stream, text, requests.status, &mut buffer, &Seen::default())
            .await?
            .context("closed without an answer")?;
        streams.push(stream);
    }
    Ok(streams)
}
