//! Whether a commit can be unpacked: how large it gets, and what its files are called, told without unpacking it.
//!
//! Nix copies all of a commit into the store. A tree may name another a thousand times, and a blob of zeros packs a
//! thousandfold: a repository of a few kilobytes can so be larger than any disk. Names that no file can have are
//! refused by git's own commands, not by what reads objects, and Nix crashes on them.

use std::collections::HashMap;

use git2::{ErrorClass, ErrorCode, ObjectType, Odb, Oid, Repository};

/// The most files and directories of one commit.
const ENTRIES_MAX: u64 = 1_000_000;
/// The most bytes in the files of one commit.
const BYTES_MAX: u64 = 4 << 30;
/// The largest list of one directory's entries, in bytes.
const LIST_MAX: usize = 64 << 20;
/// The longest name of a file (`NAME_MAX` of `limits.h`), in bytes.
const NAME_MAX: usize = 255;
/// How deep directories may lie in each other.
const DEPTH_MAX: usize = 256;

/// What lies in a directory, and below it.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    entries: u64,
    bytes: u64,
}

impl Size {
    /// Sums stay where they are when they cannot be told any more.
    fn add(&mut self, other: Self) {
        self.entries = self.entries.saturating_add(other.entries);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// Looks at the commit with this tree; tells what keeps it from being unpacked, as the rest of a sentence.
pub(super) fn fault(repository: &Repository, tree: Oid) -> Result<Option<String>, git2::Error> {
    let mut sizes = Sizes { repository, objects: repository.odb()?, known: HashMap::new() };
    let size = match sizes.of(tree, 0) {
        // Told by `of`, for a tree that cannot be looked at any further.
        Err(err) if err.code() == ErrorCode::User => return Ok(Some(err.message().to_owned())),
        size => size?,
    };
    Ok(if size.entries > ENTRIES_MAX {
        Some(format!("holds more than {ENTRIES_MAX} files and directories"))
    } else if size.bytes > BYTES_MAX {
        Some(format!("is larger than {} GiB when it is unpacked", BYTES_MAX >> 30))
    } else {
        None
    })
}

struct Sizes<'r> {
    repository: &'r Repository,
    objects: Odb<'r>,
    /// Each directory is looked at once, however often it is named.
    known: HashMap<Oid, Size>,
}

impl Sizes<'_> {
    fn of(&mut self, tree: Oid, depth: usize) -> Result<Size, git2::Error> {
        if let Some(size) = self.known.get(&tree) {
            return Ok(*size);
        }
        let refused = |what: String| Err(git2::Error::new(ErrorCode::User, ErrorClass::Tree, what));
        if depth == DEPTH_MAX {
            return refused(format!("has directories more than {DEPTH_MAX} deep"));
        }
        if self.objects.read_header(tree)?.0 > LIST_MAX {
            return refused(format!("has a directory whose list is longer than {} MiB", LIST_MAX >> 20));
        }
        let mut size = Size::default();
        let list = self.repository.find_tree(tree)?;
        for entry in &list {
            size.add(Size { entries: 1, bytes: 0 });
            let name = entry.name_bytes();
            if matches!(name, b"" | b"." | b"..") || name.len() > NAME_MAX || name.contains(&b'/') {
                let shown: String = String::from_utf8_lossy(name).chars().take(80).collect();
                return refused(format!("holds a file with a name that no file can have: {shown:?}"));
            }
            match entry.kind() {
                Some(ObjectType::Tree) => size.add(self.of(entry.id(), depth + 1)?),
                Some(ObjectType::Blob) => {
                    let bytes = self.objects.read_header(entry.id())?.0;
                    size.add(Size { entries: 0, bytes: u64::try_from(bytes).unwrap_or(u64::MAX) });
                }
                // A submodule's commit is not fetched.
                _ => {}
            }
        }
        self.known.insert(tree, size);
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(make: impl FnOnce(&Repository) -> Oid) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::init_bare(dir.path()).unwrap();
        let tree = make(&repository);
        fault(&repository, tree).unwrap()
    }

    /// A directory that names `inner` ten times.
    fn ten_of(repository: &Repository, inner: Oid, mode: i32) -> Oid {
        let mut tree = repository.treebuilder(None).unwrap();
        for n in 0..10 {
            tree.insert(n.to_string(), inner, mode).unwrap();
        }
        tree.write().unwrap()
    }

    #[test]
    fn an_ordinary_commit_is_no_matter() {
        let ordinary = |repository: &Repository| {
            let blob = repository.blob(b"text").unwrap();
            let inner = ten_of(repository, blob, 0o100_644);
            ten_of(repository, inner, 0o040_000)
        };
        assert_eq!(told(ordinary), None);
    }

    #[test]
    fn a_commit_that_names_itself_over_and_over_is_too_large() {
        let bomb = |repository: &Repository| {
            let blob = repository.blob(b"").unwrap();
            (0..30).fold(ten_of(repository, blob, 0o100_644), |inner, _| ten_of(repository, inner, 0o040_000))
        };
        assert_eq!(told(bomb).unwrap(), "holds more than 1000000 files and directories");
    }

    #[test]
    fn bytes_are_counted_as_often_as_they_are_unpacked() {
        let bomb = |repository: &Repository| {
            let blob = repository.blob(&vec![0; 1 << 20]).unwrap();
            (0..3).fold(ten_of(repository, blob, 0o100_644), |inner, _| ten_of(repository, inner, 0o040_000))
        };
        assert_eq!(told(bomb).unwrap(), "is larger than 4 GiB when it is unpacked");
    }

    #[test]
    fn a_name_that_no_file_can_have_is_refused() {
        for name in ["..", ".", "a/b", "../x", &"n".repeat(256)] {
            let tree = |repository: &Repository| {
                let blob = repository.blob(b"").unwrap();
                // libgit2 itself would not write it.
                let entry = [b"100644 ", name.as_bytes(), b"\0", blob.as_bytes()].concat();
                repository.odb().unwrap().write(ObjectType::Tree, &entry).unwrap()
            };
            let told = told(tree).unwrap();
            assert!(told.starts_with("holds a file with a name that no file can have: \""), "{told}");
        }
    }

    #[test]
    fn directories_lie_in_each_other_only_so_deep() {
        let chain = |repository: &Repository| {
            let leaf = repository.treebuilder(None).unwrap().write().unwrap();
            (0..DEPTH_MAX).fold(leaf, |inner, _| {
                let mut tree = repository.treebuilder(None).unwrap();
                tree.insert("d", inner, 0o040_000).unwrap();
                tree.write().unwrap()
            })
        };
        assert_eq!(told(chain).unwrap(), "has directories more than 256 deep");
    }
}
