//! Files of the store: found without leaving it, and sent in chunks.

use std::ffi::OsString;
use std::fs::File;
use std::future::Future as _;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::task::JoinHandle;

use super::negotiate::{Encoding, Encodings};
use super::path::SitePath;
use crate::router::body::{Body, BodyError};

/// The most of a file in memory for one answer.
const CHUNK: u64 = 128 * 1024;
/// Files up to this size are read while they are looked up.
const SMALL: u64 = 64 * 1024;
/// What answers for a directory.
const INDEX: &str = "index.html";

/// What is looked for.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Where.
    pub(super) path: SitePath,
    /// In which encodings.
    pub(super) encodings: Encodings,
    /// Whether the site's front page will do.
    pub(super) fallback: bool,
}

/// What was found.
#[derive(Debug)]
pub(super) enum Found {
    /// A file.
    File(Opened),
    /// A directory with an index, asked for without a slash at its end.
    Directory,
    /// Nothing that may be shown.
    Nothing,
}

/// A file, open.
#[derive(Debug)]
pub(super) struct Opened {
    file: File,
    /// Of the encoded file.
    pub(super) length: u64,
    /// The path within the site, without the encoding's suffix.
    pub(super) relative: String,
    /// How the file is encoded.
    pub(super) encoding: Option<Encoding>,
    /// Whether another visitor might get another encoding.
    pub(super) varies: bool,
    /// All of it, if it is small.
    small: Option<Bytes>,
}

/// Looks `wanted` up below `root`, following links as long as they lead into the store. Blocks.
///
/// # Errors
/// When what is there cannot be read.
pub(super) fn find(store_dir: &Path, root: &Path, wanted: &Wanted) -> io::Result<Found> {
    let tree = Tree { store: std::fs::canonicalize(store_dir)?, root };
    let SitePath { relative, directory } = &wanted.path;
    if let Some(real) = tree.resolve(relative)? {
        if !real.is_dir() {
            if !directory && let Some(file) = tree.open(relative, &wanted.encodings)? {
                return Ok(Found::File(file));
            }
        } else {
            let index = relative.join(INDEX);
            if *directory {
                if let Some(file) = tree.open(&index, &wanted.encodings)? {
                    return Ok(Found::File(file));
                }
            } else if tree.resolve(&index)?.is_some_and(|real| real.is_file()) {
                return Ok(Found::Directory);
            }
        }
    }
    if wanted.fallback
        && let Some(file) = tree.open(Path::new(INDEX), &wanted.encodings)?
    {
        return Ok(Found::File(file));
    }
    Ok(Found::Nothing)
}

/// A site's files, in the store.
struct Tree<'a> {
    store: PathBuf,
    root: &'a Path,
}

impl Tree<'_> {
    /// Where `relative` really is; `None` when there is nothing, or it is not inside a path of the store.
    ///
    /// Part by part: a link to the store itself would otherwise show every path in it to whoever knows its name.
    fn resolve(&self, relative: &Path) -> io::Result<Option<PathBuf>> {
        let mut real = self.root.to_owned();
        for part in std::iter::once(Path::new("")).chain(relative.iter().map(Path::new)) {
            real = match std::fs::canonicalize(real.join(part)) {
                Ok(real) if real != self.store && real.starts_with(&self.store) => real,
                Ok(_) => return Ok(None),
                Err(err) if is_absence(&err) => return Ok(None),
                Err(err) => return Err(err),
            };
        }
        Ok(Some(real))
    }

    /// Opens the file at `relative` in the best encoding there is; `None` when it is not a file.
    fn open(&self, relative: &Path, encodings: &Encodings) -> io::Result<Option<Opened>> {
        let Some(plain) = self.resolve(relative)?.filter(|real| real.is_file()) else {
            return Ok(None);
        };
        let mut best: Option<(usize, Encoding, PathBuf)> = None;
        let mut varies = false;
        for encoding in Encoding::ALL {
            let mut sibling = OsString::from(relative);
            sibling.push(encoding.suffix());
            let Some(real) = self.resolve(Path::new(&sibling))?.filter(|real| real.is_file()) else { continue };
            varies = true;
            if let Some(rank) = encodings.0.iter().position(|accepted| *accepted == encoding)
                && best.as_ref().is_none_or(|(lowest, ..)| rank < *lowest)
            {
                best = Some((rank, encoding, real));
            }
        }
        let (encoding, real) = match best {
            Some((_, encoding, real)) => (Some(encoding), real),
            None => (None, plain),
        };
        let file = File::open(real)?;
        let length = file.metadata()?.len();
        let small = if length <= SMALL { Some(read(&file, 0, length)?) } else { None };
        let relative = relative.to_string_lossy().into_owned();
        Ok(Some(Opened { file, length, relative, encoding, varies, small }))
    }
}

fn is_absence(err: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound, PermissionDenied};
    matches!(err.kind(), InvalidFilename | InvalidInput | NotADirectory | NotFound | PermissionDenied)
        || err.raw_os_error() == Some(nix::libc::ELOOP)
}

/// Reads the bytes from `start` up to but not including `end`.
fn read(file: &File, start: u64, end: u64) -> io::Result<Bytes> {
    let length = usize::try_from(end - start).map_err(io::Error::other)?;
    let mut chunk = vec![0; length];
    file.read_exact_at(&mut chunk, start)?;
    Ok(chunk.into())
}

impl Opened {
    /// A body of the bytes from `start` up to but not including `end`.
    pub(super) fn body(self, start: u64, end: u64) -> Body {
        let small = self.small.and_then(|bytes| {
            let (start, end) = (usize::try_from(start).ok()?, usize::try_from(end).ok()?);
            Some(bytes.slice(start..end))
        });
        match small {
            Some(bytes) => Body::from(bytes),
            None => FileBody { file: Arc::new(self.file), at: start, end, reading: None }.into(),
        }
    }
}

/// Part of a file, read off the runtime's threads, one chunk at a time.
#[derive(Debug)]
pub(in crate::router) struct FileBody {
    file: Arc<File>,
    at: u64,
    end: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl HttpBody for FileBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.at >= this.end {
            return Poll::Ready(None);
        }
        let reading = this.reading.get_or_insert_with(|| {
            let (file, start) = (Arc::clone(&this.file), this.at);
            let end = this.end.min(start + CHUNK);
            tokio::task::spawn_blocking(move || read(&file, start, end))
        });
        let done = ready!(Pin::new(reading).poll(cx));
        this.reading = None;
        let chunk = done.map_err(io::Error::other).flatten().map_err(BodyError::File);
        match &chunk {
            Ok(chunk) => this.at += chunk.len() as u64,
            Err(_) => this.at = this.end,
        }
        Poll::Ready(Some(chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.at >= self.end
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.end - self.at)
    }
}
