//! What a visitor sends on a stream of HTTP/2, from its arrival until somebody takes it.
//!
//! `h2` keeps a record of each frame that waits, which is far larger than a small frame, and ends a connection of which
//! too many wait. Here the same bytes take no more than their own room.
//!
//! **Invariant:** a window is opened only for what has been taken, so that windows bound what waits.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream};
use http::HeaderMap;
use http_body::Frame;

/// The most that is taken at once of what waits, in bytes.
const PIECE: usize = 16 * 1024;

/// The receiving half of a stream, for whoever reads it, in any task.
#[derive(Debug)]
pub(super) struct Inbox(Arc<Mutex<State>>);

/// Fills an [`Inbox`], in the connection's task; ready when nothing more comes, or nobody reads it.
#[derive(Debug)]
#[must_use]
pub(super) struct Filling(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// `None` when nobody reads it any more.
    stream: Option<RecvStream>,
    /// What waits: a frame's bytes as they came, and copies of those after it.
    first: Bytes,
    more: BytesMut,
    end: End,
    reader: Option<Waker>,
    filler: Option<Waker>,
}

/// How far a stream has come.
#[derive(Debug)]
enum End {
    /// More may come.
    Open,
    /// It has ended, with trailers or without, or broken off, and nobody has been told.
    Untold(Result<Option<HeaderMap>, h2::Error>),
    /// It has ended.
    Told,
}

impl Inbox {
    /// The one of `stream`, and what fills it.
    pub(super) fn new(stream: RecvStream) -> (Self, Filling) {
        let state = State {
            stream: Some(stream),
            first: Bytes::new(),
            more: BytesMut::new(),
            end: End::Open,
            reader: None,
            filler: None,
        };
        let state = Arc::new(Mutex::new(state));
        (Self(Arc::clone(&state)), Filling(state))
    }

    /// What comes next: data, or trailers as the last; `None` at the end.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let mut state = lock(&self.0);
        if let Some(piece) = state.take() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match std::mem::replace(&mut state.end, End::Told) {
            End::Open => {
                state.end = End::Open;
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            End::Untold(end) => Poll::Ready(end.transpose().map(|end| end.map(Frame::trailers))),
            End::Told => Poll::Ready(None),
        }
    }

    /// Whether nothing comes any more, not even trailers.
    pub(super) fn is_end_stream(&self) -> bool {
        let state = lock(&self.0);
        state.waiting() == 0
            && match &state.end {
                End::Open => state.stream.as_ref().is_some_and(RecvStream::is_end_stream),
                End::Untold(end) => matches!(end, Ok(None)),
                End::Told => true,
            }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        // The connection's window is not used up by what nobody wants.
        while state.take().is_some() {}
        state.stream = None;
        let filler = state.filler.take();
        drop(state);
        wake(filler);
    }
}

impl Future for Filling {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.0);
        let before = state.waiting();
        let is_over = state.fill(cx);
        let moved = is_over || state.waiting() > before;
        if !is_over {
            state.filler = Some(cx.waker().clone());
        }
        let reader = state.reader.take_if(|_| moved);
        drop(state);
        wake(reader);
        if is_over { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Filling {
    /// With its connection, what has not come whole is broken off.
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        if let End::Open = state.end {
            state.end = End::Untold(Err(Reason::CANCEL.into()));
        }
        let reader = state.reader.take();
        drop(state);
        wake(reader);
    }
}

impl State {
    /// Bytes that wait.
    fn waiting(&self) -> usize {
        self.first.len() + self.more.len()
    }

    /// The next of what waits, for which the window is opened.
    fn take(&mut self) -> Option<Bytes> {
        let piece = if self.first.is_empty() {
            let length = self.more.len().min(PIECE);
            self.more.split_to(length).freeze()
        } else {
            std::mem::take(&mut self.first)
        };
        if let Some(stream) = &mut self.stream {
            // Fails when the stream has been reset: then there is no window to open.
            let _ = stream.flow_control().release_capacity(piece.len());
        }
        (!piece.is_empty()).then_some(piece)
    }

