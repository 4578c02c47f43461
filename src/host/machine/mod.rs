//! The real machine: systemd over D-Bus, the Nix daemon, and files.

pub mod layout;
pub mod render;
