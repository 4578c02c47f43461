//! kennel is killed at every instant that [`kennel::crash::Point`] names, the first and the second time it comes there,
//! and started again: it comes to rest, and everything holds that should.
//!
//! A point that its scenario does not come to fails the test. One machine and one store serve all rounds; the program
//! is one built with the feature `crash-points`.

mod orphans;
mod rounds;
mod stage;

use std::time::Instant;

use kennel::crash::Point;

use rounds::{Round, Scenario, scenario};
use stage::Stage;

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_point_twice_kennel_converges() {
    let begun = Instant::now();
    let mut stage = Stage::set().await;
    let rounds = order(std::env::var("KENNEL_CRASH_POINTS").ok().as_deref());
    for &Round { point, hit } in &rounds {
        let round = Instant::now();
        stage.play(point, hit).await;
        println!("{:>6} ms  {}:{hit}", round.elapsed().as_millis(), point.name());
    }
    println!("killed {} times at {} points in {} s", rounds.len(), rounds.len() / 2, begun.elapsed().as_secs());
    stage.strike().await;
}

/// Every round, those that need previews after those that make them. `only` names points, or how their names begin.
fn order(only: Option<&str>) -> Vec<Round> {
    let wanted = |point: &Point| only.is_none_or(|only| only.split(',').any(|name| point.name().starts_with(name)));
    let rounds = Point::ALL.iter().copied().filter(wanted).flat_map(|point| [1, 2].map(|hit| Round { point, hit }));
    let (removals, others): (Vec<_>, Vec<_>) = rounds.partition(|round| scenario(round.point) == Scenario::Remove);
    let (deploys, others): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|round| scenario(round.point) == Scenario::Deploy);
    // A removal needs previews, which a deploy leaves.
    let between = (deploys.len() / removals.len().max(1)).max(1);
    let mut removals = removals.into_iter();
    let mut order = Vec::new();
    for (n, deploy) in deploys.into_iter().enumerate() {
        order.push(deploy);
        if n % between == between - 1 {
            order.extend(removals.next());
        }
    }
    order.into_iter().chain(removals).chain(others).collect()
}
