//! One kennel gives its place to another, after its program was replaced: the connection between the two, over which
//! sockets and a few words pass.
//!
//! **Invariant:** the new one does nothing to rows or machine before it is told to begin, which the old one does when
//! it has let go of both; until then the old one can go on as before.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::sockets::Sockets;

/// The most sockets that pass; the kernel takes 253 at once.
const SOCKETS_MAX: usize = 200;
/// How long the new one may take to read its file and secrets, and then to serve.
const PATIENCE: Duration = Duration::from_secs(40);
/// The words.
const BEGIN: u8 = b'b';
const SERVING: u8 = b's';

/// The program that runs, and whether it is still the one that would be started.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    file: (u64, u64),
}

impl Program {
    /// The one that runs. To be called before it can be replaced.
    ///
    /// # Errors
    /// When it cannot be found.
    pub fn running() -> io::Result<Self> {
        let path = std::env::current_exe()?;
        let running = std::fs::metadata("/proc/self/exe")?;
        Ok(Self { path, file: (running.dev(), running.ino()) })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Another program that has taken its place, if one has.
    #[must_use]
    pub fn replacement(&self) -> Option<&Path> {
        let found = std::fs::metadata(&self.path).ok()?;
        ((found.dev(), found.ino()) != self.file).then_some(&self.path)
    }
}

/// What the one that gives its place knows of the other.
#[derive(Debug)]
pub struct Successor {
    words: tokio::net::UnixStream,
    /// Its process.
    pub pid: u32,
}

impl Successor {
    /// Starts `program` on `config`, gives it the sockets, and waits until it could begin.
    ///
    /// # Errors
    /// When it could not; then it ends by itself.
    pub async fn start(program: &Path, config: &Path, sockets: &[OwnedFd]) -> anyhow::Result<Self> {
        let (own, its) = UnixStream::pair().context("cannot make a connection")?;
        // It starts itself once more, and ends: the service manager wants to be the parent of a main process.
        let mut starting = tokio::process::Command::new(program)
            .args(["daemon", "--hand-over", "start", "--config"])
            .arg(config)
            .stdin(Stdio::from(OwnedFd::from(its)))
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        give(&own, sockets).context("cannot pass the sockets")?;
        let ended = starting.wait().await.context("cannot wait for it")?;
        ensure!(ended.success(), "{} ended with {ended}", program.display());
        own.set_nonblocking(true)?;
        let mut words = tokio::net::UnixStream::from_std(own)?;
        let prepared = tokio::time::timeout(PATIENCE, words.read_u32()).await;
        let pid = prepared.context("it took too long")?.context("it ended; its own lines say why")?;
        Ok(Self { words, pid })
    }

    /// Tells it to begin, and waits until it serves.
    ///
    /// # Errors
    /// When it does not.
    pub async fn begin(&mut self) -> anyhow::Result<()> {
        self.words.write_u8(BEGIN).await.context("it has ended")?;
        let word = tokio::time::timeout(PATIENCE, self.words.read_u8()).await;
        let word = word.context("it took too long")?.context("it ended; its own lines say why")?;
        ensure!(word == SERVING, "it said {word} instead of serving");
        Ok(())
    }

    /// Waits until it wants this process to come to its end, because it does so itself.
    pub async fn wants_the_end(&mut self) {
        // Nothing else is ever said.
        let _ = self.words.read_u8().await;
    }
}

/// What the one that takes the place knows of the other.
#[derive(Debug)]
pub struct Predecessor {
    words: UnixStream,
}

impl Predecessor {
    /// Meets it on standard input; gives the sockets it passed.
    ///
    /// # Errors
    /// When there is none.
    pub fn meet() -> anyhow::Result<(Self, Sockets)> {
        let words = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let sockets = take(&words).context("was not given sockets")?;
        Ok((Self { words }, Sockets::of(sockets)?))
    }

