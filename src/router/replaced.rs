//! The operator's own pages, shown in the place of kennel's.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::StatusCode;

/// The statuses whose pages can be replaced: those that visitors see without having asked for anything odd.
const STATUSES: [StatusCode; 5] = [
    StatusCode::NOT_FOUND,
    StatusCode::INTERNAL_SERVER_ERROR,
    StatusCode::BAD_GATEWAY,
    StatusCode::SERVICE_UNAVAILABLE,
    StatusCode::GATEWAY_TIMEOUT,
];
/// The largest page, in bytes: pages are kept in memory, and sent to whoever asks for any name.
const PAGE_MAX: u64 = 256 << 10;

/// HTML by status. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Pages(BTreeMap<StatusCode, Bytes>);

/// Why the operator's pages cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// A file or the directory cannot be read.
    #[error("cannot read `{}`", .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    /// There is no page for it.
    #[error("`{}` is in the place of no page: there are {}", .0.display(), names())]
    Unknown(PathBuf),
    /// It is too large.
    #[error("`{}` has {size} bytes, more than {PAGE_MAX}", path.display())]
    Large {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        size: u64,
    },
}

fn names() -> String {
    STATUSES.map(|status| format!("`{}.html`", status.as_u16())).join(", ")
}

impl Pages {
    /// Reads `404.html`, `500.html`, `502.html`, `503.html` and `504.html` of a directory, as far as they are there.
    ///
    /// # Errors
    /// When one cannot be read or is larger than 256 KiB, or when another `.html` file lies beside them.
    pub fn read(dir: &Path) -> Result<Self, PagesError> {
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |err| PagesError::Unreadable(path, err)
        };
        let mut pages = BTreeMap::new();
        for entry in dir.read_dir().map_err(unreadable(dir))? {
            let path = entry.map_err(unreadable(dir))?.path();
            if path.extension().is_none_or(|extension| extension != "html") {
                continue;
            }
            let is_of = |status: &StatusCode| path.file_stem().is_some_and(|stem| stem == status.as_str());
            let Some(status) = STATUSES.into_iter().find(is_of) else { return Err(PagesError::Unknown(path)) };
            let size = path.metadata().map_err(unreadable(&path))?.len();
            if size > PAGE_MAX {
                return Err(PagesError::Large { path, size });
            }
            pages.insert(status, std::fs::read(&path).map_err(unreadable(&path))?.into());
        }
        Ok(Self(pages))
    }

    /// The operator's page for this status.
    pub(super) fn of(&self, status: StatusCode) -> Option<Bytes> {
        self.0.get(&status).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read_by_their_status_and_other_files_left() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("404.html", "lost"), ("502.html", "down"), ("logo.svg", "<svg/>")] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let pages = Pages::read(dir.path()).unwrap();
        assert_eq!(pages.of(StatusCode::NOT_FOUND).as_deref(), Some(&b"lost"[..]));
        assert_eq!(pages.of(StatusCode::BAD_GATEWAY).as_deref(), Some(&b"down"[..]));
        assert_eq!(pages.of(StatusCode::GATEWAY_TIMEOUT), None);
    }

    #[test]
    fn what_would_never_be_shown_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let said = |dir: &Path| {
            let path = dir.display().to_string();
            Pages::read(dir).unwrap_err().to_string().replace(&path, "/pages")
        };
        assert_eq!(said(&dir.path().join("none")), "cannot read `/pages`");
        std::fs::write(dir.path().join("503.html"), vec![b' '; 300_000]).unwrap();
        assert_eq!(said(dir.path()), "`/pages/503.html` has 300000 bytes, more than 262144");
        std::fs::write(dir.path().join("503.html"), "soon").unwrap();
        std::fs::write(dir.path().join("403.html"), "no").unwrap();
        assert_eq!(
            said(dir.path()),
            "`/pages/403.html` is in the place of no page: there are `404.html`, `500.html`, `502.html`, `503.html`, \
             `504.html`"
        );
    }
}
