//! Two connections joined after a switch of protocols: bytes are copied both ways until one side ends it.
//!
//! A WebSocket that kennel has to end gets a close frame with code 1001 (RFC 6455, section 7.4.1) in both
//! directions, each at the end of a frame; any other protocol is just closed.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long the end of a frame, and then the other side's farewell, is waited for.
const FAREWELL: Duration = Duration::from_secs(1);
const CHUNK: usize = 16 * 1024;

/// Copies between the visitor and the service until one of them ends it, both are silent for `idle`, or `stop`.
///
/// `first` is what the service has said already. `held` is let go as soon as it has nothing more to expect.
pub(super) async fn join<V, T>(
    visitor: V,
    (service, first): (TcpStream, BytesMut),
    websocket: bool,
    idle: Duration,
    stop: &CancellationToken,
    held: T,
) where
    V: AsyncRead + AsyncWrite,
{
    let (visitor_reads, visitor_writes) = tokio::io::split(visitor);
    let (service_reads, service_writes) = service.into_split();
    let service_reads = std::io::Cursor::new(first).chain(service_reads);
    let clock = Clock::default();
    let mut down = Pump::new(service_reads, visitor_writes, websocket.then_some(Side::Server));
    let mut up = Pump::new(visitor_reads, service_writes, websocket.then_some(Side::Client));
    let ended = tokio::select! {
        both = async { tokio::try_join!(down.run(stop, &clock), up.run(stop, &clock)) } => both.is_err(),
        () = clock.silence(idle) => true,
        () = async { stop.cancelled().await; tokio::time::sleep(FAREWELL).await } => true,
    };
    drop(held);
    if !ended && stop.is_cancelled() {
        // Closing with bytes unread would reset the connection, and take the close frame along.
        let _ = tokio::time::timeout(FAREWELL, up.discard()).await;
    }
}

/// When something passed last.
#[derive(Debug)]
struct Clock {
    begun: Instant,
    last_ms: AtomicU64,
}

impl Default for Clock {
    fn default() -> Self {
        Self { begun: Instant::now(), last_ms: AtomicU64::new(0) }
    }
}

impl Clock {
    fn touch(&self) {
        let ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(ms, Ordering::Relaxed);
    }

    async fn silence(&self, idle: Duration) {
        loop {
            let deadline = self.begun + Duration::from_millis(self.last_ms.load(Ordering::Relaxed)) + idle;
            if deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }
}

/// One direction.
struct Pump<R, W> {
    from: R,
    to: W,
    frames: Option<(Side, Frames)>,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Pump<R, W> {
    fn new(from: R, to: W, side: Option<Side>) -> Self {
        Self { from, to, frames: side.map(|side| (side, Frames::default())), buffer: vec![0; CHUNK] }
    }

    async fn run(&mut self, stop: &CancellationToken, clock: &Clock) -> io::Result<()> {
        loop {
            let between_frames = self.frames.as_ref().is_none_or(|(_, frames)| frames.between());
            let read = tokio::select! {
                biased;
                () = stop.cancelled(), if between_frames => return self.farewell().await,
                read = self.from.read(&mut self.buffer) => read?,
            };
            if read == 0 {
                return self.to.shutdown().await;
            }
            clock.touch();
            let chunk = &self.buffer[..read];
            let boundary = self.frames.as_mut().and_then(|(_, frames)| frames.feed(chunk));
            if stop.is_cancelled()
                && let Some(end) = boundary
            {
                self.to.write_all(&chunk[..end]).await?;
                return self.farewell().await;
            }
            self.to.write_all(chunk).await?;
            self.to.flush().await?;
            clock.touch();
        }
    }

    async fn farewell(&mut self) -> io::Result<()> {
        if let Some((side, frames)) = &self.frames
            && !frames.closed
        {
            self.to.write_all(side.going_away()).await?;
            self.to.flush().await?;
        }
        self.to.shutdown().await
    }

    async fn discard(&mut self) {
        while let Ok(1..) = self.from.read(&mut self.buffer).await {}
    }
}

/// Who sends the frames of one direction.
#[derive(Debug, Clone, Copy)]
enum Side {
    Server,
    Client,
}

impl Side {
    /// A close frame with code 1001; a client's is masked.
    fn going_away(self) -> &'static [u8] {
        match self {
            Self::Server => &[0x88, 0x02, 0x03, 0xe9],
            Self::Client => &[0x88, 0x82, 0x6b, 0x65, 0x6e, 0x6e, 0x03 ^ 0x6b, 0xe9 ^ 0x65],
        }
    }
}

/// Follows where frames end (RFC 6455, section 5.2), without looking into them.
#[derive(Debug, Default)]
struct Frames {
    /// What is known of the header of the frame at hand.
    header: Vec<u8>,
    /// Bytes of its payload still to come.
    payload: u64,
    /// A close frame has passed: nothing may follow it.
    closed: bool,
}

impl Frames {
    /// Whether no frame is under way.
    fn between(&self) -> bool {
        self.header.is_empty() && self.payload == 0
    }

