//! The disks that kennel and Nix fill.

use std::io;
use std::path::Path;

use ::nix::sys::statfs::{FsType, NFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, SMB_SUPER_MAGIC, TMPFS_MAGIC, statfs};

use super::Subject;
use super::finding::Finding;

const GIB: u64 = 1 << 30;
/// Below this, a build is likely to fill the disk.
const LITTLE: u64 = 10 * GIB;
/// Below this, it is as good as full.
const NOTHING: u64 = GIB;

/// What kind of file system something lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A disk of this machine's.
    Disk,
    /// Memory.
    Memory,
    /// Another machine's.
    Network,
    /// A container's layers.
    Overlay,
}

/// A file system.
#[derive(Debug, Clone, Copy)]
struct Volume {
    kind: Kind,
    free: u64,
    total: u64,
}

/// Checks the state directory and Nix's store.
pub(super) async fn check(subject: &Subject) -> Vec<Finding> {
    let (state, store) = (subject.state_dir.as_path(), Path::new("/nix/store"));
    // Nix makes its store when it is first used.
    let there = store.ancestors().find(|dir| dir.exists()).unwrap_or(store);
    vec![
        judge_state(state, volume(state)),
        judge_space("nix store", store, volume(there), "collect garbage: `nix-collect-garbage`, or make room"),
    ]
}

fn volume(path: &Path) -> io::Result<Volume> {
    let found = statfs(path)?;
    let size = u64::try_from(found.block_size()).unwrap_or(0);
    Ok(Volume {
        kind: kind(found.filesystem_type()),
        free: found.blocks_available().saturating_mul(size),
        total: found.blocks().saturating_mul(size),
    })
}

fn kind(fs: FsType) -> Kind {
    match fs {
        TMPFS_MAGIC => Kind::Memory,
        OVERLAYFS_SUPER_MAGIC => Kind::Overlay,
        NFS_SUPER_MAGIC | SMB_SUPER_MAGIC => Kind::Network,
        _ => Kind::Disk,
    }
}

fn judge_state(dir: &Path, volume: io::Result<Volume>) -> Finding {
    let (check, shown) = ("state directory", dir.display());
    if let Err(err) = &volume
        && err.kind() == io::ErrorKind::NotFound
    {
        return Finding::warning(check, format!("there is no `{shown}` yet"), "start kennel once: it makes it");
    }
    let advice = "put `state_dir` on a disk of this machine's";
    match volume.as_ref().map(|volume| volume.kind) {
        Ok(Kind::Memory) => {
            Finding::failure(check, format!("`{shown}` lies in memory: a reboot loses all that kennel knows"), advice)
        }
        Ok(Kind::Network) => Finding::failure(
            check,
            format!("`{shown}` lies on a network's file system, where SQLite's log may be corrupted"),
            advice,
        ),
        Ok(Kind::Overlay) if volume.as_ref().is_ok_and(|volume| volume.free >= LITTLE) => Finding::warning(
            check,
            format!("`{shown}` lies in a container's layers, which may go with the container"),
            advice,
        ),
        Ok(Kind::Disk | Kind::Overlay) | Err(_) => {
            judge_space(check, dir, volume, "make room: nothing is built or stored without it")
        }
    }
}

fn judge_space(check: &str, dir: &Path, volume: io::Result<Volume>, advice: &str) -> Finding {
    let shown = dir.display();
    let volume = match volume {
        Ok(volume) => volume,
        Err(err) => {
            return Finding::failure(check, format!("`{shown}` cannot be looked at: {err}"), "see that it is there");
        }
    };
    let free = format!("{} of {} free at `{shown}`", gib(volume.free), gib(volume.total));
    match volume.free {
        ..NOTHING => Finding::failure(check, free, advice),
        NOTHING..LITTLE => Finding::warning(check, format!("{free}; builds may want {}", gib(LITTLE)), advice),
        LITTLE.. => Finding::ok(check, free),
    }
}

fn gib(bytes: u64) -> String {
    let tenths = bytes / (GIB / 10);
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::finding::Level;
    use super::*;

    fn with(kind: Kind, free: u64) -> io::Result<Volume> {
        Ok(Volume { kind, free, total: 100 * GIB })
    }

    #[rstest]
    #[case(with(Kind::Disk, 50 * GIB), Level::Ok)]
    #[case(with(Kind::Disk, 9 * GIB), Level::Warning)]
    #[case(with(Kind::Disk, GIB - 1), Level::Failure)]
    #[case(with(Kind::Memory, 50 * GIB), Level::Failure)]
    #[case(with(Kind::Network, 50 * GIB), Level::Failure)]
    #[case(with(Kind::Overlay, 50 * GIB), Level::Warning)]
    #[case(with(Kind::Overlay, 0), Level::Failure)]
    #[case(Err(io::ErrorKind::NotFound.into()), Level::Warning)]
    #[case(Err(io::ErrorKind::PermissionDenied.into()), Level::Failure)]
    fn the_state_needs_room_on_a_disk_that_stays(#[case] volume: io::Result<Volume>, #[case] level: Level) {
        assert_eq!(judge_state(Path::new("/var/lib/kennel"), volume).level, level);
    }

    #[test]
    fn room_is_told_in_gibibytes() {
        let found = judge_space("nix store", Path::new("/nix/store"), with(Kind::Overlay, 25 * GIB / 2), "x");
        assert_eq!(found, Finding::ok("nix store", "12.5 GiB of 100.0 GiB free at `/nix/store`"));
        let found = judge_space("nix store", Path::new("/nix/store"), with(Kind::Overlay, 3 * GIB), "make room");
        let little = "3.0 GiB of 100.0 GiB free at `/nix/store`; builds may want 10.0 GiB";
        assert_eq!(found, Finding::warning("nix store", little, "make room"));
    }
}
