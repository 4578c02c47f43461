//! Much of everything at once: deliveries, live deployments, rows.

use std::time::Instant;

use serde_json::Value;
use tokio::task::JoinSet;

use super::{fsync_ms, is_wanted, lab_that_builds_nothing, median};
use crate::harness::http::Connection;
use crate::harness::leftovers::rows;
use crate::harness::{Lab, api, delivery};

/// How many senders deliver side by side, and how many deliveries all of them send.
const SENDERS: [(usize, usize); 4] = [(1, 500), (8, 2000), (32, 5000), (128, 10_000)];

#[tokio::test(flavor = "multi_thread")]
async fn bench_durable_deliveries_per_second() {
    if !is_wanted() {
        return;
    }
    let lab = lab_that_builds_nothing().await;
    println!("\nsigned pushes to 10 branches, each answered after it was durable, over connections that are kept");
    println!(
        "{:>9} {:>11} {:>9} {:>11} {:>10} {:>16}",
        "senders", "deliveries", "per s", "median ms", "99 % ms", "fsyncs per s"
    );
    let mut sent_before = 0;
    for (senders, deliveries) in SENDERS {
        let disk = 1000.0 / fsync_ms();
        let prepared = (0..senders).map(|sender| {
            let numbers = (0..deliveries / senders).map(move |n| sent_before + n * senders + sender);
            numbers.map(|n| push_number(&lab, n)).collect::<Vec<_>>()
        });
        let prepared: Vec<_> = prepared.collect();
        let sent: usize = prepared.iter().map(Vec::len).sum();
        let begun = Instant::now();
        let mut tasks: JoinSet<_> = prepared.into_iter().map(send_all).collect();
        let mut answers = Vec::with_capacity(sent);
        while let Some(times) = tasks.join_next().await {
            answers.extend(times.unwrap());
        }
        let seconds = begun.elapsed().as_secs_f64();
        sent_before += sent;
        answers.sort_by(f64::total_cmp);
        println!(
            "{senders:>9} {sent:>11} {:>9.0} {:>11.2} {:>10.2} {disk:>16.0}",
            sent as f64 / seconds,
            median(answers.clone()),
            answers[answers.len() * 99 / 100],
        );
    }
    let recorded = rows("select count(*) from deliveries").await;
    assert_eq!(recorded, [(sent_before + 1).to_string()], "as many as were answered, and the one that waits");
    println!("at least 1000 per second are wanted");
    lab.delete_branch("hello", "held").await.expect(202);
    lab.finish().await;
}

/// The push of a commit nobody has, to one of 10 branches.
fn push_number(lab: &Lab, n: usize) -> delivery::Delivery {
    let payload = delivery::push("hello", &format!("branch-{}", n % 10), None, &format!("{:040x}", n + 1));
    lab.delivery("hello", "push", &payload)
}

/// Sends one after the other; tells how many milliseconds each answer took.
async fn send_all(deliveries: Vec<delivery::Delivery>) -> Vec<f64> {
    let mut connection = Connection::open(api::API).await.unwrap();
    let mut times = Vec::with_capacity(deliveries.len());
    for delivery in deliveries {
        let sent = Instant::now();
        let answer = connection.send(api::request_of(&delivery)).await.unwrap().expect(202);
        times.push(sent.elapsed().as_secs_f64() * 1000.0);
        assert!(answer.json::<Value>()["build"].is_i64());
    }
    times
}
