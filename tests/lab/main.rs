//! The lab: the real kennel against real systemd, Nix, git and sockets, inside a machine of its own.
//!
//! `tests/lab/lab test` boots that machine and runs these tests in it, as root and one after the other: each takes the
//! whole machine, begins from nothing, and ends by looking whether kennel gave everything back. Those of [`host`] try
//! the layer below alone.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]
#![allow(clippy::print_stdout, reason = "a test tells what it measured")]

mod harness;
#[path = "../invariants.rs"]
mod invariants;

mod bad_input;
mod bench;
mod caches;
mod cancel;
mod certificates;
mod confinement;
mod crash_points;
mod databases;
mod doctor;
mod environment;
mod failures;
mod floods;
mod front_door;
mod gapless;
mod host;
mod hostile;
mod install;
mod isolation;
mod names;
mod nemesis;
mod nixos;
mod operator;
mod ordinary;
mod power_off;
mod private_repos;
mod pulls;
mod pushes;
mod remote_builders;
mod restart;
mod secrets;
mod sites;
mod split;
mod under_load;
mod upkeep;
mod wildcards;
mod worker;
