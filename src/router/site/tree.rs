//! The files of one store path: what a path of a request stands for there.
//!
//! **Invariant:** nothing outside the store is ever found, whatever a link says.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::negotiate::Encoding;
use super::path::SitePath;
use super::{compress, media, stream};

/// Files up to this size, in bytes, are read whole and kept.
pub(super) const SMALL: u64 = 1024 * 1024;
/// What answers for a directory.
const INDEX: &str = "index.html";

/// What is at a path.
#[derive(Debug, Clone)]
pub(super) enum Found {
    /// A file.
    File(Arc<SiteFile>),
    /// It is at the same path with a slash at its end: relative links in a directory's index need that.
    WithSlash,
    /// It is at the same path without the slash.
    WithoutSlash,
    /// Nothing that may be shown.
    Nothing,
}

/// A file of a site, and the encodings there are of it.
#[derive(Debug)]
pub(super) struct SiteFile {
    /// The path within the site, without an encoding's suffix.
    pub(super) relative: PathBuf,
    /// What is in it, by its name.
    pub(super) content_type: &'static str,
    /// Whether kennel may compress it.
    compressible: bool,
    plain: Place,
    /// What the build has prepared, as in [`Encoding::ALL`].
    prepared: [Option<Place>; 3],
}

/// Where a file really is.
#[derive(Debug, Clone)]
struct Place {
    real: PathBuf,
    length: u64,
}

/// What a file consists of in one encoding.
#[derive(Debug)]
pub(super) struct Content {
    /// How the bytes are encoded.
    pub(super) encoding: Option<Encoding>,
    /// How many there are.
    pub(super) length: u64,
    /// The bytes.
    pub(super) source: Source,
    /// The file they were read from.
    pub(super) open: Option<File>,
}

/// Where bytes come from.
#[derive(Debug)]
pub(super) enum Source {
    /// They are as they lie in the store.
    Read(Bytes),
    /// Kennel has compressed them.
    Made(Bytes),
    /// They are too many to be kept; this file has them.
    Stream(PathBuf),
}

/// Looks `path` up below `root`, following links as long as they lead into the store. Blocks.
///
/// # Errors
/// When what is there cannot be read.
pub(super) fn find(store_dir: &Path, root: &Path, path: &SitePath) -> io::Result<Found> {
    let lookup = Lookup { store: std::fs::canonicalize(store_dir)?, root };
    let SitePath { relative, directory } = path;
    if let Some(place) = lookup.resolve(relative)? {
        if !place.is_dir() {
            if !directory && let Some(file) = lookup.file(relative)? {
                return Ok(Found::File(file));
            }
        } else if let Some(index) = lookup.file(&relative.join(INDEX))? {
            return Ok(if *directory { Found::File(index) } else { Found::WithSlash });
        }
    }
    // `/about` for `about.html`.
    if let Some(name) = relative.file_name() {
        let mut page = name.to_owned();
        page.push(".html");
        if let Some(file) = lookup.file(&relative.with_file_name(page))? {
            return Ok(if *directory { Found::WithoutSlash } else { Found::File(file) });
        }
    }
    Ok(Found::Nothing)
}

struct Lookup<'a> {
    store: PathBuf,
    root: &'a Path,
}

impl Lookup<'_> {
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

    /// The file at `relative`, if it is one.
    fn place(&self, relative: &Path) -> io::Result<Option<Place>> {
        let Some(real) = self.resolve(relative)? else { return Ok(None) };
        let metadata = std::fs::metadata(&real)?;
        Ok(metadata.is_file().then_some(Place { real, length: metadata.len() }))
    }

    /// The file at `relative` with all its encodings, if it is one.
    fn file(&self, relative: &Path) -> io::Result<Option<Arc<SiteFile>>> {
        let Some(plain) = self.place(relative)? else { return Ok(None) };
        let mut prepared = [None, None, None];
        for (slot, encoding) in prepared.iter_mut().zip(Encoding::ALL) {
            let mut sibling = OsString::from(relative);
            sibling.push(encoding.suffix());
            *slot = self.place(Path::new(&sibling))?;
        }
        let content_type = media::content_type(&relative.to_string_lossy());
        let compressible = media::is_compressible(content_type) && (compress::SMALLEST..=SMALL).contains(&plain.length);
        Ok(Some(Arc::new(SiteFile { relative: relative.to_owned(), content_type, compressible, plain, prepared })))
    }
}

fn is_absence(err: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound, PermissionDenied};
    matches!(err.kind(), InvalidFilename | InvalidInput | NotADirectory | NotFound | PermissionDenied)
        || err.raw_os_error() == Some(nix::libc::ELOOP)
}

impl SiteFile {
    fn prepared(&self, encoding: Encoding) -> Option<&Place> {
        self.prepared[encoding as usize].as_ref()
    }

    /// Whether it can be had in this encoding.
    pub(super) fn has(&self, encoding: Encoding) -> bool {
        self.prepared(encoding).is_some() || self.is_to_be_made(encoding)
    }

    /// Whether kennel has to compress it for that.
    pub(super) fn is_to_be_made(&self, encoding: Encoding) -> bool {
        self.compressible && compress::is_made(encoding) && self.prepared(encoding).is_none()
    }

    /// Whether another visitor might get another encoding.
    pub(super) fn varies(&self) -> bool {
        Encoding::ALL.into_iter().any(|encoding| self.has(encoding))
    }

    /// About how much memory it takes, in bytes.
    pub(super) fn weight(&self) -> usize {
        let places = std::iter::once(&self.plain).chain(self.prepared.iter().flatten());
        size_of::<Self>()
            + self.relative.as_os_str().len()
            + places.map(|place| place.real.as_os_str().len()).sum::<usize>()
    }

    /// Its name, as bytes.
    pub(super) fn name(&self) -> &[u8] {
        self.relative.as_os_str().as_bytes()
    }

    /// Reads it, and compresses it where that is needed and makes it smaller. Blocks.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn content(&self, encoding: Option<Encoding>) -> io::Result<Content> {
        let Some(encoding) = encoding else { return self.plain.content(None) };
        if let Some(place) = self.prepared(encoding) {
            return place.content(Some(encoding));
        }
        let plain = self.plain.content(None)?;
        if let Source::Read(bytes) = &plain.source
            && let Some(smaller) = compress::compress(bytes, encoding)?
        {
            let bytes = Bytes::from(smaller);
            let (encoding, length) = (Some(encoding), bytes.len() as u64);
            return Ok(Content { encoding, length, source: Source::Made(bytes), open: None });
        }
        Ok(plain)
    }
}

impl Place {
    fn content(&self, encoding: Option<Encoding>) -> io::Result<Content> {
        let (source, open) = if self.length <= SMALL {
            let file = File::open(&self.real)?;
            (Source::Read(stream::read(&file, 0, self.length)?), Some(file))
        } else {
            (Source::Stream(self.real.clone()), None)
        };
        Ok(Content { encoding, length: self.length, source, open })
    }
}
