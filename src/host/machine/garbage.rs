//! What the Nix store keeps, and freeing what kennel has let go of.
//!
//! Nix itself decides what is dead, with every root it knows, those of builds under way included, and looks again when
//! it deletes. **Invariant:** nothing is deleted that something keeps, and the store as a whole is never collected.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::{Fault, ended};
use crate::host::closure::{Care, Freed, PathInfo, Paths, freeable};
use crate::model::StorePath;

/// How long one command may take: a large store is walked through as a whole.
const TIMEOUT: Duration = Duration::from_secs(600);
/// How many paths one command deletes.
const BATCH: usize = 4_000;

/// What these paths and all they refer to cost; those that are not in the store are left out.
pub(super) async fn closure(paths: &[StorePath]) -> Result<Paths, Fault> {
    let valid = valid(paths).await?;
    if valid.is_empty() {
        return Ok(Paths::new());
    }
    path_info(&["--recursive"], &valid).await
}

/// What of the store can go, now that these paths are not needed.
pub(super) async fn garbage(released: &[StorePath]) -> Result<Vec<PathInfo>, Fault> {
    if valid(released).await?.is_empty() {
        return Ok(Vec::new());
    }
    let dead = dead().await?;
    Ok(chosen(released, &dead, Care::Usual))
}

fn chosen(released: &[StorePath], dead: &Paths, care: Care) -> Vec<PathInfo> {
    freeable(released, dead, care).into_iter().filter_map(|path| dead.get(path).cloned()).collect()
}

/// Deletes what [`garbage`] tells. What something has begun to keep meanwhile stays.
pub(super) async fn free(released: &[StorePath]) -> Result<Freed, Fault> {
    let mut tried = BTreeMap::new();
    let mut refused = None;
    // What was dead may be needed again by now, and Nix may keep more than usual: then once more, with more care.
    for care in [Care::Usual, Care::Usual, Care::KeepOutputs] {
        if valid(released).await?.is_empty() {
            break;
        }
        let going = chosen(released, &dead().await?, care);
        refused = delete(&going).await.err();
        tried.extend(going.into_iter().map(|info| (info.path.clone(), info)));
        if refused.is_none() {
            break;
        }
    }
    let paths: Vec<StorePath> = tried.keys().cloned().collect();
    let left: BTreeSet<StorePath> = valid(&paths).await?.into_iter().collect();
    let gone: Vec<PathInfo> = tried.into_values().filter(|info| !left.contains(&info.path)).collect();
    match refused {
        Some(fault) if gone.is_empty() => return Err(fault),
        _ => {}
    }
    let there: BTreeSet<StorePath> = valid(released).await?.into_iter().collect();
    Ok(Freed { gone, settled: released.iter().filter(|path| !there.contains(path)).cloned().collect() })
}

async fn delete(paths: &[PathInfo]) -> Result<(), Fault> {
    for batch in paths.chunks(BATCH) {
        let mut command = nix("nix-store");
        command.arg("--delete").args(batch.iter().map(|info| info.path.as_str()));
        run("nix-store", command, "").await?;
    }
    Ok(())
}

/// Those of the paths that are in the store.
async fn valid(paths: &[StorePath]) -> Result<Vec<StorePath>, Fault> {
    let mut invalid = BTreeSet::new();
    for batch in paths.chunks(BATCH) {
        let mut command = nix("nix-store");
        command.args(["--check-validity", "--print-invalid"]).args(batch.iter().map(StorePath::as_str));
        let output = run("nix-store", command, "").await?;
        invalid.extend(store_paths(&output.stdout));
    }
    Ok(paths.iter().filter(|path| !invalid.contains(path)).cloned().collect())
}

/// Every path that nothing keeps.
async fn dead() -> Result<Paths, Fault> {
    let mut command = nix("nix-store");
    command.args(["--gc", "--print-dead"]);
    let output = run("nix-store", command, "").await?;
    let dead: Vec<StorePath> = store_paths(&output.stdout).collect();
    if dead.is_empty() { Ok(Paths::new()) } else { path_info(&[], &dead).await }
}

/// One path a line; what is not the path of a package, such as a lock, is passed over.
fn store_paths(text: &[u8]) -> impl Iterator<Item = StorePath> {
    text.split(|byte| *byte == b'\n').filter_map(|line| str::from_utf8(line).ok()?.trim().parse().ok())
}

/// One path of `nix path-info --json`. More is said there, and more may come.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    nar_size: u64,
    #[serde(default)]
    references: Vec<String>,
    #[serde(default)]
    deriver: Option<String>,
}

async fn path_info(flags: &[&str], paths: &[StorePath]) -> Result<Paths, Fault> {
    let mut command = nix("nix");
    command.args(["--extra-experimental-features", "nix-command", "path-info", "--json", "--stdin"]).args(flags);
    let lines: String = paths.iter().map(|path| format!("{path}\n")).collect();
    let output = run("nix", command, &lines).await?;
    read_path_info(&output.stdout)
}

fn read_path_info(json: &[u8]) -> Result<Paths, Fault> {
    let told: BTreeMap<String, Option<Told>> = serde_json::from_slice(json)?;
    let mut paths = Paths::new();
    // What has gone since it was asked for is `null`.
    for (path, told) in told.into_iter().filter_map(|(path, told)| Some((path, told?))) {
        let path: StorePath = path.parse()?;
        let references = told.references.iter().map(|path| path.parse()).collect::<Result<_, _>>()?;
        let deriver = told.deriver.as_deref().and_then(|path| path.parse().ok());
        paths.insert(path.clone(), PathInfo { path, bytes: told.nar_size, references, deriver });
    }
    Ok(paths)
}

/// A command of Nix's that asks its daemon, and wants no home directory.
fn nix(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("NIX_REMOTE", "daemon").env("HOME", "/var/empty").env("XDG_CACHE_HOME", "/tmp").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn run(program: &str, mut command: Command, input: &str) -> Result<Output, Fault> {
    let exchange = async {
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().ok_or("it has no standard input")?;
        // Both at once: it may answer before it has read everything.
        let written = async move {
            // Whoever reads no further says why by its exit status.
            let _ = stdin.write_all(input.as_bytes()).await;
        };
        let (_, output) = tokio::join!(written, child.wait_with_output());
        Ok::<_, Fault>(output?)
    };
    let output = tokio::time::timeout(TIMEOUT, exchange).await??;
    if output.status.success() { Ok(output) } else { Err(ended(program, &output)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nix_tells_of_paths_is_read_and_what_has_gone_is_left_out() {
        let json = r#"{
            "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-app": {
                "ca": null, "narHash": "sha256-x", "narSize": 1234, "registrationTime": 1, "signatures": [],
                "deriver": "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-app.drv", "ultimate": true,
                "references": ["/nix/store/0123456789abcdfghijklmnpqrsvwxyz-lib"]
            },
            "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-gone": null
        }"#;
        let paths = read_path_info(json.as_bytes()).unwrap();
        let info = paths.values().next().unwrap();
        assert_eq!((paths.len(), info.bytes, info.references.len()), (1, 1234, 1));
        assert!(info.deriver.as_ref().unwrap().as_str().ends_with("-app.drv"));
        assert!(read_path_info(b"[]").is_err());
    }

    #[test]
    fn only_paths_of_packages_are_taken_from_a_list() {
        let text = b"/nix/store/0123456789abcdfghijklmnpqrsvwxyz-a\n/nix/store/.links\n\n/nix/store/x.lock\n";
        assert_eq!(store_paths(text).count(), 1);
    }
}
