//! What passes over the socket: one JSON text a message, behind its length in four bytes.
//!
//! Each call has a number, under which it is answered; calls of one connection are served side by side. **Invariant:**
//! unknown fields are faults, and a message has a largest size.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::codec::LengthDelimitedCodec;

use super::fault::Refusal;
use crate::host::{BuildJob, BuildPhase, SiteLink, UnitSpec};
use crate::model::{BranchSlug, BuildId, Environment, ProjectName, ServiceName, StorePath, UnitName};

/// Which calls there are, and how they are written: changed whenever they are.
pub(super) const VERSION: u32 = 1;
/// The largest message to root, in bytes: an environment is the largest part of a specification.
pub(super) const CALL_MAX: usize = 4 << 20;
/// The largest answer, in bytes: all that is dead in a large store.
pub(super) const ANSWER_MAX: usize = 256 << 20;

/// How messages of at most `max` bytes are told apart.
pub(super) fn codec(max: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(max).new_codec()
}

/// A message to root. The call is looked at only once its number is known.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Message<T> {
    /// The call's number.
    pub(super) id: u64,
    /// What is asked for; `None` gives up what was asked for under this number.
    pub(super) call: Option<T>,
}

/// A message from root.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    /// The call's number, or 0 for what ends the connection.
    pub(super) id: u64,
    pub(super) result: Result<Value, Refusal>,
}

/// The calls of [`Machine`](crate::host::Machine), in its order; `Hello` comes first on each connection.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Call {
    Hello { version: u32 },
    SecretFingerprints { project: ProjectName, environment: Environment, secrets: BTreeSet<String> },
    EnsureEnvFile { spec: UnitSpec },
    EnsureUnit { spec: UnitSpec },
    StartUnit { unit: UnitName },
    StopUnit { unit: UnitName },
    RemoveUnit { unit: UnitName },
    UnitState { unit: UnitName },
    UnitUid { unit: UnitName },
    JournalTail { unit: UnitName, lines: usize },
    OwnUnits {},
    EnsureSiteLink { link: SiteLink, to: StorePath },
    RemoveSiteLink { link: SiteLink },
    RemoveDataDir { project: ProjectName, slug: BranchSlug, service: ServiceName },
    EnsureGcRoot { build: BuildId, name: ServiceName, path: StorePath },
    RemoveGcRoot { build: BuildId, name: ServiceName },
    EnsureBuildDirs { job: BuildJob },
    StartBuild { build: BuildId, phase: BuildPhase, project: ProjectName, timeout_secs: u64 },
    ReleaseBuild { build: BuildId },
    WaitUnit { unit: UnitName },
    BuildReport { build: BuildId, phase: BuildPhase },
    BuildOutput { build: BuildId, name: ServiceName },
    RemoveWorkDir { build: BuildId },
    RemoveLogDir { build: BuildId },
    EmptyTrash { older_than: Duration },
    RemoveRemains {},
    Inventory {},
    DiskSpace {},
    Closure { paths: Vec<StorePath> },
    Garbage { released: Vec<StorePath> },
    FreeGarbage { released: Vec<StorePath> },
}

impl Call {
    /// Whether it leaves the machine as it is.
    pub(super) fn only_looks(&self) -> bool {
        matches!(
            self,
            Self::Hello { .. }
                | Self::SecretFingerprints { .. }
                | Self::UnitState { .. }
                | Self::UnitUid { .. }
                | Self::JournalTail { .. }
                | Self::OwnUnits {}
                | Self::WaitUnit { .. }
                | Self::BuildReport { .. }
                | Self::BuildOutput { .. }
                | Self::Inventory {}
                | Self::DiskSpace {}
                | Self::Closure { .. }
                | Self::Garbage { .. }
        )
    }
}

/// What is asked for and of what, in a few words, for logs: of any message, a strange one included.
pub(super) fn describe(call: &Value) -> String {
    let Some((name, about)) = call.as_object().and_then(|call| call.iter().next()) else {
        return "something that is no call".to_owned();
    };
    let spec = about.get("spec").or_else(|| about.get("job")).or_else(|| about.get("link")).unwrap_or(about);
    let parts = ["unit", "tag", "deployment", "project", "build", "phase", "slug", "site", "service", "name"];
    let said = parts.iter().filter_map(|part| spec.get(part)).map(|value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    });
    printable(&std::iter::once(name.clone()).chain(said).collect::<Vec<_>>().join(" "))
}

/// The beginning of a text that may come from whoever has taken the daemon over, in one line.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(300).collect()
}
