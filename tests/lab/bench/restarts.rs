//! What visitors notice of kennel's restarts: nothing but, at most, a slow answer.

use crate::gapless::{Load, held};
use crate::harness::sockets;

use super::is_wanted;

/// How many restarts there are, and how many visitors ask how often each, at the least.
const RESTARTS: usize = 20;
const LOAD: (usize, usize) = (8, 2000);

#[tokio::test(flavor = "multi_thread")]
async fn bench_restarts_under_load() {
    if !is_wanted() {
        return;
    }
    let (lab, host) = held().await;
    println!("\n{RESTARTS} restarts, {} visitors with at least {} requests each", LOAD.0, LOAD.1);
    let load = Load::begin(&host, LOAD.0, LOAD.1);
    for _ in 0..RESTARTS {
        lab.restart().await;
    }
    let seen = load.end().await;
    seen.expect_no_failure();
    println!("no request was refused, reset or left unanswered; the slowest is to take less than 1000 ms");
    lab.finish().await;
    sockets::let_go().await;
}
