//! Servers that kennel talks to on behalf of a deployment.

pub mod probe;
