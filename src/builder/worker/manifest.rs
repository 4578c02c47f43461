//! Reads kennel.toml out of the commit, without a work tree, and refuses a commit that is too large to unpack.

use std::path::Path;

use anyhow::Context as _;
use git2::{ObjectType, Oid, Repository, RepositoryOpenFlags};

use super::log::reason;
use super::tree;
use crate::config::project;
use crate::model::CommitSha;
use crate::model::settings::Manifest;

/// The largest kennel.toml that is read.
const SIZE_MAX: usize = 256 << 10;

/// What a commit asks for.
#[derive(Debug)]
pub(super) enum Asked {
    /// This.
    For(Manifest),
    /// Nothing that can be understood, and why.
    Nothing(String),
}

/// Reads the kennel.toml at the top of `commit`.
///
/// # Errors
/// When the repository cannot be opened.
pub(super) fn read(checkout: &Path, commit: &CommitSha) -> anyhow::Result<Asked> {
    let flags = RepositoryOpenFlags::NO_SEARCH;
    let repository = Repository::open_ext(checkout, flags, std::iter::empty::<&Path>())
        .with_context(|| format!("cannot open `{}`", checkout.display()))?;
    let found = find(&repository, commit).unwrap_or_else(|err| Err(format!("cannot be read: {}", err.message())));
    let nothing = |problem: String| Ok(Asked::Nothing(reason(&problem)));
    let bytes = match found {
        Ok(bytes) => bytes,
        Err(problem) => return nothing(format!("`kennel.toml` {problem}")),
    };
    match too_large(&repository, commit) {
        Ok(None) => {}
        Ok(Some(problem)) => return nothing(format!("the commit {problem}")),
        Err(err) => return nothing(format!("the commit cannot be read: {}", err.message())),
    }
    match String::from_utf8(bytes) {
        Err(_) => nothing("`kennel.toml` is not UTF-8".to_owned()),
        Ok(text) => match project::parse(&text) {
            Ok(manifest) => Ok(Asked::For(manifest)),
            Err(faults) => nothing(format!("`kennel.toml` is not valid\n{faults}")),
        },
    }
}

fn too_large(repository: &Repository, commit: &CommitSha) -> Result<Option<String>, git2::Error> {
    tree::fault(repository, repository.find_commit(commit.as_str().parse::<Oid>()?)?.tree_id())
}

/// The file's bytes, or what is wrong with it as the rest of a sentence.
fn find(repository: &Repository, commit: &CommitSha) -> Result<Result<Vec<u8>, String>, git2::Error> {
    let tree = repository.find_commit(commit.as_str().parse::<Oid>()?)?.tree()?;
    let Some(entry) = tree.get_name("kennel.toml") else {
        return Ok(Err(format!("is missing at the top of commit {commit}")));
    };
    // The kinds of `git-fast-import(1)`; a link could point anywhere.
    match entry.filemode() {
        0o100_644 | 0o100_755 | 0o100_664 => {}
        0o120_000 => return Ok(Err("is a symbolic link".to_owned())),
        0o160_000 => return Ok(Err("is a submodule".to_owned())),
        0o040_000 => return Ok(Err("is a directory".to_owned())),
        mode => return Ok(Err(format!("has the unknown mode {mode:o}"))),
    }
    let objects = repository.odb()?;
    match objects.read_header(entry.id())? {
        (size, ObjectType::Blob) if size > SIZE_MAX => {
            Ok(Err(format!("is {size} bytes large, more than the {SIZE_MAX} that are read")))
        }
        (_, ObjectType::Blob) => Ok(Ok(objects.read(entry.id())?.data().to_vec())),
        (_, kind) => Ok(Err(format!("is a {}", kind.str()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::worker::testing::{Entry, repository};

    fn asked(entries: &[Entry<'_>]) -> Asked {
        let dir = tempfile::tempdir().unwrap();
        let ids = repository(dir.path(), &[entries]);
        read(dir.path(), &ids[0].parse().unwrap()).unwrap()
    }

    #[test]
    fn a_regular_file_at_the_top_is_read() {
        for mode in [0o100_644, 0o100_755] {
            match asked(&[("kennel.toml", mode, b"[services.api]\n")]) {
                Asked::For(manifest) => assert_eq!(manifest.targets.len(), 1),
                Asked::Nothing(why) => panic!("{why}"),
            }
        }
    }

    #[test]
    fn anything_else_is_refused_with_a_reason() {
        let large = vec![b'#'; SIZE_MAX + 1];
        for (entry, problem) in [
            (("other.toml", 0o100_644, &b"[services.api]"[..]), "is missing at the top of commit "),
            (("kennel.toml", 0o120_000, b"/dev/zero"), "`kennel.toml` is a symbolic link"),
            (("kennel.toml", 0o160_000, &[7; 20]), "`kennel.toml` is a submodule"),
            (("kennel.toml", 0o040_000, b""), "`kennel.toml` is a directory"),
            (("kennel.toml", 0o100_644, &large), "is 262145 bytes large, more than the 262144"),
            (("kennel.toml", 0o100_644, b"\xff"), "`kennel.toml` is not UTF-8"),
            (("kennel.toml", 0o100_644, b""), "`kennel.toml` is not valid"),
            (("kennel.toml", 0o100_644, b"[services.api]\nx\x1b[31m = 1"), "`kennel.toml` is not valid"),
        ] {
            match asked(&[entry]) {
                Asked::Nothing(why) => {
                    assert!(why.contains(problem), "{why}");
                    assert!(why.chars().all(|c| c == '\n' || !c.is_control()), "{why:?}");
                }
                Asked::For(manifest) => panic!("{problem}: {manifest:?}"),
            }
        }
    }

    #[test]
    fn a_repository_with_missing_objects_is_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let ids = repository(dir.path(), &[&[("kennel.toml", 0o100_644, b"[services.api]\n")]]);
        let objects = dir.path().join("objects");
        std::fs::remove_dir_all(&objects).unwrap();
        std::fs::create_dir(&objects).unwrap();
        match read(dir.path(), &ids[0].parse().unwrap()).unwrap() {
            Asked::Nothing(why) => assert!(why.contains("cannot be read"), "{why}"),
            Asked::For(manifest) => panic!("{manifest:?}"),
        }
    }
}
