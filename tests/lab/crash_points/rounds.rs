//! What brings kennel to each point.

use kennel::crash::Point;

/// One kill.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    pub(super) point: Point,
    /// Which time it comes there.
    pub(super) hit: u32,
}

/// What happens on the stage while kennel is to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scenario {
    /// New versions of a service and a site of a branch are pushed, and a pull request of the same is opened or
    /// changed. Each service has databases.
    Deploy,
    /// The same, where nothing of it is there.
    Create,
    /// The same, replacing versions that are live.
    Redeploy,
    /// That branch is deleted and that pull request closed.
    Remove,
    /// Pushes whose services end at once.
    Sick,
    /// A push that changes nothing.
    Same,
    /// The default branch's services ask for other domains.
    Domains,
    /// Two running builds are cancelled.
    Cancel,
    /// kennel has died before, and with it the units of two builds.
    Requeue,
    /// kennel has died before, and the units of two builds go on.
    Adopt,
    /// kennel has died before, and with it went processes, files, links and roots of what is live.
    Loss,
    /// Things lie about that bear kennel's names and belong to nothing.
    Orphans,
    /// So do users, roles and databases on the servers.
    OrphanDatabases,
    /// The databases of branches that ended are 7 days old.
    Drop,
    /// Nobody has asked for that branch and that pull request for 7 days.
    Expire,
    /// Most of what there was ended 30 days ago. The second hit is that of the start after.
    Sweep,
    /// The daemon's file no longer names a project, and is read again.
    Reload,
    /// kennel starts. It comes to each point once: the second hit is that of the start after.
    Start,
    /// kennel is stopped in order; likewise.
    Stop,
}

/// A new point has to be given its scenario here.
pub(super) fn scenario(point: Point) -> Scenario {
    match point {
        Point::StartLocked | Point::StartOpened | Point::StartListening | Point::StartReconciled => Scenario::Start,
        Point::StopLoopsEnded => Scenario::Stop,
        Point::DeliveryVerified
        | Point::DeliveryUncommitted
        | Point::DeliveryStored
        | Point::BuildClaimed
        | Point::BuildDirsMade
        | Point::FetchStarted
        | Point::FetchEnded
        | Point::BuildStarted
        | Point::BuildReleased
        | Point::BuildEnded
        | Point::RootAdding
        | Point::RootAdded
        | Point::ArtifactRecorded
        | Point::BuildUncommitted
        | Point::BuildFinished
        | Point::WorkDirRemoved
        | Point::DeploymentClaimed
        | Point::DeploymentBegun
        | Point::PortAllocated
        | Point::FileDrafted
        | Point::EnvWritten
        | Point::UnitWritten
        | Point::UnitStarting
        | Point::UnitStarted
        | Point::HealthPassed
        | Point::SwitchUncommitted
        | Point::SwitchStored
        | Point::SwitchReloaded
        | Point::LinkDrafted
        | Point::LinkMade
        | Point::LiveRecorded => Scenario::Deploy,
        Point::NumberAllocated
        | Point::ValkeyUserSet
        | Point::DatabaseNoted
        | Point::RoleMade
        | Point::DatabaseMade => Scenario::Create,
        Point::DrainBegun
        | Point::DrainEnded
        | Point::UnitStopping
        | Point::UnitStopped
        | Point::UnitFilesRemoved
        | Point::UnitRemoved
        | Point::PortReleased
        | Point::RetiredRecorded => Scenario::Redeploy,
        Point::RemovalUncommitted
        | Point::RemovalStored
        | Point::TeardownBegun
        | Point::DataTrashed
        | Point::DataRemoved
        | Point::LinkRemoved
        | Point::TeardownFinished
        | Point::ValkeyUserRemoved
        | Point::NumberFlushed
        | Point::RoleLocked
        | Point::DatabaseRenamed
        | Point::RootRemoved
        | Point::RootForgotten => Scenario::Remove,
        Point::DeploymentTurnedBack => Scenario::Sick,
        Point::DeploymentSkipped => Scenario::Same,
        Point::DomainClaimed => Scenario::Domains,
        Point::CancelUnitsStopped => Scenario::Cancel,
        Point::RequeueWorkDirRemoved | Point::RequeueStored => Scenario::Requeue,
        Point::BuildAdopted => Scenario::Adopt,
        Point::RestoreEnvWritten
        | Point::RestoreUnitWritten
        | Point::RestoreStarted
        | Point::RestoreLinkMade
        | Point::RestoreRootMade
        | Point::RestoreValkeyUserSet
        | Point::RestoreDatabaseSet => Scenario::Loss,
        Point::OrphanUnitStopped
        | Point::OrphanUnitRemoved
        | Point::OrphanLinkRemoved
        | Point::OrphanDataRemoved
        | Point::OrphanWorkDirRemoved
        | Point::OrphanLogDirRemoved
        | Point::TrashEmptied => Scenario::Orphans,
        Point::OrphanNumberAdopted | Point::OrphanDatabaseAdopted => Scenario::OrphanDatabases,
        Point::DatabaseDropped | Point::RoleDropped => Scenario::Drop,
        Point::ExpiryRecorded => Scenario::Expire,
        Point::SweepUncommitted | Point::SweepStored => Scenario::Sweep,
        Point::ReloadNoted | Point::ReloadDone => Scenario::Reload,
    }
}
