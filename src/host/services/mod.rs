//! Servers that kennel talks to on behalf of a deployment.

pub mod postgres;
pub mod probe;
pub mod server;
pub mod valkey;

pub use server::{ServerError, ServerKind, ServerUrl};
