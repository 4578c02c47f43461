//! Looks at what Nix made: the program of a service, the directory of a site.
//!
//! **Invariant:** nothing outside the store is looked at, and so nothing that could change later counts.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use crate::model::ProgramName;

/// How many links lie between a name and its file at most, as in `path_resolution(7)`.
const LINKS_MAX: usize = 40;
/// How many names of programs a reason holds.
const NAMES_MAX: usize = 12;

/// The store paths behind the links Nix made for a package, the main one first.
pub(super) fn store_paths(links: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for name in ["result", "result-bin"] {
        match fs::read_link(links.join(name)) {
            Ok(path) => paths.push(path),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err),
        }
    }
    Ok(paths)
}

/// The first of the store paths with `bin/<program>`, or why there is none.
pub(super) fn with_program<'a>(store: &Path, paths: &'a [PathBuf], program: &ProgramName) -> Result<&'a Path, String> {
    let mut there = Vec::new();
    for path in paths {
        match resolve(store, &path.join("bin").join(program.as_str())) {
            Resolved::Inside(file) => match fs::metadata(&file) {
                Ok(data) if !data.is_file() => return Err(format!("`bin/{program}` is not a file")),
                Ok(data) if data.permissions().mode() & 0o111 == 0 => {
                    return Err(format!("`bin/{program}` is not executable"));
                }
                Ok(_) => return Ok(path),
                Err(err) => return Err(format!("`bin/{program}` cannot be looked at: {err}")),
            },
            Resolved::Outside => return Err(format!("`bin/{program}` is a link that leaves the Nix store")),
            Resolved::Absent => there.extend(programs(store, path)),
        }
    }
    there.sort_unstable();
    let has = match there.len() {
        0 => "has no programs in `bin/`".to_owned(),
        n if n > NAMES_MAX => format!("has `{}` and more", there[..NAMES_MAX].join("`, `")),
        _ => format!("has `{}`", there.join("`, `")),
    };
    Err(format!(
        "the package has no program `bin/{program}`; it {has}\nhint: `meta.mainProgram` of the package names its program"
    ))
}

/// The directory of a site, or why there is none.
pub(super) fn directory<'a>(store: &Path, paths: &'a [PathBuf]) -> Result<&'a Path, String> {
    let path = paths.first().ok_or("the package has no output `out`")?;
    match resolve(store, path) {
        Resolved::Inside(dir) if dir.is_dir() => Ok(path),
        Resolved::Inside(_) => Err("the package is not a directory of files".to_owned()),
        Resolved::Outside => Err("the package is a link that leaves the Nix store".to_owned()),
        Resolved::Absent => Err("the package is a link to nothing".to_owned()),
    }
}

fn programs(store: &Path, path: &Path) -> Vec<String> {
    let Resolved::Inside(bin) = resolve(store, &path.join("bin")) else { return Vec::new() };
    let Ok(entries) = fs::read_dir(bin) else { return Vec::new() };
    entries.flatten().take(50).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
enum Resolved {
    /// To this, below the store.
    Inside(PathBuf),
    /// Out of the store, at some link on the way.
    Outside,
    /// Nowhere.
    Absent,
}

/// Follows links one by one, as long as they stay below the store.
fn resolve(store: &Path, path: &Path) -> Resolved {
    let names = |path: &Path| -> Vec<OsString> {
        path.components()
            .filter(|part| !matches!(part, Component::CurDir))
            .map(|part| part.as_os_str().to_owned())
            .collect()
    };
    let Ok(below) = path.strip_prefix(store) else { return Resolved::Outside };
    let (mut at, mut todo, mut links) = (store.to_path_buf(), VecDeque::from(names(below)), 0);
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            at.pop();
            if !at.starts_with(store) {
                return Resolved::Outside;
            }
            continue;
        }
        let next = at.join(name);
        match fs::read_link(&next) {
            Ok(target) => {
                links += 1;
                if links > LINKS_MAX {
                    return Resolved::Absent;
                }
                let target = if target.is_absolute() {
                    let Ok(below) = target.strip_prefix(store) else { return Resolved::Outside };
                    at = store.to_path_buf();
                    below
                } else {
                    &target
                };
                for name in names(target).into_iter().rev() {
                    todo.push_front(name);
                }
            }
            // Not a link.
            Err(err) if err.kind() == io::ErrorKind::InvalidInput => at = next,
            Err(_) => return Resolved::Absent,
        }
    }
    Resolved::Inside(at)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A store with a package `p` whose `bin/` has what the cases need.
    fn store() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().canonicalize().unwrap().join("store");
        let bin = store.join("p/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(store.join("q/bin/dir")).unwrap();
        let file = |path: PathBuf, mode| {
            fs::write(&path, "#!").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        file(bin.join("run"), 0o555);
        file(bin.join("data"), 0o444);
        file(store.join("q/bin/real"), 0o555);
        file(dir.path().join("host"), 0o755);
        for (name, target) in [
            ("absolute", store.join("q/bin/real")),
            ("relative", "../../q/bin/real".into()),
            ("chain", "relative".into()),
            ("outside", dir.path().join("host")),
            ("upwards", "../../../host".into()),
            ("through", store.join("../host")),
            ("loop", "loop".into()),
            ("dangling", "nothing".into()),
            ("folder", store.join("q/bin/dir")),
        ] {
            symlink(target, bin.join(name)).unwrap();
        }
        (dir, store)
    }

    #[test]
    fn a_program_is_an_executable_file_of_the_store() {
        let (_dir, store) = store();
        let paths = [store.join("p")];
        for (program, problem) in [
            ("run", None),
            ("absolute", None),
            ("relative", None),
            ("chain", None),
            ("data", Some("is not executable")),
            ("folder", Some("is not a file")),
            ("outside", Some("leaves the Nix store")),
            ("upwards", Some("leaves the Nix store")),
            ("through", Some("leaves the Nix store")),
            ("loop", Some("has no program")),
            ("dangling", Some("has no program")),
        ] {
            match (with_program(&store, &paths, &program.parse().unwrap()), problem) {
                (Ok(path), None) => assert_eq!(path, paths[0], "{program}"),
                (Err(why), Some(problem)) => assert!(why.contains(problem), "{program}: {why}"),
                (found, _) => panic!("{program}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_missing_program_is_told_with_those_there_are() {
        let (_dir, store) = store();
        let (paths, program) = ([store.join("q")], "api".parse().unwrap());
        let why = with_program(&store, &paths, &program).unwrap_err();
        insta::assert_snapshot!(why, @r"
        the package has no program `bin/api`; it has `dir`, `real`
        hint: `meta.mainProgram` of the package names its program
        ");
        fs::remove_dir_all(store.join("q/bin")).unwrap();
        let why = with_program(&store, &paths, &program).unwrap_err();
        assert!(why.contains("it has no programs in `bin/`"), "{why}");
    }

    #[test]
    fn a_site_is_a_directory() {
        let (_dir, store) = store();
        let site = |name: &str| directory(&store, &[store.join(name)]).map(|_| ());
        symlink("p", store.join("link")).unwrap();
        assert_eq!((site("p"), site("link")), (Ok(()), Ok(())));
        for name in ["p/bin/run", "p/bin/outside", "p/bin/dangling"] {
            site(name).unwrap_err();
        }
    }

    #[test]
    fn the_output_bin_counts_when_there_is_no_other() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/nix/store/x-bin", dir.path().join("result-bin")).unwrap();
        symlink("/nix/store/x-man", dir.path().join("result-man")).unwrap();
        assert_eq!(store_paths(dir.path()).unwrap(), [PathBuf::from("/nix/store/x-bin")]);
    }
}
