//! The vocabulary, and every legal change of state, as pure types and functions.
//!
//! **Invariant:** nothing here touches a file, a clock, a socket or the database.

pub mod build;
pub mod cache;
pub mod confinement;
pub mod database;
pub mod deployment;
pub mod names;
pub mod route;
pub mod settings;

pub use build::{ArtifactState, BuildEvent, BuildState, Environment, RootReason};
pub use cache::Cache;
pub use database::DatabaseState;
pub use deployment::{DeploymentEvent, DeploymentState, Ending, Step};
pub use names::{
    BranchId, BranchRef, BranchSlug, BuildId, CertificateName, CommitSha, DatabaseName, DeliveryId, DeploymentId,
    FlakeOutput, HostName, InvalidName, Port, ProgramName, ProjectName, ServiceName, StorePath, TargetId, TargetNames,
    TargetTag, UnitName, UserName, ValkeyDb,
};
pub use route::{Destination, Route};
pub use settings::{HealthCheck, Kind, Protocol, Settings};

/// A change of state that the rules do not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a {thing} that is `{from}` cannot become so by `{event}`")]
pub struct IllegalMove {
    /// `build` or `deployment`.
    pub thing: &'static str,
    /// The state it is in.
    pub from: &'static str,
    /// What was to happen to it.
    pub event: &'static str,
}

/// Declares an enum whose values are words: in the database, in JSON and on the screen alike.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, sqlx::Type)]
        #[serde(rename_all = "snake_case")]
        #[sqlx(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every value, in the order of its declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word for it.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.word())
            }
        }
    };
}
pub(crate) use words;
