//! kennel is killed at every instant that [`kennel::crash::Point`] names, the first and the second time it comes there,
//! and started again: it comes to rest, and everything holds that should.
//!
//! A point that its scenario does not come to fails the test. One machine and one store serve all rounds; the program
//! is one built with the feature `crash-points`.

mod forge;
mod orphans;
mod rounds;
mod stage;
mod time;

use std::collections::{BTreeMap, VecDeque};
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

/// Every round: a removal needs previews, which a deploy leaves, and those that make databases need that there are
/// none. `only` names points, or how their names begin.
fn order(only: Option<&str>) -> Vec<Round> {
    let wanted = |point: &Point| only.is_none_or(|only| only.split(',').any(|name| point.name().starts_with(name)));
    let all = Point::ALL.iter().copied().filter(wanted).flat_map(|point| [1, 2].map(|hit| Round { point, hit }));
    let mut rounds: BTreeMap<_, VecDeque<_>> = BTreeMap::new();
    for round in all {
        let kind = match scenario(round.point) {
            kind @ (Scenario::Deploy | Scenario::Create | Scenario::Remove) => Some(kind),
            _ => None,
        };
        rounds.entry(kind).or_default().push_back(round);
    }
    let mut take = |kind: Option<Scenario>| rounds.remove(&kind).unwrap_or_default();
    let (mut deploys, mut creates) = (take(Some(Scenario::Deploy)), take(Some(Scenario::Create)));
    let (removals, others) = (take(Some(Scenario::Remove)), take(None));
    let between = deploys.len().div_ceil(removals.len().max(1));
    let mut order = Vec::new();
    for removal in removals {
        order.extend(deploys.drain(..between.min(deploys.len())));
        order.push(removal);
        order.extend(creates.pop_front());
    }
    order.into_iter().chain(deploys).chain(creates).chain(others).collect()
}
