//! Bytes in memory whose file is open: visitors without TLS are sent them from the file by the kernel, without a copy.
//!
//! **Invariant:** the file is one of the store, so it never holds anything else; and what lies in memory where the bytes
//! do is taken for them only while they are held, so that nothing else can lie there.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// From this size on, in bytes, a copy costs more than the call that saves it.
pub(super) const LEAST: usize = 32 * 1024;
/// How many files may be open.
const FILES: usize = 2048;

/// Keeps files open, as long as there may be more.
#[derive(Debug)]
pub(super) struct Opener {
    places: Arc<Semaphore>,
    /// How many bytes have been sent from them.
    #[cfg(test)]
    pub(super) sent: Arc<std::sync::atomic::AtomicUsize>,
}

/// Bytes, and the file that they were read from.
#[derive(Debug)]
pub(super) struct Backed {
    bytes: Bytes,
    file: File,
    _place: OwnedSemaphorePermit,
    #[cfg(test)]
    sent: Arc<std::sync::atomic::AtomicUsize>,
}

/// What a connection is about to send.
#[derive(Debug, Default)]
pub(super) struct Outgoing(Mutex<Option<Arc<Backed>>>);

impl Default for Opener {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(FILES)),
            #[cfg(test)]
            sent: Arc::default(),
        }
    }
}

impl Opener {
    /// How many are open.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        FILES - self.places.available_permits()
    }

    /// Keeps `file`, of which `bytes` are the beginning, if that is worth it: they can always be copied.
    pub(super) fn keep(&self, file: File, bytes: &Bytes) -> Option<Arc<Backed>> {
        if bytes.len() < LEAST {
            return None;
        }
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Arc::new(Backed {
            bytes: bytes.clone(),
            file,
            _place: place,
            #[cfg(test)]
            sent: Arc::clone(&self.sent),
        }))
    }
}

impl Outgoing {
    /// Part of `backed` is the next that is written, once.
    pub(super) fn announce(&self, backed: Arc<Backed>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(backed);
    }

    /// What has been announced since this was last asked.
    pub(super) fn take(&self) -> Option<Arc<Backed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Backed {
    /// Where in the file `slice` is, if these are bytes of it: the same memory, not only the same values.
    fn place_of(&self, slice: &[u8]) -> Option<u64> {
        let start = slice.as_ptr().addr().checked_sub(self.bytes.as_ptr().addr())?;
        (!slice.is_empty() && slice.len() <= self.bytes.len().checked_sub(start)?).then_some(start as u64)
    }

    /// Which of `bufs` is the first that is in the file, and where it is there.
    pub(super) fn find(&self, bufs: &[IoSlice<'_>]) -> Option<(usize, u64)> {
        bufs.iter().enumerate().find_map(|(number, buf)| Some((number, self.place_of(buf)?)))
    }

    /// Writes `before`, and then so many bytes of the file from `place` on, or less.
    pub(super) fn poll_send(
        &self,
        to: &TcpStream,
        cx: &mut Context<'_>,
        before: &[IoSlice<'_>],
        (place, length): (u64, usize),
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || self.send(to, before, place, length)) {
                Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    fn send(&self, to: &TcpStream, before: &[IoSlice<'_>], mut place: u64, length: usize) -> io::Result<usize> {
        let head: usize = before.iter().map(|buf| buf.len()).sum();
        if head > 0 {
            // More follows at once: it is to go out with that.
            let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
            let sent = rustix::net::sendmsg(to, before, &mut SendAncillaryBuffer::default(), flags)?;
            if sent < head {
                return Ok(sent);
            }
        }
        // It has just been read, or sent; if memory is so short that the kernel has dropped it, it is read again here.
        match rustix::fs::sendfile(to, &self.file, Some(&mut place), length) {
            Ok(sent) => {
                #[cfg(test)]
                self.sent.fetch_add(sent, std::sync::atomic::Ordering::Relaxed);
                Ok(head + sent)
            }
            // The next call is told why.
            Err(_) if head > 0 => Ok(head),
            Err(err) => Err(err.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write as _;
    use std::time::Duration;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    const LENGTH: usize = 4 * 1024 * 1024;

    /// Bytes, and a file in which there are others: so it shows which of them are sent.
    fn backed() -> Arc<Backed> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&(0..LENGTH).map(of_file).collect::<Vec<_>>()).unwrap();
        Opener::default().keep(file, &Bytes::from(vec![b'-'; LENGTH])).unwrap()
    }

    fn of_file(place: usize) -> u8 {
        u8::try_from(place % 251).unwrap()
    }

    #[tokio::test]
    async fn what_is_in_the_file_is_sent_from_there_however_little_goes_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut to = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut from, _) = listener.accept().await.unwrap();
        let backed = backed();
        let part = backed.bytes.slice(100..LENGTH - 100);
        // So long that it does not go at once either.
        let (head, mut calls) = (vec![b'h'; LENGTH], 0);
        let sending = async {
            let (mut head, mut part) = (&head[..], &part[..]);
            while !part.is_empty() {
                let bufs = [IoSlice::new(head), IoSlice::new(part)];
                let bufs = &bufs[usize::from(head.is_empty())..];
                let (number, place) = backed.find(bufs).unwrap();
                assert_eq!(number, bufs.len() - 1);
                let sent = poll_fn(|cx| backed.poll_send(&to, cx, &bufs[..number], (place, part.len()))).await.unwrap();
                assert!(sent > 0);
                calls += 1;
                let of_head = sent.min(head.len());
                (head, part) = (&head[of_head..], &part[sent - of_head..]);
            }
        };
        let mut seen = vec![0; head.len() + LENGTH - 200];
        let both = async { tokio::join!(from.read_exact(&mut seen), sending).0 };
        tokio::time::timeout(Duration::from_secs(20), both).await.expect("all of it arrives").unwrap();
        let wanted = head.iter().copied().chain((100..LENGTH - 100).map(of_file));
        assert!(seen.into_iter().eq(wanted));
        assert!(calls > 1, "all of it went at once: this says nothing");
        tokio::io::AsyncWriteExt::shutdown(&mut to).await.unwrap();
        assert_eq!(from.read(&mut [0]).await.unwrap(), 0, "nothing more was sent");
    }

    #[test]
    fn only_the_bytes_themselves_are_taken_for_what_is_in_the_file() {
        let backed = backed();
        let place = |slice: &[u8]| backed.place_of(slice);
        assert_eq!(place(&backed.bytes), Some(0));
        assert_eq!(place(&backed.bytes[LENGTH - 1..]), Some(LENGTH as u64 - 1));
        assert_eq!(place(&[]), None);
        assert_eq!(place(&backed.bytes[LENGTH..]), None);
        let others = [backed.bytes.to_vec(), vec![b'-'; 10]];
        assert!(others.iter().all(|same| place(same).is_none()));
        assert!(backed.find(&others.each_ref().map(|other| IoSlice::new(other))).is_none());
    }

    #[test]
    fn few_bytes_need_no_file_and_not_too_many_are_open() {
        let opener = Opener { places: Arc::new(Semaphore::new(1)), ..Opener::default() };
        let keep = |length| opener.keep(tempfile::tempfile().unwrap(), &Bytes::from(vec![0; length]));
        assert!(keep(LEAST - 1).is_none());
        let backed = keep(LEAST).unwrap();
        assert!(keep(LEAST).is_none());
        drop(backed);
        assert!(keep(LEAST).is_some());
    }
}
