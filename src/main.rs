//! The `kennel` program.

fn main() {}
