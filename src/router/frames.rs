//! The frames of HTTP/2 as they are read, before `h2` has them.
//!
//! `h2` takes all that can be read, and keeps a record of each frame of data until it is taken; of too many, it ends the
//! connection. **Invariant:** those who take them have their turn before there are too many.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

/// The type of a frame of data (RFC 9113, section 6.1).
pub(super) const DATA: u8 = 0;
/// Frames of data in one turn, before the last reading of it.
const TURN: u32 = 500;
/// What the records of frames that wait may cost on a connection, in bytes: more than they do after a turn of the smallest.
pub(super) const RECORDS: usize = 2 * 1024 * 1024;

/// Follows where frames begin (RFC 9113, section 4.1), without looking into them.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Bytes still to come before the first.
    preface: usize,
    /// What is known of the head of the frame at hand.
    head: [u8; 5],
    /// Bytes of that head seen, of nine.
    seen: usize,
    /// Bytes of its payload still to come.
    payload: u32,
    /// Frames of data in this turn.
    data: u32,
}

/// What has become of a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// It is as good as any.
    Done,
    /// There is a frame in it that is not wanted.
    Refused,
}

impl Frames {
    /// Those that begin after `preface`.
    pub(super) fn after(preface: &[u8]) -> Self {
        Self { preface: preface.len(), ..Self::default() }
    }

    /// Reads from `io`, by turns with those the data is for; `note` is told of each frame by type and flags, and says
    /// whether it is wanted.
    pub(super) fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        io: &mut S,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        mut note: impl FnMut(u8, u8) -> bool,
    ) -> Poll<io::Result<Read>> {
        if self.data >= TURN {
            self.data = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let Poll::Ready(read) = Pin::new(io).poll_read(cx, buf) else {
            self.data = 0;
            return Poll::Pending;
        };
        read?;
        let mut data = 0;
        let wanted = self.feed(&buf.filled()[before..], |kind, flags| {
            data += u32::from(kind == DATA);
            note(kind, flags)
        });
        self.data += data;
        Poll::Ready(Ok(if wanted { Read::Done } else { Read::Refused }))
    }

    /// Tells `note` of each frame that begins in `bytes`, by type and flags; stops when that says no.
    fn feed(&mut self, mut bytes: &[u8], mut note: impl FnMut(u8, u8) -> bool) -> bool {
        let skipped = bytes.len().min(self.preface);
        self.preface -= skipped;
        bytes = &bytes[skipped..];
        while !bytes.is_empty() {
            let skipped = bytes.len().min(self.payload as usize);
            self.payload -= u32::try_from(skipped).expect("it is no more than the payload");
            bytes = &bytes[skipped..];
            while let [byte, rest @ ..] = bytes {
                if let Some(place) = self.head.get_mut(self.seen) {
                    *place = *byte;
                }
                (bytes, self.seen) = (rest, self.seen + 1);
                if self.seen == 9 {
                    let [a, b, c, kind, flags] = self.head;
                    (self.seen, self.payload) = (0, u32::from_be_bytes([0, a, b, c]));
                    if !note(kind, flags) {
                        return false;
                    }
                    break;
                }
            }
        }
        true
    }
}

/// A reader of frames that are all wanted.
#[derive(Debug)]
pub(super) struct Paced<R> {
    reads: R,
    frames: Frames,
}

impl<R> Paced<R> {
    /// `reads`, of which nothing has been read.
    pub(super) fn new(reads: R) -> Self {
        Self { reads, frames: Frames::default() }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Paced<R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { reads, frames } = self.get_mut();
        frames.poll_read(reads, cx, buf, |_, _| true).map_ok(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn frames_are_told_of_however_they_are_cut_up() {
        let mut bytes = b"before".to_vec();
        let frames = [(4, 0, 0), (0, 0, 3), (6, 1, 8), (0, 1, 70_000), (8, 0, 4)];
        for (kind, flags, length) in frames {
            bytes.extend([&u32::to_be_bytes(length)[1..], &[kind, flags, 0, 0, 0, 1]].concat());
            bytes.extend(vec![9; length as usize]);
        }
        for step in [1, 2, 7, 100, bytes.len()] {
            let (mut seen, mut followed) = (Vec::new(), Frames::after(b"before"));
            for chunk in bytes.chunks(step) {
                assert!(followed.feed(chunk, |kind, flags| {
                    seen.push((kind, flags));
                    true
                }));
            }
            assert_eq!(seen, frames.map(|(kind, flags, _)| (kind, flags)), "by {step}");
        }
    }

    #[test]
    fn after_a_turn_others_have_theirs() {
        const FRAME: [u8; 10] = [0, 0, 1, DATA, 0, 0, 0, 0, 1, 7];
        let bytes = FRAME.repeat(5_000);
        let (mut reads, mut turns, mut seen) = (Paced::new(&bytes[..]), vec![0], 0);
        let mut cx = Context::from_waker(Waker::noop());
        while seen < bytes.len() {
            let mut part = [0; 1_000];
            let mut part = ReadBuf::new(&mut part);
            match Pin::new(&mut reads).poll_read(&mut cx, &mut part) {
                Poll::Ready(read) => {
                    read.unwrap();
                    seen += part.filled().len();
                    *turns.last_mut().unwrap() += part.filled().len() / FRAME.len();
                }
                Poll::Pending => turns.push(0),
            }
        }
        assert_eq!(turns, [TURN as usize; 10]);
    }
}
