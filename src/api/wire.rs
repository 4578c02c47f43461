//! What the API says, as JSON; the CLI reads the same types.

use serde::{Deserialize, Serialize};

pub use crate::store::{
    ArtifactView, BuildView, DeploymentView, EventView, GivenSecret, ProjectView, PushView, RootView,
};

use crate::model::{
    BuildId, BuildState, CertificateName, CommitSha, DeploymentId, ProjectName, ServiceName, StorePath,
};

/// `GET /builds/<id>`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BuildDetail {
    /// The build itself.
    #[serde(flatten)]
    pub build: BuildView,
    /// What it made, by name.
    pub artifacts: Vec<ArtifactView>,
    /// The binary caches that is pushed to, and what became of it.
    #[serde(default)]
    pub pushes: Vec<PushView>,
    /// The deployments it led to, newest first.
    pub deployments: Vec<DeploymentInfo>,
}

/// A deployment, and where to look at it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeploymentInfo {
    /// The deployment itself.
    #[serde(flatten)]
    pub deployment: DeploymentView,
    /// Where a browser finds it while it is live.
    pub url: String,
}

/// `GET /deployments/<id>`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeploymentDetail {
    /// The deployment itself.
    #[serde(flatten)]
    pub info: DeploymentInfo,
    /// What was done for it, oldest first.
    pub events: Vec<EventView>,
    /// What it was given of the operator's secrets: names, files and fingerprints.
    pub secrets: Vec<GivenSecret>,
}

/// One of `GET /builds/<id>/logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogInfo {
    /// A service, a site, or `fetch`.
    pub name: ServiceName,
    /// Its size until now.
    pub bytes: u64,
}

/// One of `GET /certificates`. Times are in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateInfo {
    /// What it is for: a host, or `*.` and a domain.
    pub name: CertificateName,
    /// Until when the one that is there is valid.
    pub expires_at: Option<i64>,
    /// When the next one is ordered, or was to be; nothing is ordered without `[acme]`.
    pub next_at: Option<i64>,
    /// Why the last try failed, if it did.
    pub problem: Option<String>,
}

/// `POST /projects/<p>/deploy`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// A branch's name, or `pr-<number>`.
    pub branch: String,
    /// All of a commit, or the first 7 digits or more of one that kennel has built; without it, the newest it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
}

/// A build was queued.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeployAnswer {
    /// Which.
    pub build: BuildId,
    /// Whose.
    pub project: ProjectName,
    /// Of which branch.
    pub branch: String,
    /// Of which commit.
    pub commit: CommitSha,
}

/// A build is cancelled, or will be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CancelAnswer {
    /// Which.
    pub build: BuildId,
    /// `cancelled`, or `building` while it is being stopped.
    pub state: BuildState,
}

/// A target is being torn down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TeardownAnswer {
    /// By which of its versions it was named.
    pub deployment: DeploymentId,
    /// Whose.
    pub project: ProjectName,
    /// Of which branch.
    pub branch: String,
    /// The service's or site's name.
    pub service: ServiceName,
}

/// `GET /gc`: what GC roots keep, what that costs, and what could be freed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GcPlan {
    /// What each root keeps, by project, branch and service, the newest first.
    pub kept: Vec<KeptArtifact>,
    /// Bytes that two or more of them share.
    pub shared_bytes: u64,
    /// What `POST /gc` would free.
    pub free: Garbage,
}

/// A GC root, and what it costs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeptArtifact {
    /// The root itself.
    #[serde(flatten)]
    pub root: RootView,
    /// Bytes that no other root keeps.
    pub exclusive_bytes: u64,
}

/// Paths of the Nix store that nothing keeps: what could be freed, or what `POST /gc` has freed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Garbage {
    /// Their bytes in all.
    pub bytes: u64,
    /// The paths.
    pub paths: Vec<StorePath>,
}

/// `GET /healthz`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Health {
    /// `ok`.
    pub status: String,
}

/// Why something was not done (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Always `about:blank`: the status says what kind it is.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status, in words.
    pub title: String,
    /// The status.
    pub status: u16,
    /// What is the matter.
    pub detail: String,
    /// What helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}
