//! What store paths cost on disk, and which of them can go: pure functions of what the Nix store says of itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::model::StorePath;

/// A path of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathInfo {
    /// Which.
    pub path: StorePath,
    /// Its size, without what it refers to, in bytes.
    pub bytes: u64,
    /// What it refers to; itself, perhaps, included.
    pub references: Vec<StorePath>,
    /// The derivation it was made by, as far as that is known.
    pub deriver: Option<StorePath>,
}

/// Paths of the store, by path.
pub type Paths = BTreeMap<StorePath, PathInfo>;

/// What became of paths that kennel let go of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freed {
    /// What is gone from the store.
    pub gone: Vec<PathInfo>,
    /// Those of the paths let go of that are not in the store any more.
    pub settled: Vec<StorePath>,
}

/// What some artifacts cost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Costs {
    /// For each artifact, in their order, the bytes that would be free without it: what no other one shares.
    pub exclusive: Vec<u64>,
    /// The bytes that two or more share. They are charged to nobody.
    pub shared: u64,
}

/// How careful to be about derivations and what they made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Care {
    /// As Nix's `keep-derivations` wants it, which is on unless somebody turned it off: a derivation stays with what
    /// it made.
    Usual,
    /// As its `keep-outputs` wants it as well: what was made stays with its derivation.
    KeepOutputs,
}

/// A path and all it refers to, within what is known.
#[must_use]
pub fn closure<'p>(roots: impl IntoIterator<Item = &'p StorePath>, known: &'p Paths) -> BTreeSet<&'p StorePath> {
    let mut found = BTreeSet::new();
    let mut todo: Vec<&StorePath> = roots.into_iter().collect();
    while let Some(path) = todo.pop() {
        if let Some((path, info)) = known.get_key_value(path)
            && found.insert(path)
        {
            todo.extend(&info.references);
        }
    }
    found
}

/// What each of some artifacts costs.
#[must_use]
pub fn costs(artifacts: &[&StorePath], known: &Paths) -> Costs {
    let closures: Vec<_> = artifacts.iter().map(|path| closure([*path], known)).collect();
    let mut owners: BTreeMap<&StorePath, usize> = BTreeMap::new();
    for path in closures.iter().flatten() {
        *owners.entry(path).or_default() += 1;
    }
    let bytes = |path: &StorePath| known.get(path).map_or(0, |info| info.bytes);
    let alone = |path: &&&StorePath| owners.get(*path) == Some(&1);
    Costs {
        exclusive: closures.iter().map(|closure| closure.iter().filter(alone).map(|path| bytes(path)).sum()).collect(),
        shared: owners.iter().filter(|(_, owners)| **owners > 1).map(|(path, _)| bytes(path)).sum(),
    }
}

/// What may be deleted of the dead paths of a store once `released` are not needed any more: these, what they refer
/// to, and the derivations of both; without what another dead path refers to, since that would have to go as well and
/// is none of kennel's business. What refers to others comes before them.
#[must_use]
pub fn freeable<'p>(released: &'p [StorePath], dead: &'p Paths, care: Care) -> Vec<&'p StorePath> {
    let held = closure(released, dead);
    let derivers = held.iter().filter_map(|path| dead.get(*path)?.deriver.as_ref());
    let mut going: BTreeSet<&StorePath> = held.union(&closure(derivers, dead)).copied().collect();
    let needed_by = dependents(dead, care);
    let stays = |path: &&StorePath, going: &BTreeSet<&StorePath>| {
        needed_by.get(path).is_some_and(|others| others.iter().any(|other| !going.contains(other)))
    };
    loop {
        let staying: Vec<&StorePath> = going.iter().copied().filter(|path| stays(path, &going)).collect();
        if staying.is_empty() {
            return in_order(&going, &needed_by);
        }
        for path in staying {
            going.remove(path);
        }
    }
}

/// For each path, those that cannot be there without it.
fn dependents(paths: &Paths, care: Care) -> BTreeMap<&StorePath, BTreeSet<&StorePath>> {
    let mut needed_by: BTreeMap<&StorePath, BTreeSet<&StorePath>> = BTreeMap::new();
    for info in paths.values() {
        for reference in info.references.iter().filter(|reference| **reference != info.path) {
            needed_by.entry(reference).or_default().insert(&info.path);
        }
        if let Some(deriver) = &info.deriver
            && paths.contains_key(deriver)
        {
            needed_by.entry(deriver).or_default().insert(&info.path);
            if care == Care::KeepOutputs {
                needed_by.entry(&info.path).or_default().insert(deriver);
            }
        }
    }
    needed_by
}

