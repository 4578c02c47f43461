//! kennel turns a `git push` into a running service on a machine you own.
//!
//! A forge's signed webhook becomes a row; every stage finds its work in rows and leaves rows for the next:
//!
//! ```text
//! webhook ──► build ──► builder ──► deployments ──► deployer ──► routes ──► router
//! ```
//!
//! Modules, from the bottom up. Dependencies point down only, and never sideways; `tests/it/layering.rs`
//! reads every `use crate::` line and fails when one does not.
//!
//! | Layer | Modules |
//! |---|---|
//! | 0 | [`model`] the vocabulary and every legal change of state · [`crash`] where tests kill the daemon |
//! | 1 | [`config`] TOML to checked types · [`wake`] bells · [`chance`] what keeps many from coming at once, and how long they wait · [`telemetry`] tracing and error chains · [`places`] who is charged for what comes · [`sockets`] listening sockets that outlive the process |
//! | 2 | [`store`] all SQL · [`host`] this machine · [`handover`] one kennel gives its place to another |
//! | 3 | [`router`] requests to upstreams · [`dns`] the operator's zone |
//! | 4 | [`certificates`] what the router shows by TLS · [`caches`] what builds made, pushed to binary caches |
//! | 4 | [`webhook`] · [`builder`] · [`deployer`] · [`monitor`] · [`api`]: the stages, which do not know each other |
//! | 5 | [`reconciler`] rows against machine |
//! | 6 | [`daemon`] everything, started and stopped in order |
//! | 7 | [`service`] the daemon, and `kennel host`, as systemd sees them |
//! | 8 | [`cli`] one file per command |

pub mod crash;
pub mod model;

pub mod chance;
pub mod config;
pub mod places;
pub mod sockets;

pub mod handover;
pub mod telemetry;
pub mod wake;

pub mod host;
pub mod store;

pub mod dns;
pub mod router;

pub mod api;
pub mod builder;
pub mod caches;
pub mod certificates;
pub mod deployer;
pub mod monitor;
pub mod webhook;

pub mod reconciler;

pub mod daemon;

pub mod service;

pub mod cli;

/// Hundreds of requests at a time take and give back the same few sizes of memory. glibc's allocator looks for them in
/// memory that has gone cold; this one does not.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
