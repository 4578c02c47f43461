//! What has been found and read in the store, kept within bounds: files of the store never change, so nothing here
//! is ever out of date, and what is here costs a request no system call.
//!
//! Each entry belongs to a [`Tree`] and goes with it. A new version of a site is another tree, so it cannot be
//! answered for with what an old one had.

use std::hash::{Hash, Hasher};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, Equivalent, OptionsBuilder, Weighter};
use tokio::sync::Semaphore;

use super::negotiate::Encoding;
use super::path::SitePath;
use super::representation::Representation;
use super::tree::{self, Found, SiteFile};
use crate::model::StorePath;
use crate::router::backed::Opener;

/// Parts with a lock each. Each must have room for several of the largest files.
const SHARDS: usize = 8;
/// About how many entries there will be.
const ENTRIES: usize = 8192;
/// What an entry takes beside what it holds, in bytes: so that many small ones are not taken for nothing.
const OVERHEAD: usize = 256;

/// The files of all sites: where they lie, and what is in memory of them.
#[derive(Debug)]
pub(in crate::router) struct Files {
    store_dir: PathBuf,
    cache: Cache<Key, Kept, Weight>,
    trees: AtomicU64,
    /// How many files may be compressed at a time.
    compressing: Arc<Semaphore>,
    opener: Opener,
}

/// The files of one store path. What is kept of them goes with it.
#[derive(Debug)]
pub(in crate::router) struct Tree {
    number: u64,
    files: Arc<Files>,
    /// The store path, of which ETags are made.
    name: StorePath,
    root: PathBuf,
}

/// What an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum About {
    /// What is at the path of a request, written as it was in the request.
    Path,
    /// A file in one encoding; the name is its path within the site.
    File(Option<Encoding>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    tree: u64,
    about: About,
    name: Box<[u8]>,
}

/// A [`Key`] that takes no memory of its own.
struct KeyRef<'a> {
    tree: u64,
    about: About,
    name: &'a [u8],
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        KeyRef { tree: self.tree, about: self.about, name: &self.name }.hash(state);
    }
}

impl Hash for KeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.tree, self.about, self.name).hash(state);
    }
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.tree == key.tree && self.about == key.about && *self.name == *key.name
    }
}

#[derive(Debug, Clone)]
enum Kept {
    Path(Found),
    File(Arc<Representation>),
}

#[derive(Debug, Clone)]
struct Weight;

impl Weighter<Key, Kept> for Weight {
    fn weight(&self, key: &Key, kept: &Kept) -> u64 {
        let content = match kept {
            Kept::Path(Found::File(file)) => file.weight(),
            Kept::Path(_) => 0,
            Kept::File(representation) => representation.weight(),
        };
        (OVERHEAD + key.name.len() + content) as u64
    }
}

impl Files {
    /// The files of sites whose store paths lie at `store_dir`; `capacity` is how many bytes may be kept.
    pub(in crate::router) fn new(store_dir: PathBuf, capacity: u64) -> Arc<Self> {
        let options = OptionsBuilder::new()
            .shards(SHARDS)
            .estimated_items_capacity(ENTRIES)
            .weight_capacity(capacity)
            .build()
            .expect("both capacities are set");
        // Half the cores: the other half is for those who are served.
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        Arc::new(Self {
            store_dir,
            cache: Cache::with_options(options, Weight, DefaultHashBuilder::default(), DefaultLifecycle::default()),
            trees: AtomicU64::new(0),
            compressing: Arc::new(Semaphore::new((cores / 2).max(1))),
            opener: Opener::default(),
        })
    }

    /// The files of `root`.
    pub(in crate::router) fn tree(self: &Arc<Self>, root: &StorePath) -> Arc<Tree> {
        let base = root.as_str().rsplit('/').next().unwrap_or_default();
        Arc::new(Tree {
            number: self.trees.fetch_add(1, Ordering::Relaxed),
            files: Arc::clone(self),
            name: root.clone(),
            root: self.store_dir.join(base),
        })
    }

    /// How many bytes are kept.
    #[cfg(test)]
    pub(in crate::router) fn weight(&self) -> u64 {
        self.cache.weight()
    }

    /// How many files are open.
    #[cfg(test)]
    pub(in crate::router) fn open(&self) -> usize {
        self.opener.count()
    }

    /// How many bytes have been sent without a copy.
    #[cfg(test)]
    pub(in crate::router) fn sent(&self) -> usize {
        self.opener.sent.load(Ordering::Relaxed)
    }

    /// What `key` stands for; `make` finds it out if nobody does already. Blocks a thread that is there for that.
    async fn fill(&self, key: Key, make: impl FnOnce() -> io::Result<Kept> + Send + 'static) -> io::Result<Kept> {
        match self.cache.get_value_or_guard_async(&key).await {
            Ok(kept) => Ok(kept),
            Err(guard) => {
                let kept = tokio::task::spawn_blocking(make).await.map_err(io::Error::other)??;
                // It is an answer even where there is no room to keep it, or its place was taken meanwhile.
                let _ = guard.insert(kept.clone());
                Ok(kept)
            }
        }
    }
}

impl Tree {
    /// Which store path this is.
    pub(in crate::router) fn name(&self) -> &StorePath {
        &self.name
    }

    /// What is known to be at `path`, the path of a request.
    pub(super) fn known(&self, path: &str) -> Option<Found> {
        match self.get(About::Path, path.as_bytes())? {
            Kept::Path(found) => Some(found),
            Kept::File(_) => None,
        }
    }

    /// What is kept of `file` in this encoding.
    pub(super) fn kept(&self, file: &SiteFile, encoding: Option<Encoding>) -> Option<Arc<Representation>> {
        match self.get(About::File(encoding), file.name())? {
            Kept::File(representation) => Some(representation),
            Kept::Path(_) => None,
        }
    }