fn in_order<'p>(
    going: &BTreeSet<&'p StorePath>,
    needed_by: &BTreeMap<&'p StorePath, BTreeSet<&'p StorePath>>,
) -> Vec<&'p StorePath> {
    let mut order = Vec::with_capacity(going.len());
    let mut begun = BTreeSet::new();
    for start in going {
        // Depth first, without recursion: a path is placed once all that need it are.
        let mut stack = vec![(*start, false)];
        while let Some((path, placed)) = stack.pop() {
            if placed {
                order.push(path);
            } else if begun.insert(path) {
                stack.push((path, true));
                let others = needed_by.get(path).into_iter().flatten();
                stack.extend(others.filter(|other| !begun.contains(*other)).map(|other| (*other, false)));
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> StorePath {
        format!("/nix/store/0123456789abcdfghijklmnpqrsvwxyz-{name}").parse().unwrap()
    }

    fn names(paths: impl IntoIterator<Item = impl std::borrow::Borrow<StorePath>>) -> Vec<String> {
        paths.into_iter().map(|path| path.borrow().as_str()[44..].to_owned()).collect()
    }

    /// `name bytes < references / deriver`.
    fn store(lines: &[&str]) -> Paths {
        let read = |line: &&str| {
            let (rest, deriver) = line.split_once('/').map_or((*line, None), |(rest, deriver)| (rest, Some(deriver)));
            let (own, references) = rest.split_once('<').unwrap_or((rest, ""));
            let (name, bytes) = own.trim().split_once(' ').unwrap();
            let info = PathInfo {
                path: path(name),
                bytes: bytes.parse().unwrap(),
                references: references.split_whitespace().map(path).collect(),
                deriver: deriver.map(|deriver| path(deriver.trim())),
            };
            (info.path.clone(), info)
        };
        lines.iter().map(read).collect()
    }

    #[test]
    fn what_is_shared_is_charged_to_nobody() {
        let store = store(&["a 1 < lib a", "b 10 < lib only-b", "c 100", "lib 1000 < libc", "only-b 10000", "libc 7"]);
        let artifacts = [path("a"), path("b"), path("c")];
        let costs = costs(&artifacts.each_ref(), &store);
        assert_eq!(costs, Costs { exclusive: vec![1, 10_010, 100], shared: 1007 });
    }

    #[test]
    fn two_artifacts_of_one_path_share_all_of_it() {
        let store = store(&["a 1 < lib", "lib 10"]);
        assert_eq!(
            costs(&[&path("a"), &path("a")], &store),
            Costs { exclusive: vec![0, 0], shared: 11 },
            "neither would free anything alone"
        );
        assert_eq!(costs(&[&path("gone")], &store), Costs { exclusive: vec![0], shared: 0 });
    }

    #[test]
    fn what_was_released_goes_with_what_it_held_and_nothing_else() {
        // `libc` is not dead, and `other` never was kennel's.
        let dead = store(&["app 1 < lib libc app", "lib 1 < libc", "other 1", "tool 1"]);
        assert_eq!(names(freeable(&[path("app")], &dead, Care::Usual)), ["app", "lib"]);
        assert!(freeable(&[path("alive")], &dead, Care::Usual).is_empty());
    }

    #[test]
    fn what_somebody_elses_garbage_refers_to_stays_with_all_it_needs() {
        let dead = store(&["app 1 < lib private", "lib 1 < base", "base 1", "private 1", "strangers 1 < lib"]);
        assert_eq!(names(freeable(&[path("app")], &dead, Care::Usual)), ["app", "private"]);
    }

    #[test]
    fn a_derivation_goes_with_what_it_made_and_not_before() {
        let dead =
            store(&["app 1 < source / app.drv", "app.drv 1 < source cc.drv", "source 1", "cc 1 / cc.drv", "cc.drv 1"]);
        // The compiler is garbage too, and was never held: it stays, and its derivation with it.
        assert_eq!(names(freeable(&[path("app")], &dead, Care::Usual)), ["app", "app.drv", "source"]);
    }

    #[test]
    fn where_outputs_are_kept_they_stay_with_a_derivation_that_stays() {
        let dead = store(&["lib 1 / lib.drv", "lib.drv 1", "failed.drv 1 < lib.drv"]);
        assert_eq!(names(freeable(&[path("lib")], &dead, Care::Usual)), ["lib"]);
        assert!(freeable(&[path("lib")], &dead, Care::KeepOutputs).is_empty());
    }
}
