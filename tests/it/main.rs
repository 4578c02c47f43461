//! kennel as its neighbours meet it.
#![cfg(test)]

mod cli;