    fn get(&self, about: About, name: &[u8]) -> Option<Kept> {
        self.files.cache.get(&KeyRef { tree: self.number, about, name })
    }

    fn key(&self, about: About, name: &[u8]) -> Key {
        Key { tree: self.number, about, name: name.into() }
    }

    /// Finds out what is at `path`, which has been parsed as `parsed`.
    ///
    /// # Errors
    /// When what is there cannot be read.
    pub(super) async fn find(self: &Arc<Self>, path: &str, parsed: SitePath) -> io::Result<Found> {
        let tree = Arc::clone(self);
        let make = move || tree::find(&tree.files.store_dir, &tree.root, &parsed).map(Kept::Path);
        match self.files.fill(self.key(About::Path, path.as_bytes()), make).await? {
            Kept::Path(found) => Ok(found),
            Kept::File(_) => Err(mixed_up()),
        }
    }

    /// Reads `file`, which [`Self::find`] has found here, in this encoding; as it is when it would have to be
    /// compressed and enough others are being compressed.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) async fn read(
        self: &Arc<Self>,
        file: &Arc<SiteFile>,
        encoding: Option<Encoding>,
    ) -> io::Result<Arc<Representation>> {
        let place = match encoding {
            Some(encoding) if file.is_to_be_made(encoding) => {
                match self.files.compressing.clone().try_acquire_owned() {
                    Ok(place) => Some(place),
                    Err(_) => return Box::pin(self.read(file, None)).await,
                }
            }
            _ => None,
        };
        let (tree, wanted): (_, Arc<SiteFile>) = (Arc::clone(self), Arc::clone(file));
        let make = move || {
            let _place = place;
            let content = wanted.content(encoding)?;
            let representation = Representation::new(&tree.name, &wanted, content, &tree.files.opener);
            Ok(Kept::File(Arc::new(representation)))
        };
        match self.files.fill(self.key(About::File(encoding), file.name()), make).await? {
            Kept::File(representation) => Ok(representation),
            Kept::Path(_) => Err(mixed_up()),
        }
    }
}

fn mixed_up() -> io::Error {
    io::Error::other("an entry of the cache is not what its key says")
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.files.cache.retain(|key, _| key.tree != self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn who_asks_at_the_same_time_has_it_found_out_once() {
        let files = Files::new("/nix/store".into(), 1_000_000);
        let tree = files.tree(&"/nix/store/00000000000000000000000000000000-site".parse().unwrap());
        let (times, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let gone = Arc::new(std::sync::Mutex::new(gone));
        let mut visitors = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let (files, tree, times, gone) =
                (Arc::clone(&files), Arc::clone(&tree), Arc::clone(&times), Arc::clone(&gone));
            let asked = Arc::clone(&asked);
            visitors.spawn(async move {
                asked.fetch_add(1, Ordering::SeqCst);
                let make = move || {
                    times.fetch_add(1, Ordering::SeqCst);
                    let _ = gone.lock().unwrap().recv();
                    Ok(Kept::Path(Found::WithSlash))
                };
                files.fill(tree.key(About::Path, b"/a"), make).await
            });
        }
        while asked.load(Ordering::SeqCst) < 16 {
            tokio::task::yield_now().await;
        }
        drop(go);
        for found in visitors.join_all().await {
            assert!(matches!(found, Ok(Kept::Path(Found::WithSlash))));
        }
        assert_eq!(times.load(Ordering::SeqCst), 1);
        assert!(matches!(tree.known("/a"), Some(Found::WithSlash)));
        assert!(tree.known("/b").is_none());
    }

    #[tokio::test]
    async fn what_could_not_be_read_is_tried_again() {
        let files = Files::new("/nix/store".into(), 1_000_000);
        let tree = files.tree(&"/nix/store/00000000000000000000000000000000-site".parse().unwrap());
        let key = || tree.key(About::Path, b"/a");
        assert!(files.fill(key(), || Err(io::Error::other("the disk is broken"))).await.is_err());
        assert!(files.fill(key(), || Ok(Kept::Path(Found::Nothing))).await.is_ok());
        drop(tree);
        assert_eq!(files.weight(), 0);
    }

    #[tokio::test]
    async fn a_file_goes_out_as_it_is_while_enough_others_are_compressed() {
        let store = tempfile::tempdir().unwrap();
        let root: StorePath = "/nix/store/00000000000000000000000000000000-site".parse().unwrap();
        let directory = store.path().join("00000000000000000000000000000000-site");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("a.txt"), "word ".repeat(1000)).unwrap();
        let files = Files::new(store.path().into(), 1_000_000);
        let tree = files.tree(&root);
        let found = tree.find("/a.txt", super::super::path::parse("/a.txt").unwrap()).await.unwrap();
        let Found::File(file) = found else { panic!("{found:?}") };
        let places = u32::try_from(files.compressing.available_permits()).unwrap();
        let busy = files.compressing.try_acquire_many(places).unwrap();
        let plain = tree.read(&file, Some(Encoding::Gzip)).await.unwrap();
        assert!(plain.weight() > 5000);
        assert!(tree.kept(&file, Some(Encoding::Gzip)).is_none(), "the next visitor gets it compressed");
        drop(busy);
        let compressed = tree.read(&file, Some(Encoding::Gzip)).await.unwrap();
        assert!(compressed.weight() < plain.weight());
        assert!(tree.kept(&file, Some(Encoding::Gzip)).is_some());
        assert_eq!(usize::try_from(places).unwrap(), files.compressing.available_permits());
    }
}
