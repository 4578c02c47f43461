//! The state directory in two hands: root's, but for one directory that is the daemon's own.
//!
//! **Invariant:** what is the daemon's is given to it once, before it runs; root never walks through what another user
//! can change.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use super::own_dir;
use crate::host::files;

/// What the daemon keeps, in the order in which it moves: the database last, since it is what tells that all is there.
const OWN: [&str; 7] = ["certificates", "acme", "caches", "reserve", "kennel.db-wal", "kennel.db-shm", DATABASE];
const DATABASE: &str = "kennel.db";
const KEY: &str = "key";

/// A state directory that cannot be divided.
#[derive(Debug, thiserror::Error)]
pub enum EstateError {
    /// A daemon of an earlier version runs.
    #[error("another kennel uses `{0}`; stop it first")]
    InUse(String),
    /// It cannot be looked at or changed.
    #[error("cannot divide `{dir}` between root and the daemon")]
    Io {
        /// The directory.
        dir: String,
        /// Why not.
        source: io::Error,
    },
}

/// Makes the daemon's own directory, and moves there what a daemon that ran as root kept beside it. Blocks.
///
/// # Errors
/// When that daemon still runs, or something cannot be moved.
pub fn settle(state_dir: &Path, uid: u32, gid: u32) -> Result<(), EstateError> {
    let failed = |source| EstateError::Io { dir: state_dir.display().to_string(), source };
    let lock = state_dir.join("kennel.lock");
    let held = match File::options().write(true).open(&lock) {
        Ok(file) => Some(
            Flock::lock(file, FlockArg::LockExclusiveNonblock)
                .map_err(|_| EstateError::InUse(state_dir.display().to_string()))?,
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    divide(state_dir, uid, gid).map_err(failed)?;
    if held.is_some() {
        fs::remove_file(lock).map_err(failed)?;
    }
    Ok(())
}

fn divide(state_dir: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let own = own_dir(state_dir);
    files::ensure_dir(&own, 0o700)?;
    if fs::symlink_metadata(&own)?.uid() == uid && !state_dir.join(DATABASE).try_exists()? {
        return Ok(());
    }
    // Nobody but root can enter it meanwhile.
    lchown(&own, Some(0), Some(0))?;
    for name in OWN {
        let (from, to) = (state_dir.join(name), own.join(name));
        if from.symlink_metadata().is_ok() && to.symlink_metadata().is_err() {
            fs::rename(from, to)?;
        }
    }
    // Root keeps it as well: fingerprints and passwords that were derived from it stay as they are.
    if let (Ok(key), false) = (fs::read(state_dir.join(KEY)), own.join(KEY).try_exists()?) {
        files::replace_durably(&own.join(KEY), &key, 0o400)?;
    }
    files::sync_parent(&own)?;
    give(&own, uid, gid)
}

/// Gives a directory and all in it to a user, itself last. Links are given, not followed.
fn give(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), uid, gid)?;
        }
    }
    lchown(path, Some(uid), Some(gid))
}

/// Takes the daemon's own directory back for a daemon that runs as root. Blocks.
///
/// # Errors
/// When it cannot be taken.
pub fn take_back(state_dir: &Path) -> io::Result<()> {
    lchown(own_dir(state_dir), Some(0), Some(0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn me() -> (u32, u32) {
        (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
    }

    #[test]
    fn what_a_daemon_of_roots_kept_moves_once() {
        if me().0 != 0 {
            eprintln!("skipped: only root can give files away");
            return;
        }
        let (uid, gid) = (12_345, 12_346);
        let dir = tempfile::tempdir().unwrap();
        let (state, own) = (dir.path(), own_dir(dir.path()));
        fs::create_dir_all(state.join("certificates/a.b")).unwrap();
        for name in [DATABASE, "kennel.db-wal", KEY, "kennel.lock", "certificates/a.b/certificate.pem"] {
            fs::write(state.join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", state.join("certificates/link")).unwrap();
        let passwd = fs::metadata("/etc/passwd").unwrap().uid();
        fs::set_permissions(state.join(KEY), fs::Permissions::from_mode(0o400)).unwrap();
        settle(state, uid, gid).unwrap();
        for name in [DATABASE, "kennel.db-wal", KEY, "certificates/a.b/certificate.pem", "certificates", "."] {
            let found = fs::symlink_metadata(own.join(name)).unwrap();
            assert_eq!((found.uid(), found.gid()), (uid, gid), "{name}");
        }
        assert_eq!(fs::metadata("/etc/passwd").unwrap().uid(), passwd, "a link is not followed");
        assert_eq!(files::names(state).unwrap(), ["daemon", "key"], "root keeps the key alone");
        assert_eq!(fs::metadata(&own).unwrap().mode() & 0o777, 0o700);

        // Later nothing is walked through that the daemon could have changed.
        fs::write(own.join("planted"), "").unwrap();
        settle(state, uid, gid).unwrap();
        assert_eq!(fs::metadata(own.join("planted")).unwrap().uid(), 0);
        take_back(state).unwrap();
        settle(state, uid, gid).unwrap();
        assert_eq!(fs::metadata(own.join("planted")).unwrap().uid(), uid);
    }

    #[test]
    fn nothing_is_taken_from_a_daemon_that_runs() {
        let dir = tempfile::tempdir().unwrap();
        for name in [DATABASE, "kennel.lock"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let file = File::options().write(true).open(dir.path().join("kennel.lock")).unwrap();
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
        let refused = settle(dir.path(), me().0, me().1).unwrap_err();
        assert!(matches!(refused, EstateError::InUse(_)), "{refused}");
        assert!(dir.path().join(DATABASE).exists());
        drop(lock);
    }
}
