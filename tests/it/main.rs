//! The daemon in one process, over a machine in memory. What crosses systemd and Nix is in `tests/lab`.
#![cfg(test)]

mod builder;
mod caches;
mod cli;
mod deploy;
mod floods;
mod fuzz;
mod harness;
#[path = "../invariants.rs"]
mod invariants;
mod layering;
mod monitor;
mod properties;
mod reconcile;
mod rehearsal;
mod removals;
mod resume;
mod secrets;
mod turns;
mod upkeep;
mod webhook;
