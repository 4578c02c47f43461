//! What needs a real machine: run by `tests/lab/lab test`, never on the host itself.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]
#![allow(clippy::print_stdout, reason = "a test tells what it measured")]

mod host;
