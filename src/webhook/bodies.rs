//! Bodies on their way in: bounded in size, in time, and in what all of them together take of memory.
//!
//! **Invariant:** bytes nobody has vouched for yet hold at most [`ALL_MAX`] of memory, those of one source half of it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tokio_util::task::TaskTracker;

use crate::places::Source;

/// How much all bodies that are being received or checked may hold, in bytes.
const ALL_MAX: usize = 64 * 1024 * 1024;
/// How much those of one source may: one that is as large as they come, and some.
const SOURCE_MAX: usize = ALL_MAX / 2;

/// What is still taken of a body that has been refused, and thrown away: a client that is cut off while it sends often
/// does not read the answer.
const LINGER: Bounds = Bounds { bytes: 32 * 1024 * 1024, time: Duration::from_secs(2) };
/// How many are thrown away at a time.
const LINGERING_MAX: usize = 32;

/// How a body may arrive.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// At most so many bytes.
    pub(super) bytes: usize,
    /// All of it within so long.
    pub(super) time: Duration,
}

/// Why a body was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BodyFault {
    /// It is larger than it may be.
    TooLarge,
    /// It did not arrive in time.
    Slow,
    /// It ended before its end.
    Broken,
    /// There are too many others.
    Crowded,
}

/// What all bodies hold.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    held: Mutex<Held>,
    lingering: TaskTracker,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    /// Only of sources that hold something, so no more than there are connections.
    by_source: HashMap<Source, usize>,
}

/// A body that has arrived; its bytes count until it goes.
#[derive(Debug)]
pub(super) struct Received<'a> {
    pub(super) bytes: Bytes,
    _share: Share<'a>,
}

/// What one body holds.
#[derive(Debug)]
struct Share<'a> {
    bodies: &'a Bodies,
    source: Source,
    bytes: usize,
}

impl Bodies {
    /// Takes a body in.
    pub(super) async fn receive(
        &self,
        source: Source,
        body: &mut Body,
        bounds: Bounds,
    ) -> Result<Received<'_>, BodyFault> {
        match tokio::time::timeout(bounds.time, self.collect(source, body, bounds.bytes)).await {
            Ok(received) => received,
            Err(_elapsed) => Err(BodyFault::Slow),
        }
    }

    async fn collect(&self, source: Source, body: &mut Body, bytes_max: usize) -> Result<Received<'_>, BodyFault> {
        let mut share = Share { bodies: self, source, bytes: 0 };
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| BodyFault::Broken)?.into_data() else { continue };
            if bytes.len() + data.len() > bytes_max {
                return Err(BodyFault::TooLarge);
            }
            share.grow(data.len())?;
            bytes.extend_from_slice(&data);
        }
        Ok(Received { bytes: bytes.freeze(), _share: share })
    }

    /// Throws the rest of a refused body away while the answer goes out.
    pub(super) fn throw_away(&self, mut body: Body) {
        if self.lingering.len() >= LINGERING_MAX {
            return;
        }
        let rest = async move {
            let mut thrown = 0;
            while let Some(Ok(frame)) = body.frame().await {
                thrown += frame.data_ref().map_or(0, Bytes::len);
                if thrown > LINGER.bytes {
                    return;
                }
            }
        };
        self.lingering.spawn(tokio::time::timeout(LINGER.time, rest));
    }
}

impl Share<'_> {
    fn grow(&mut self, by: usize) -> Result<(), BodyFault> {
        let mut held = self.bodies.held.lock().unwrap_or_else(PoisonError::into_inner);
        let of_source = held.by_source.get(&self.source).copied().unwrap_or_default();
        if held.all + by > ALL_MAX || of_source + by > SOURCE_MAX {
            return Err(BodyFault::Crowded);
        }
        held.all += by;
        held.by_source.insert(self.source, of_source + by);
        self.bytes += by;
        Ok(())
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut held = self.bodies.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.all -= self.bytes;
        let left = held.by_source.get(&self.source).map_or(0, |of_source| of_source - self.bytes);
        if left == 0 {
            held.by_source.remove(&self.source);
        } else {
            held.by_source.insert(self.source, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};

    use super::*;

    const BOUNDS: Bounds = Bounds { bytes: 25 << 20, time: Duration::from_secs(10) };

    fn source(n: u8) -> Source {
        Source::of(Some([192, 0, 2, n].into()))
    }

    fn chunks(sizes: &[usize]) -> Body {
        let chunks: Vec<_> = sizes.iter().map(|&size| Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; size]))).collect();
        Body::from_stream(stream::iter(chunks))
    }

    #[tokio::test]
    async fn a_body_arrives_whole_or_not_at_all() {
        let bodies = Bodies::default();
        let bounds = Bounds { bytes: 10, ..BOUNDS };
        let received = bodies.receive(source(1), &mut chunks(&[4, 0, 6]), bounds).await.unwrap();
        assert_eq!(received.bytes, "x".repeat(10));
        assert_eq!(bodies.receive(source(1), &mut chunks(&[4, 7]), bounds).await.unwrap_err(), BodyFault::TooLarge);
        let broken = stream::iter([Ok(Bytes::from("x")), Err(std::io::Error::other("gone"))]);
        let broken = bodies.receive(source(1), &mut Body::from_stream(broken), bounds).await;
        assert_eq!(broken.unwrap_err(), BodyFault::Broken);
        let slow = stream::iter([Ok::<_, std::io::Error>(Bytes::from("x"))]).chain(stream::pending());
        let bounds = Bounds { time: Duration::from_millis(20), ..bounds };
        let slow = bodies.receive(source(1), &mut Body::from_stream(slow), bounds).await;
        assert_eq!(slow.unwrap_err(), BodyFault::Slow);
    }

    #[tokio::test]
    async fn one_source_holds_half_of_the_memory_and_all_no_more_than_it() {
        let bodies = Bodies::default();
        let large = || chunks(&[20 << 20]);
        let first = bodies.receive(source(1), &mut large(), BOUNDS).await.unwrap();
        let crowded = bodies.receive(source(1), &mut large(), BOUNDS).await;
        assert_eq!(crowded.unwrap_err(), BodyFault::Crowded, "its own half");
        let second = bodies.receive(source(2), &mut large(), BOUNDS).await.unwrap();
        let third = bodies.receive(source(3), &mut large(), BOUNDS).await.unwrap();
        let crowded = bodies.receive(source(4), &mut large(), BOUNDS).await;
        assert_eq!(crowded.unwrap_err(), BodyFault::Crowded, "all of it");
        drop((first, second, third));
        let held = bodies.held.lock().unwrap();
        assert_eq!((held.all, held.by_source.len()), (0, 0), "everything is given back");
    }
}
