//! How much room there is on disk, whether that will do for a build, and a little of it kept in reserve.
//!
//! The reserve is there for one purpose: SQLite needs a few kilobytes to open a database, and a kennel that cannot
//! start on a full disk would take every site down with it.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What must be free for a build to start unless the operator says otherwise, in bytes.
const MIN_FREE: u64 = 2_000_000_000;
/// The size of the reserve, in bytes.
const RESERVE: u64 = 1 << 20;
/// The reserve is made only while more than this is free, in bytes: it must not be what fills the disk.
const RESERVE_MIN_FREE: u64 = 64 << 20;

/// The file system a directory lies on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpace {
    /// The directory.
    pub place: PathBuf,
    /// How many bytes ordinary users may still write there.
    pub free: u64,
    /// How many bytes it holds in all.
    pub size: u64,
}

impl DiskSpace {
    /// Looks; where the directory is not made yet, at where it will be. Blocks for a moment.
    ///
    /// # Errors
    /// When the file system cannot be asked.
    pub fn of(place: &Path) -> io::Result<Self> {
        let there = place.ancestors().find(|dir| dir.exists()).unwrap_or(place);
        let found = statvfs(there)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
        let (free, size) = (bytes(found.blocks_available()), bytes(found.blocks()));
        Ok(Self { place: place.to_owned(), free, size })
    }

    fn wanted(&self, min_free: Option<u64>) -> u64 {
        min_free.unwrap_or_else(|| MIN_FREE.min(self.size / 10))
    }
}

/// What stands against another build, in words, if anything does. `min_free` is `builder.min_free`.
#[must_use]
pub fn shortage(spaces: &[DiskSpace], min_free: Option<u64>) -> Option<String> {
    let short = spaces.iter().find(|space| space.free < space.wanted(min_free))?;
    let (free, wanted) = (Bytes(short.free), Bytes(short.wanted(min_free)));
    Some(format!("{free} is free at {}, and `min_free` is {wanted}", short.place.display()))
}

/// A number of bytes, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
        let Some((unit, name)) = units.into_iter().find(|(unit, _)| self.0 >= *unit) else {
            return f.pad(&format!("{} B", self.0));
        };
        // Cut rather than rounded: what is short of 2 GB is not shown as 2 GB.
        let (whole, tenths) = (self.0 / unit, self.0 % unit / (unit / 10));
        match (whole, tenths) {
            (10.., _) | (_, 0) => f.pad(&format!("{whole} {name}")),
            _ => f.pad(&format!("{whole}.{tenths} {name}")),
        }
    }
}

/// Has the reserve in the state directory, unless room is scarce. Blocks.
///
/// # Errors
/// When it cannot be written; then nothing of it is left.
pub fn keep_reserve(state_dir: &Path) -> io::Result<()> {
    let path = reserve(state_dir);
    let there = fs::metadata(&path).is_ok_and(|found| found.len() == RESERVE);
    if there || DiskSpace::of(state_dir)?.free < RESERVE_MIN_FREE {
        return Ok(());
    }
    fill(&path).inspect_err(|_| {
        // What is half there is of no use, and the error is told.
        let _ = fs::remove_file(&path);
    })
}

/// Gives the reserve up. Returns whether there was one. Blocks.
///
/// # Errors
/// When it cannot be removed.
pub fn give_up_reserve(state_dir: &Path) -> io::Result<bool> {
    match fs::remove_file(reserve(state_dir)) {
        Ok(()) => Ok(true),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(err) => Err(err),
    }
}

fn reserve(state_dir: &Path) -> PathBuf {
    state_dir.join("reserve")
}

/// Writes bytes that no file system can make smaller.
fn fill(path: &Path) -> io::Result<()> {
    let mut bytes = Vec::new();
    for n in 0..RESERVE / 32 {
        bytes.extend_from_slice(&Sha256::digest(n.to_le_bytes()));
    }
    let mut file = File::create(path)?;
    file.write_all(&bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn space(place: &str, free: u64, size: u64) -> DiskSpace {
        DiskSpace { place: place.into(), free, size }
    }

    #[test]
    fn a_build_waits_while_either_file_system_is_short() {
        let (full, empty) = (space("/nix/store", 1_400_000_000, 1 << 40), space("/var/lib/kennel", 1 << 39, 1 << 40));
        let spaces = [empty.clone(), full.clone()];
        assert_eq!(shortage(std::slice::from_ref(&empty), None), None);
        insta::assert_snapshot!(
            shortage(&spaces, None).unwrap(), @"1.4 GB is free at /nix/store, and `min_free` is 2 GB"
        );
        assert_eq!(shortage(&spaces, Some(1_400_000_000)), None, "what is wanted is enough");
        assert_eq!(shortage(&[space("/", 0, 1 << 40)], Some(0)), None, "0 never waits");
    }

    #[test]
    fn a_small_disk_need_not_have_more_free_than_a_tenth() {
        assert_eq!(shortage(&[space("/", 100_000_000, 1_000_000_000)], None), None);
        assert!(shortage(&[space("/", 99_999_999, 1_000_000_000)], None).is_some());
    }

    #[rstest]
    #[case(0, "0 B")]
    #[case(999, "999 B")]
    #[case(1_000, "1 kB")]
    #[case(1_999_999_999, "1.9 GB")]
    #[case(12_345_678, "12 MB")]
    #[case(2_000_000_000_000, "2 TB")]
    fn bytes_are_short_and_never_more_than_there_are(#[case] bytes: u64, #[case] text: &str) {
        assert_eq!(Bytes(bytes).to_string(), text);
    }

    #[test]
    fn a_directory_that_is_not_made_yet_lies_where_it_will_be() {
        let dir = tempfile::tempdir().unwrap();
        let (there, later) = (DiskSpace::of(dir.path()).unwrap(), DiskSpace::of(&dir.path().join("a/b")).unwrap());
        assert_eq!(there.size, later.size);
        assert_eq!(later.place, dir.path().join("a/b"));
    }

    #[test]
    fn the_reserve_is_made_once_and_given_up_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!give_up_reserve(dir.path()).unwrap());
        keep_reserve(dir.path()).unwrap();
        keep_reserve(dir.path()).unwrap();
        assert_eq!(fs::metadata(reserve(dir.path())).unwrap().len(), RESERVE);
        assert!(give_up_reserve(dir.path()).unwrap());
        assert!(!give_up_reserve(dir.path()).unwrap());
    }
}
