//! Files, links and directories: replaced by rename, read without following what a build left.
//!
//! Everything here blocks; callers on the runtime go through `spawn_blocking`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::Mode;

use crate::crash::{self, Point};

/// The result of a removal of what is not there is `default`, not an error.
fn unless_missing<T: Default>(result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        other => other,
    }
}

/// The name under which a new version of `path` is made, in the same directory. It is always the same,
/// so a crash leaves one at most, and [`remove`] takes that away as well.
fn draft(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or(OsStr::new("draft")));
    name.push(".new");
    path.with_file_name(name)
}

/// Whether that is the name of a [`draft`].
fn is_draft(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".new")
}

fn write_draft(path: &Path, bytes: &[u8], mode: u32) -> io::Result<(PathBuf, File)> {
    let draft = draft(path);
    unless_missing(fs::remove_file(&draft))?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    Ok((draft, file))
}

/// Puts a file in place, whole or not at all. A power loss may take it away again.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (draft, _) = write_draft(path, bytes, mode)?;
    fs::rename(draft, path)
}

/// Puts a file in place, whole or not at all, and on the disk before it returns.
pub(crate) fn replace_durably(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (draft, file) = write_draft(path, bytes, mode)?;
    file.sync_all()?;
    crash::point(Point::FileDrafted);
    fs::rename(draft, path)?;
    sync_parent(path)
}

/// Points a link somewhere: whoever follows it sees the old place or the new one.
pub(super) fn replace_link(path: &Path, to: &Path) -> io::Result<()> {
    let draft = draft(path);
    unless_missing(fs::remove_file(&draft))?;
    std::os::unix::fs::symlink(to, &draft)?;
    crash::point(Point::LinkDrafted);
    fs::rename(draft, path)
}

/// Removes a file or link, and what an interrupted [`replace`] of it left.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    unless_missing(fs::remove_file(draft(path)))?;
    unless_missing(fs::remove_file(path))
}

/// Removes what an interrupted [`replace_link`] or [`ensure_dir_of`] left in a directory.
pub(super) fn remove_drafts(dir: &Path) -> io::Result<()> {
    for name in names(dir)?.into_iter().filter(|name| is_draft(name)) {
        let path = dir.join(name);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_symlink() => unless_missing(fs::remove_file(path))?,
            Ok(found) if found.is_dir() => unless_missing(fs::remove_dir(path))?,
            _ => {}
        }
    }
    Ok(())
}

/// Removes a directory and all below it, without following links.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    unless_missing(fs::remove_dir_all(path))
}

/// Removes the directories above `path` that are empty, up to but not `top`.
pub(super) fn remove_empty_parents(path: &Path, top: &Path) -> io::Result<()> {
    for parent in path.ancestors().skip(1).take_while(|&parent| parent != top && parent.starts_with(top)) {
        match fs::remove_dir(parent) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Has a directory, with parents; its mode is set when it is new.
pub(super) fn ensure_dir(path: &Path, mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Has a directory of this user's and group's; a new one has its mode and both from the moment that it is there.
pub(super) fn ensure_dir_of(path: &Path, mode: u32, uid: u32, gid: u32) -> io::Result<()> {
    if path.is_dir() {
        return chown(path, Some(uid), Some(gid));
    }
    let draft = draft(path);
    ensure_dir(&draft, mode)?;
    chown(&draft, Some(uid), Some(gid))?;
    fs::rename(&draft, path)
}

/// Has the file system keep what was done to the directory that holds `path`.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Whether the file holds just these bytes.
#[must_use]
pub(super) fn holds(path: &Path, bytes: &[u8]) -> bool {
    fs::read(path).is_ok_and(|found| found == bytes)
}

/// The names in a directory that are UTF-8; none when there is no such directory.
pub(super) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// A directory that somebody else may have put a link in the place of.
fn open_dir(path: &Path) -> Result<Option<OwnedFd>, Errno> {
    found(open(path, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()))
}

fn found<T>(result: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads `dir/name`, or `None` when there is none. Only a regular file of at most `limit` bytes; no link is followed.
pub(super) fn read_bounded(dir: &Path, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(dir) = open_dir(dir)? else { return Ok(None) };
    // Not blocking, so that a FIFO in its place cannot hold us up.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let Some(fd) = found(openat(&dir, name, flags, Mode::empty()))? else { return Ok(None) };
    let file = File::from(fd);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(format!("`{name}` is not a regular file")));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("`{name}` is larger than {limit} bytes")));
    }
    Ok(Some(bytes))
}