    /// Takes note of `bytes`; returns where in them the last frame to end there ends.
    fn feed(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut boundary = None;
        let mut at = 0;
        while at < bytes.len() {
            if self.payload > 0 {
                let left = bytes.len() - at;
                let taken = usize::try_from(self.payload).map_or(left, |payload| payload.min(left));
                self.payload -= taken as u64;
                at += taken;
            } else {
                self.header.push(bytes[at]);
                at += 1;
                if let Some(payload) = header_payload(&self.header) {
                    self.closed |= self.header[0] & 0x0f == 0x08;
                    self.payload = payload;
                    self.header.clear();
                }
            }
            if self.between() {
                boundary = Some(at);
            }
        }
        boundary
    }
}

/// The length of the payload, once the header is complete.
fn header_payload(header: &[u8]) -> Option<u64> {
    let second = *header.get(1)?;
    let (extra, short) = match second & 0x7f {
        126 => (2, None),
        127 => (8, None),
        short => (0, Some(u64::from(short))),
    };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    if header.len() < 2 + extra + mask {
        return None;
    }
    Some(short.unwrap_or_else(|| header[2..2 + extra].iter().fold(0, |length, byte| length << 8 | u64::from(*byte))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(opcode: u8, mask: bool, payload: usize) -> Vec<u8> {
        let mut bytes = vec![0x80 | opcode];
        let mask_bit = if mask { 0x80 } else { 0 };
        match payload {
            0..126 => bytes.push(mask_bit | payload as u8),
            126..65536 => {
                bytes.push(mask_bit | 126);
                bytes.extend((payload as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask_bit | 127);
                bytes.extend((payload as u64).to_be_bytes());
            }
        }
        bytes.extend(std::iter::repeat_n(0xff, payload + if mask { 4 } else { 0 }));
        bytes
    }

    /// The mask counts as header, so that a masked frame without payload ends after it.
    #[test]
    fn the_end_of_a_frame_is_found_however_it_is_cut_up() {
        for mask in [false, true] {
            for payload in [0, 1, 125, 126, 65535, 65536] {
                let bytes = frame(2, mask, payload);
                for step in [1, 2, 3, 7, 1000, bytes.len()] {
                    let mut frames = Frames::default();
                    let mut seen = 0;
                    for chunk in bytes.chunks(step) {
                        let boundary = frames.feed(chunk);
                        seen += chunk.len();
                        let end = (seen == bytes.len()).then_some(chunk.len());
                        assert_eq!(boundary, end, "payload {payload} mask {mask} step {step} seen {seen}");
                    }
                    assert!(frames.between() && !frames.closed);
                }
            }
        }
    }

    #[test]
    fn the_last_end_in_a_chunk_counts() {
        let mut chunk = [frame(1, false, 5), frame(1, false, 9)].concat();
        let end = chunk.len();
        chunk.extend(&frame(1, false, 3)[..2]);
        let mut frames = Frames::default();
        assert_eq!(frames.feed(&chunk), Some(end));
        assert!(!frames.between());
    }

    #[test]
    fn a_close_frame_is_noticed() {
        let mut frames = Frames::default();
        frames.feed(Side::Client.going_away());
        assert!(frames.closed && frames.between());
    }
}
