//! Turns a queued build into pinned store paths or recorded failures.

pub mod worker;