/// What the link `top/dir/name` says, or `None` when there is none. Neither it nor `dir` is followed.
pub(super) fn read_link_in(top: &Path, dir: &str, name: &str) -> io::Result<Option<OsString>> {
    let Some(top) = open_dir(top)? else { return Ok(None) };
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let Some(dir) = found(openat(&top, dir, flags, Mode::empty()))? else { return Ok(None) };
    Ok(found(readlinkat(&dir, name))?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_replaced_file_has_its_mode_and_leaves_no_draft() {
        let dir = dir();
        let path = dir.path().join("x@1.env");
        for text in ["one", "two"] {
            replace_durably(&path, text.as_bytes(), 0o400).unwrap();
            assert!(holds(&path, text.as_bytes()));
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o400);
        }
        assert_eq!(names(dir.path()).unwrap(), ["x@1.env"]);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(names(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn a_draft_left_by_a_crash_is_used_up_and_a_link_in_its_place_is_not_followed() {
        let dir = dir();
        let (path, victim) = (dir.path().join("job.json"), dir.path().join("victim"));
        fs::write(&victim, "safe").unwrap();
        symlink(&victim, dir.path().join(".job.json.new")).unwrap();
        replace(&path, b"new", 0o444).unwrap();
        assert!(holds(&victim, b"safe") && holds(&path, b"new"));
        fs::write(dir.path().join(".job.json.new"), "half").unwrap();
        remove(&path).unwrap();
        assert_eq!(names(dir.path()).unwrap(), ["victim"]);
    }

    #[test]
    fn a_new_directory_is_never_seen_without_its_mode() {
        let dir = dir();
        let own = fs::metadata(dir.path()).unwrap();
        let paths: Vec<_> = (0..500).map(|number| dir.path().join(number.to_string())).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for path in &paths {
                    let found = loop {
                        match fs::metadata(path) {
                            Ok(found) => break found,
                            Err(_) => std::thread::yield_now(),
                        }
                    };
                    assert_eq!(found.mode() & 0o7777, 0o750);
                }
            });
            for path in &paths {
                ensure_dir_of(path, 0o750, own.uid(), own.gid()).unwrap();
                ensure_dir_of(path, 0o750, own.uid(), own.gid()).unwrap();
            }
        });
        assert_eq!(names(dir.path()).unwrap().len(), paths.len());
    }

    #[test]
    fn a_link_is_replaced_and_its_empty_parents_go_with_it() {
        let dir = dir();
        let (a, b) = (dir.path().join("p/main/web"), dir.path().join("p/dev/web"));
        for link in [&a, &b] {
            ensure_dir(link.parent().unwrap(), 0o755).unwrap();
            replace_link(link, Path::new("/nix/store/a")).unwrap();
            replace_link(link, Path::new("/nix/store/b")).unwrap();
            assert_eq!(fs::read_link(link).unwrap(), Path::new("/nix/store/b"));
        }
        for (link, left) in [(&a, &["p"][..]), (&b, &[])] {
            remove(link).unwrap();
            remove_empty_parents(link, dir.path()).unwrap();
            remove_empty_parents(link, dir.path()).unwrap();
            assert_eq!(names(dir.path()).unwrap(), left);
        }
    }

    #[test]
    fn what_a_build_left_is_read_only_when_it_is_a_small_regular_file() {
        let dir = dir();
        let read = |name| read_bounded(dir.path(), name, 4);
        assert_eq!(read("none").unwrap(), None);
        assert_eq!(read_bounded(&dir.path().join("none"), "x", 4).unwrap(), None);
        fs::write(dir.path().join("small"), "1234").unwrap();
        assert_eq!(read("small").unwrap(), Some(b"1234".to_vec()));
        fs::write(dir.path().join("large"), "12345").unwrap();
        symlink("small", dir.path().join("link")).unwrap();
        symlink(dir.path(), dir.path().join("dir-link")).unwrap();
        fs::create_dir(dir.path().join("dir")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("fifo"), Mode::S_IRWXU).unwrap();
        for name in ["large", "link", "dir", "fifo"] {
            assert!(read(name).is_err(), "{name}");
        }
        assert!(read_bounded(&dir.path().join("dir-link"), "small", 4).is_err());
    }

    #[test]
    fn a_link_is_read_and_not_followed() {
        let dir = dir();
        let read = |sub| read_link_in(dir.path(), sub, "api");
        assert_eq!(read("out").unwrap(), None);
        fs::create_dir(dir.path().join("out")).unwrap();
        assert_eq!(read("out").unwrap(), None);
        symlink("/nix/store/x", dir.path().join("out/api")).unwrap();
        assert_eq!(read("out").unwrap(), Some("/nix/store/x".into()));
        symlink("out", dir.path().join("elsewhere")).unwrap();
        assert!(read("elsewhere").is_err());
    }
}
