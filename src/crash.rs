//! Named instants at which a test kills the daemon: before and after each thing it does to the world.
//!
//! With the feature `crash-points` and `KENNEL_CRASH_AT=<name>:<hit>` in its environment, the process kills itself when
//! it comes to that point for the `<hit>`th time. **Invariant:** without the feature a point is nothing at all.

macro_rules! points {
    ($($(#[$meta:meta])* $point:ident = $name:literal,)*) => {
        /// An instant between two things that the daemon does.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point { $($(#[$meta])* $point,)* }

        impl Point {
            /// Every point there is.
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            /// The word for it in `KENNEL_CRASH_AT`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$point => $name,)* }
            }
        }
    };
}

points! {
    /// At start: the lock on the state directory is held.
    StartLocked = "start.locked",
    /// At start: the database is open, the projects are noted.
    StartOpened = "start.opened",
    /// At start: the first route table is loaded and everything listens.
    StartListening = "start.listening",
    /// At start: the machine has been compared with the rows.
    StartReconciled = "start.reconciled",
    /// At the end: the loops have ended, requests have not.
    StopLoopsEnded = "stop.loops_ended",

    /// A delivery is genuine and nothing is recorded of it.
    DeliveryVerified = "delivery.verified",
    /// A push's transaction is about to be committed.
    DeliveryUncommitted = "delivery.uncommitted",
    /// A push is recorded, and not acknowledged.
    DeliveryStored = "delivery.stored",
    /// A removal's transaction is about to be committed.
    RemovalUncommitted = "removal.uncommitted",
    /// A removal is recorded, and not acknowledged.
    RemovalStored = "removal.stored",

    /// A build is claimed.
    BuildClaimed = "build.claimed",
    /// A build has its directories.
    BuildDirsMade = "build.dirs_made",
    /// The fetch unit runs.
    FetchStarted = "fetch.started",
    /// The fetch unit has ended; its report is not read.
    FetchEnded = "fetch.ended",
    /// The build unit runs, and waits.
    BuildStarted = "build.started",
    /// The build unit has been told to begin.
    BuildReleased = "build.released",
    /// The build unit has ended; its report is not read.
    BuildEnded = "build.ended",
    /// A store path was made and nothing keeps it.
    RootAdding = "root.adding",
    /// A GC root keeps a store path that has no row.
    RootAdded = "root.added",
    /// An artifact has its row.
    ArtifactRecorded = "artifact.recorded",
    /// The transaction that ends a build and hands it over is about to be committed.
    BuildUncommitted = "build.uncommitted",
    /// A build has ended, and nobody was told.
    BuildFinished = "build.finished",
    /// The work directory of a build that has ended is gone.
    WorkDirRemoved = "build.workdir_removed",
    /// The units of a cancelled build are stopped.
    CancelUnitsStopped = "cancel.units_stopped",
    /// A build of an earlier run is this run's.
    BuildAdopted = "adopt.taken_over",
    /// The work directory of an earlier run's build is gone.
    RequeueWorkDirRemoved = "requeue.workdir_removed",
    /// A build of an earlier run is in the queue again.
    RequeueStored = "requeue.stored",

    /// A deployment is claimed.
    DeploymentClaimed = "deployment.claimed",
    /// A deployment is `starting`.
    DeploymentBegun = "deployment.begun",
    /// A deployment is recorded as the running version once more.
    DeploymentSkipped = "deployment.skipped",
    /// A custom domain is claimed.
    DomainClaimed = "domain.claimed",
    /// A deployment has a port.
    PortAllocated = "port.allocated",
    /// A file of a deployment is written and not in its place.
    FileDrafted = "file.drafted",
    /// The environment file is in its place.
    EnvWritten = "env.written",
    /// The unit file is in its place.
    UnitWritten = "unit.written",
    /// A unit is about to be started.
    UnitStarting = "unit.starting",
    /// A unit is started.
    UnitStarted = "unit.started",
    /// A service is healthy.
    HealthPassed = "health.passed",
    /// The transaction that switches a route is about to be committed.
    SwitchUncommitted = "switch.uncommitted",
    /// A route is switched in the rows, and not in the table.
    SwitchStored = "switch.stored",
    /// A route is switched in the table, too.
    SwitchReloaded = "switch.reloaded",
    /// A site's new link is not in its place.
    LinkDrafted = "link.drafted",
    /// A site's new link is in its place.
    LinkMade = "link.made",
    /// A deployment is live and has nothing left to do.
    LiveRecorded = "live.recorded",
    /// A drain is about to begin.
    DrainBegun = "drain.begun",
    /// A drain has ended.
    DrainEnded = "drain.ended",
    /// A unit is about to be stopped.
    UnitStopping = "unit.stopping",
    /// A unit is stopped.
    UnitStopped = "unit.stopped",
    /// The files of a stopped unit are gone, and systemd was not told.
    UnitFilesRemoved = "unit.files_removed",
    /// A unit is gone.
    UnitRemoved = "unit.removed",
    /// A port is given back.
    PortReleased = "port.released",
    /// A deployment has ended.
    RetiredRecorded = "retired.recorded",
    /// A deployment that failed is on its way back.
    DeploymentTurnedBack = "deployment.turned_back",

    /// A branch has a Valkey number, and no user of its own yet.
    NumberAllocated = "valkey.number_allocated",
    /// The user of a branch's Valkey number is set up.
    ValkeyUserSet = "valkey.user_set",
    /// The user of an ended branch's Valkey number is gone, its keys are there.
    ValkeyUserRemoved = "valkey.user_removed",
    /// The Valkey number of an ended branch is empty, and its row says otherwise.
    NumberFlushed = "valkey.number_flushed",
    /// A PostgreSQL database has its row, and nothing on the server.
    DatabaseNoted = "postgres.noted",
    /// A branch's role is made: it has no password and cannot log in.
    RoleMade = "postgres.role_made",
    /// A branch's database is made: nobody can enter.
    DatabaseMade = "postgres.database_made",
    /// The role of an ended branch can no longer log in; its database bears its name.
    RoleLocked = "postgres.role_locked",
    /// The database of an ended branch bears its last name, and its row says otherwise.
    DatabaseRenamed = "postgres.renamed",
    /// A renamed database is dropped, its role is there.
    DatabaseDropped = "postgres.dropped",
    /// A renamed database and its role are dropped, and its row says otherwise.
    RoleDropped = "postgres.role_dropped",

    /// The versions of a target are on their way out.
    TeardownBegun = "teardown.begun",
    /// The data is in the trash, and the link to it is still there.
    DataTrashed = "teardown.data_trashed",
    /// The data directory is gone.
    DataRemoved = "teardown.data_removed",
    /// A site's link is gone.
    LinkRemoved = "teardown.link_removed",
    /// A target is gone.
    TeardownFinished = "teardown.finished",

    /// The environment file of a live version is made again.
    RestoreEnvWritten = "restore.env_written",
    /// The unit of a live version is made again.
    RestoreUnitWritten = "restore.unit_written",
    /// A live version is started again.
    RestoreStarted = "restore.started",
    /// The link of a live site is made again.
    RestoreLinkMade = "restore.link_made",
    /// The root of an artifact is made again.
    RestoreRootMade = "restore.root_made",
    /// The user of a Valkey number is set up again.
    RestoreValkeyUserSet = "restore.valkey_user_set",
    /// A role and its database are set up again.
    RestoreDatabaseSet = "restore.database_set",
    /// A unit that belongs to nothing is stopped.
    OrphanUnitStopped = "orphan.unit_stopped",
    /// A unit that belongs to nothing is gone.
    OrphanUnitRemoved = "orphan.unit_removed",
    /// A root that serves nobody is gone, and its row says otherwise.
    RootRemoved = "root.removed",
    /// A root that served nobody is gone.
    RootForgotten = "root.forgotten",
    /// A link that belongs to nothing is gone.
    OrphanLinkRemoved = "orphan.link_removed",
    /// Data that belongs to nothing is in the trash.
    OrphanDataRemoved = "orphan.data_removed",
    /// A work directory that belongs to nothing is gone.
    OrphanWorkDirRemoved = "orphan.workdir_removed",
    /// A log directory that belongs to nothing is gone.
    OrphanLogDirRemoved = "orphan.logdir_removed",
    /// A Valkey number whose user belongs to nothing has a row, by which it will go.
    OrphanNumberAdopted = "orphan.number_adopted",
    /// A role or database that belongs to nothing has a row, by which it will go.
    OrphanDatabaseAdopted = "orphan.database_adopted",

    /// The teardown of a target that nobody uses is asked for.
    ExpiryRecorded = "expiry.recorded",
    /// The transaction that removes old rows is about to be committed.
    SweepUncommitted = "sweep.uncommitted",
    /// Old rows are removed; the logs of their builds are there.
    SweepStored = "sweep.stored",
    /// Something that lay in the trash for long enough is gone.
    TrashEmptied = "trash.emptied",

    /// A changed file's projects are noted; the daemon goes by the old file.
    ReloadNoted = "reload.noted",
    /// The daemon goes by a changed file, and systemd was not told.
    ReloadDone = "reload.done",
}

/// Dies here, if that is what was asked for.
#[cfg(feature = "crash-points")]
pub fn point(point: Point) {
    armed::pass(point);
}

/// Nothing: this program was built without crash points.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub const fn point(_: Point) {}

#[cfg(feature = "crash-points")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::sys::signal::{Signal, raise};

    use super::Point;

    // Globals, which kennel has nowhere else: a point must be one line, wherever it is.
    static ARMED: OnceLock<Option<(Point, u32)>> = OnceLock::new();
    static HITS: AtomicU32 = AtomicU32::new(0);

    pub(super) fn pass(point: Point) {
        let Some((at, hit)) = *ARMED.get_or_init(read) else { return };
        if point == at && HITS.fetch_add(1, Ordering::SeqCst) + 1 == hit {
            eprintln!("Killing myself at `{}`, hit {hit}", point.name());
            let _ = raise(Signal::SIGKILL);
            unreachable!("SIGKILL cannot be ignored");
        }
    }

    /// A word that means nothing ends the process: it would test nothing.
    fn read() -> Option<(Point, u32)> {
        let text = std::env::var("KENNEL_CRASH_AT").ok()?;
        let parsed = text.split_once(':').and_then(|(name, hit)| {
            let point = Point::ALL.iter().copied().find(|point| point.name() == name)?;
            Some((point, hit.parse().ok().filter(|&hit| hit > 0)?))
        });
        parsed.or_else(|| {
            eprintln!("KENNEL_CRASH_AT={text}: expected <name>:<hit>, with a name of a crash point and a hit from 1");
            std::process::exit(64)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_points_share_a_name() {
        let mut names: Vec<_> = Point::ALL.iter().map(|point| point.name()).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