    /// Says that all is ready to begin, and waits until it may.
    ///
    /// # Errors
    /// When it may not.
    pub async fn may_begin(self) -> anyhow::Result<Draining> {
        self.words.set_nonblocking(true)?;
        let mut words = tokio::net::UnixStream::from_std(self.words)?;
        words.write_u32(std::process::id()).await.context("the process before this one has gone")?;
        let word = words.read_u8().await.context("the process before this one goes on, or has gone")?;
        ensure!(word == BEGIN, "was told {word} instead of to begin");
        Ok(Draining { words })
    }
}

/// One that has given its place, and finishes what it had begun.
#[derive(Debug)]
pub struct Draining {
    words: tokio::net::UnixStream,
}

impl Draining {
    /// Says that this process serves now.
    pub async fn served(&mut self) {
        if let Err(err) = self.words.write_u8(SERVING).await {
            tracing::warn!(error = %err, "Cannot tell the process before this one that it is replaced");
        }
    }

    /// Waits until it has finished.
    pub async fn gone(&mut self) {
        // It never says anything more.
        let _ = self.words.read_u8().await;
    }

    /// Has it come to its end, and waits for that.
    pub async fn end(&mut self) {
        match self.words.shutdown().await {
            Ok(()) => self.gone().await,
            Err(err) => tracing::warn!(error = %err, "Cannot tell the process before this one to end"),
        }
    }
}

/// Starts this very program once more, as [`Successor::start`] has it, on the same standard input.
///
/// # Errors
/// When it cannot be started.
#[expect(clippy::disallowed_methods, reason = "this process does nothing else, and has no runtime")]
pub fn start_again(config: &Path) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot find kennel's own program")?;
    std::process::Command::new(program)
        .args(["daemon", "--hand-over", "take", "--config"])
        .arg(config)
        .spawn()
        .context("cannot start kennel again")?;
    Ok(())
}

/// Passes descriptors (`unix(7)`, `SCM_RIGHTS`).
fn give(to: &UnixStream, sockets: &[OwnedFd]) -> io::Result<()> {
    if sockets.len() > SOCKETS_MAX {
        return Err(io::Error::other(format!("{} sockets are too many", sockets.len())));
    }
    let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(|socket| socket.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !message.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(io::Error::other("there is no room for the sockets"));
    }
    rustix::net::sendmsg(to, &[IoSlice::new(&[0])], &mut message, SendFlags::empty())?;
    Ok(())
}

fn take(from: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let read = rustix::net::recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut message, RecvFlags::CMSG_CLOEXEC)?;
    if read.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut sockets = Vec::new();
    for part in message.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = part {
            sockets.extend(passed);
        }
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn sockets_pass_from_one_to_the_other() {
        let (old, new) = UnixStream::pair().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (path, listener) = (dir.path().join("s"), TcpListener::bind("127.0.0.1:0").unwrap());
        let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let address = listener.local_addr().unwrap();
        give(&old, &[listener.into(), unix.into()]).unwrap();
        let mut sockets = Sockets::of(take(&new).unwrap()).unwrap();
        assert_eq!(sockets.tcp(address).unwrap().len(), 1);
        assert!(sockets.unix(&path).unwrap().is_some());
        assert!(sockets.left().is_empty());
        give(&old, &[]).unwrap();
        assert!(take(&new).unwrap().is_empty());
        drop(old);
        assert_eq!(take(&new).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_program_is_replaced_when_another_file_has_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kennel");
        std::fs::write(&path, "one").unwrap();
        let file = std::fs::metadata(&path).unwrap();
        let program = Program { path: path.clone(), file: (file.dev(), file.ino()) };
        assert_eq!(program.replacement(), None);
        let newer = dir.path().join("newer");
        std::fs::write(&newer, "two").unwrap();
        std::fs::rename(&newer, &path).unwrap();
        assert_eq!(program.replacement(), Some(&*path));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(program.replacement(), None, "there is nothing to start");
    }
}