    /// Adds what has come; true when nothing more does, or is wanted.
    fn fill(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(stream) = self.stream.as_mut().filter(|_| matches!(self.end, End::Open)) else { return true };
        let end = loop {
            match stream.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) if self.first.is_empty() && self.more.is_empty() => self.first = data,
                Poll::Ready(Some(Ok(data))) => self.more.extend_from_slice(&data),
                Poll::Ready(Some(Err(err))) => break Err(err),
                Poll::Ready(None) => match stream.poll_trailers(cx) {
                    Poll::Ready(trailers) => break trailers,
                    Poll::Pending => return false,
                },
                Poll::Pending => return false,
            }
        };
        self.end = End::Untold(end);
        true
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::ready;

    use tokio::task::JoinSet;

    use super::*;

    /// Both ends of a connection with the windows that HTTP/2 begins with: 65,535 bytes for each stream and for all.
    struct Pair {
        client: h2::client::SendRequest<Bytes>,
        server: tokio::sync::mpsc::Receiver<(RecvStream, h2::server::SendResponse<Bytes>)>,
        _tasks: JoinSet<()>,
    }

    impl Pair {
        async fn new() -> Self {
            let (near, far) = tokio::io::duplex(1 << 20);
            let mut tasks = JoinSet::new();
            let (accepted, server) = tokio::sync::mpsc::channel(1);
            tasks.spawn(async move {
                let mut connection = h2::server::handshake(far).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    let _ = accepted.try_send((request.into_body(), respond));
                }
            });
            let (client, connection) = h2::client::handshake(near).await.unwrap();
            tasks.spawn(async move { drop(connection.await) });
            Self { client, server, _tasks: tasks }
        }

        /// A stream on which `bytes` bytes are sent.
        async fn send(&mut self, bytes: usize) -> (h2::SendStream<Bytes>, RecvStream, h2::server::SendResponse<Bytes>) {
            let mut client = self.client.clone().ready().await.unwrap();
            let mut stream = client.send_request(http::Request::new(()), false).unwrap().1;
            stream.send_data(vec![7; bytes].into(), false).unwrap();
            let (received, respond) = self.server.recv().await.unwrap();
            (stream, received, respond)
        }
    }

    /// Reads `inbox` while `filling` fills it: until something else than data comes, or `bytes` bytes have.
    async fn read(inbox: &mut Inbox, filling: &mut Filling, bytes: usize) -> (usize, Option<Frame<Bytes>>) {
        let mut seen = 0;
        let last = poll_fn(|cx| {
            while seen < bytes {
                let _ = Pin::new(&mut *filling).poll(cx);
                match ready!(inbox.poll_frame(cx)).map(|frame| frame.unwrap().into_data()) {
                    Some(Ok(data)) => seen += data.len(),
                    Some(Err(last)) => return Poll::Ready(Some(last)),
                    None => break,
                }
            }
            Poll::Ready(None)
        });
        let last = tokio::time::timeout(std::time::Duration::from_secs(20), last).await.unwrap();
        (seen, last)
    }

    #[tokio::test]
    async fn what_is_read_is_as_it_came_and_ends_with_trailers() {
        let mut pair = Pair::new().await;
        let (mut sends, received, _respond) = pair.send(100_000).await;
        let (mut inbox, mut filling) = Inbox::new(received);
        assert!(!inbox.is_end_stream());
        assert_eq!(read(&mut inbox, &mut filling, 100_000).await.0, 100_000);
        sends.send_trailers(HeaderMap::from_iter([(http::header::ETAG, "1".parse().unwrap())])).unwrap();
        poll_fn(|cx| Pin::new(&mut filling).poll(cx)).await;
        assert!(!inbox.is_end_stream(), "trailers are still to come");
        let (more, last) = read(&mut inbox, &mut filling, 1).await;
        assert_eq!((more, last.unwrap().into_trailers().unwrap().len()), (0, 1));
        assert!(inbox.is_end_stream());
    }

    #[tokio::test]
    async fn what_nobody_reads_any_more_does_not_use_up_the_window_of_others() {
        let mut pair = Pair::new().await;
        let (_sends, received, _respond) = pair.send(65_535).await;
        let (inbox, mut filling) = Inbox::new(received);
        let all_here = |filling: &Filling| lock(&filling.0).waiting() == 65_535;
        poll_fn(|cx| {
            let poll = Pin::new(&mut filling).poll(cx);
            if all_here(&filling) { Poll::Ready(()) } else { poll }
        })
        .await;
        drop(inbox);
        poll_fn(|cx| Pin::new(&mut filling).poll(cx)).await;
        let (_sends, received, _respond) = pair.send(65_535).await;
        let (mut inbox, mut filling) = Inbox::new(received);
        assert_eq!(read(&mut inbox, &mut filling, 65_535).await.0, 65_535);
    }

    #[tokio::test]
    async fn what_ends_with_its_connection_does_not_pass_for_whole() {
        let mut pair = Pair::new().await;
        let (_sends, received, _respond) = pair.send(3).await;
        let (mut inbox, mut filling) = Inbox::new(received);
        assert_eq!(read(&mut inbox, &mut filling, 3).await.0, 3);
        drop(filling);
        let end = poll_fn(|cx| inbox.poll_frame(cx)).await.unwrap();
        assert_eq!(end.unwrap_err().reason(), Some(Reason::CANCEL));
    }
}
