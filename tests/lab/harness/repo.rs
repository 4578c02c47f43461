//! A bare repository as a forge keeps one: commits go straight into it, branches are refs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use git2::{Oid, Repository, Signature};

use super::app::{Entry, Files};

/// A repository of the test's forge.
#[derive(Debug, Clone)]
pub(crate) struct Repo {
    path: PathBuf,
}

impl Repo {
    /// An empty one. Any commit may be asked for by its id, as Forgejo, Gitea and GitHub allow.
    pub(crate) fn create(path: &Path) -> Self {
        let repository = Repository::init_bare(path).unwrap();
        repository.config().unwrap().set_bool("uploadpack.allowAnySHA1InWant", true).unwrap();
        Self { path: path.to_owned() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A commit of exactly these files on top of a branch, if there is one. Moves no branch.
    pub(crate) fn commit(&self, branch: &str, files: &Files, message: &str) -> String {
        let repository = self.open();
        let parent = repository.refname_to_id(&head(branch)).ok().map(|id| repository.find_commit(id).unwrap());
        let tree = repository.find_tree(tree(&repository, files)).unwrap();
        let author = Signature::now("Ada", "ada@example.com").unwrap();
        let parents = parent.iter().collect::<Vec<_>>();
        repository.commit(None, &author, &author, message, &tree, &parents).unwrap().to_string()
    }

    /// A commit on top of a branch that changes no file. Moves no branch.
    pub(crate) fn commit_nothing(&self, branch: &str) -> String {
        let repository = self.open();
        let parent = repository.find_commit(repository.refname_to_id(&head(branch)).unwrap()).unwrap();
        let author = Signature::now("Ada", "ada@example.com").unwrap();
        let tree = parent.tree().unwrap();
        repository.commit(None, &author, &author, "Change nothing", &tree, &[&parent]).unwrap().to_string()
    }

    /// Points a branch at a commit, wherever it was before.
    pub(crate) fn push(&self, branch: &str, commit: &str) {
        self.point(&head(branch), commit);
    }

    pub(crate) fn delete(&self, branch: &str) {
        self.open().find_reference(&head(branch)).unwrap().delete().unwrap();
    }

    /// Gives a pull request the head that forges give it.
    pub(crate) fn pull_request(&self, number: u64, commit: &str) {
        self.point(&format!("refs/pull/{number}/head"), commit);
    }

    /// The commit a pull request asks for.
    pub(crate) fn pull_head(&self, number: u64) -> Option<String> {
        self.open().refname_to_id(&format!("refs/pull/{number}/head")).ok().map(|id| id.to_string())
    }

    fn point(&self, name: &str, commit: &str) {
        self.open().reference(name, commit.parse().unwrap(), true, "test").unwrap();
    }

    /// The commit a branch points at.
    pub(crate) fn tip(&self, branch: &str) -> Option<String> {
        self.open().refname_to_id(&head(branch)).ok().map(|id| id.to_string())
    }

    fn open(&self) -> Repository {
        Repository::open_bare(&self.path).unwrap()
    }
}

fn head(branch: &str) -> String {
    format!("refs/heads/{branch}")
}

/// Writes files, and the directories they lie in.
fn tree(repository: &Repository, files: &Files) -> Oid {
    let mut builder = repository.treebuilder(None).unwrap();
    let mut below = BTreeMap::<&str, Files>::new();
    for (path, entry) in files {
        if let Some((dir, rest)) = path.split_once('/') {
            below.entry(dir).or_default().insert(rest.to_owned(), entry.clone());
            continue;
        }
        let blob = |content: &[u8]| repository.blob(content).unwrap();
        let (object, mode) = match entry {
            Entry::File(content) => (blob(content), 0o100_644),
            Entry::Program(content) => (blob(content), 0o100_755),
            Entry::Link(to) => (blob(to.as_bytes()), 0o120_000),
            Entry::Submodule(commit) => (commit.parse().unwrap(), 0o160_000),
        };
        builder.insert(path, object, mode).unwrap();
    }
    for (dir, files) in below {
        builder.insert(dir, tree(repository, &files), 0o040_000).unwrap();
    }
    builder.write().unwrap()
}
