//! The store: paths, what they refer to, and what nothing keeps.

use crate::host::closure::{Care, Freed, PathInfo, Paths, closure, freeable};
use crate::model::StorePath;

/// How large a path is of which a test has said nothing, in bytes.
const BYTES: u64 = 1_000;

/// The store of a machine in memory.
#[derive(Debug, Default)]
pub(super) struct FakeStore(Paths);

impl FakeStore {
    pub(super) fn put(&mut self, path: &StorePath, bytes: u64, references: &[StorePath]) {
        let info = PathInfo { path: path.clone(), bytes, references: references.to_vec(), deriver: None };
        self.0.insert(path.clone(), info);
    }

    /// Has the path, as it is.
    pub(super) fn add(&mut self, path: &StorePath) {
        if !self.has(path) {
            self.put(path, BYTES, &[]);
        }
    }

    pub(super) fn has(&self, path: &StorePath) -> bool {
        self.0.contains_key(path)
    }

    pub(super) fn closure(&self, paths: &[StorePath]) -> Paths {
        let held = closure(paths, &self.0);
        self.0.iter().filter(|(path, _)| held.contains(path)).map(|(path, info)| (path.clone(), info.clone())).collect()
    }

    pub(super) fn garbage<'r>(
        &self,
        released: &[StorePath],
        roots: impl IntoIterator<Item = &'r StorePath>,
    ) -> Vec<PathInfo> {
        let roots: Vec<StorePath> = roots.into_iter().cloned().collect();
        let alive = closure(&roots, &self.0);
        let dead = self.0.iter().filter(|(path, _)| !alive.contains(path));
        let dead: Paths = dead.map(|(path, info)| (path.clone(), info.clone())).collect();
        freeable(released, &dead, Care::Usual).into_iter().filter_map(|path| dead.get(path).cloned()).collect()
    }

    pub(super) fn free<'r>(&mut self, released: &[StorePath], roots: impl IntoIterator<Item = &'r StorePath>) -> Freed {
        let gone = self.garbage(released, roots);
        for info in &gone {
            self.0.remove(&info.path);
        }
        Freed { gone, settled: released.iter().filter(|path| !self.has(path)).cloned().collect() }
    }
}
