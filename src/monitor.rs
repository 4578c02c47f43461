//! Asks every live service for its health, and sends visitors away from one that keeps failing until it answers again.
//!
//! A round takes `[router] monitor_interval`, and the services are asked one after the other throughout it: a thousand
//! of them cost no more at a time than a few. A service is asked on a connection of its own each time, so that one that
//! accepts no more is found out.
//!
//! **Invariant:** one bad answer sends nobody away: `FAILURES` in a row do, and one good answer ends it.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::chance::part_of_one;
use crate::config;
use crate::host::services::probe::{self, ProbeFailure};
use crate::model::{DeploymentId, Destination, HostName, Port, Protocol, Route, TargetId};
use crate::router::Handle;
use crate::store::Store;
use crate::telemetry::chain;

/// After how many bad answers in a row a service gets no visitors.
const FAILURES: u32 = 3;
/// How many services are asked side by side: those that are silent take 5 s each.
const PARALLEL: usize = 64;

/// The loop that asks.
#[derive(Debug)]
pub struct Monitor {
    store: Store,
    router: Handle,
    config: config::Shared,
    failures: Failures,
    /// Spreads the services over a round.
    spread: RandomState,
    round: u64,
}

/// One service to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    target: TargetId,
    deployment: DeploymentId,
    port: Port,
    protocol: Protocol,
    /// The name it is asked by.
    host: HostName,
    /// `None` when it is enough that it accepts a connection.
    path: Option<String>,
    /// Whether it has been found unhealthy before.
    unhealthy: bool,
}

/// How often each service has failed since it last answered.
#[derive(Debug, Default)]
struct Failures(HashMap<DeploymentId, u32>);

/// What changes for a service after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// It gets no visitors any more.
    Unhealthy,
    /// It gets them again.
    Healthy,
}

impl Failures {
    /// Counts an answer of the service that `check` is about.
    fn count<E>(&mut self, check: &Check, answer: &Result<(), E>) -> Option<Change> {
        if answer.is_ok() {
            self.0.remove(&check.deployment);
            return check.unhealthy.then_some(Change::Healthy);
        }
        let failures = self.0.entry(check.deployment).or_default();
        *failures = failures.saturating_add(1);
        (*failures >= FAILURES && !check.unhealthy).then_some(Change::Unhealthy)
    }

    /// Forgets all but these.
    fn keep(&mut self, live: &HashSet<DeploymentId>) {
        self.0.retain(|deployment, _| live.contains(deployment));
    }
}

impl Monitor {
    /// A monitor that has asked nothing yet.
    #[must_use]
    pub fn new(store: Store, router: Handle, config: config::Shared) -> Self {
        Self { store, router, config, failures: Failures::default(), spread: RandomState::new(), round: 0 }
    }

    /// Asks until shutdown.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let over = Instant::now() + self.config.load().router.monitor_interval;
            let round = async {
                if let Err(err) = self.ask_all(over).await {
                    error!(error = %chain(&*err), "Could not look after the health of services");
                }
                sleep_until(over).await;
            };
            tokio::select! {
                () = round => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Asks every live service once, the last of them by `until`.
    ///
    /// # Errors
    /// When rows could not be read or written.
    async fn ask_all(&mut self, until: Instant) -> anyhow::Result<()> {
        let begun = Instant::now();
        let checks = checks(self.store.routes().await?);
        let live: HashSet<_> = checks.iter().map(|check| check.deployment).collect();
        self.failures.keep(&live);
        self.round += 1;
        let length = until.saturating_duration_since(begun);
        let mut due: Vec<_> = checks
            .into_iter()
            .map(|check| (begun + offset(&self.spread, check.deployment, self.round, length), check))
            .collect();
        due.sort_by_key(|(at, _)| *at);
        let mut answers = stream::iter(due)
            .map(|(at, check)| async move {
                sleep_until(at).await;
                let answer = match &check.path {
                    Some(path) => probe::http(check.port, check.protocol, path, &check.host).await,
                    None => probe::tcp(check.port).await,
                };
                (check, answer)
            })
            .buffer_unordered(PARALLEL);
        while let Some((check, answer)) = answers.next().await {
            self.judge(&check, answer).await?;
        }
        Ok(())
    }

    async fn judge(&mut self, check: &Check, answer: Result<(), ProbeFailure>) -> anyhow::Result<()> {
        let Check { target, deployment, host, .. } = check;
        let reason = match (self.failures.count(check, &answer), answer) {
            (Some(Change::Healthy), _) => None,
            (Some(Change::Unhealthy), Err(failure)) => Some(match &check.path {
                Some(path) => format!("`GET {path}` {failure}"),
                None => format!("port {} {failure}", check.port),
            }),
            _ => return Ok(()),
        };
        if !self.store.note_health(*deployment, reason.as_deref()).await? {
            return Ok(());
        }
        self.router.reload_target(*target).await?;
        match reason {
            None => info!(deployment.id = %deployment, "Deployment {deployment} of {host} is healthy again"),
            Some(reason) => warn!(
                deployment.id = %deployment, error = %reason,
                "Deployment {deployment} of {host} gets no visitors: {FAILURES} times in a row {reason}"
            ),
        }
        Ok(())
    }
}

/// When in a round of that length a service is asked: nearly the same in each, so that it is asked regularly, and not
/// quite, so that it does not keep step with something else.
fn offset(spread: &impl BuildHasher, deployment: DeploymentId, round: u64, length: Duration) -> Duration {
    let (phase, jitter) = (part_of_one(spread.hash_one(deployment)), part_of_one(spread.hash_one((deployment, round))));
    length.mul_f64(0.9 * phase + 0.1 * jitter)
}

/// One check for each service, however many names it has.
fn checks(routes: Vec<Route>) -> Vec<Check> {
    let (mut checks, mut seen) = (Vec::new(), HashSet::new());
    for Route { host, target, deployment, destination, unhealthy, .. } in routes {
        let Destination::Service { port, protocol, health_path } = destination else { continue };
        if seen.insert(deployment) {
            checks.push(Check { target, deployment, port, protocol, host, path: health_path, unhealthy });
        }
    }
    checks
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasherDefault, DefaultHasher};

    use super::*;

    #[test]
    fn a_service_with_two_names_is_asked_once() {
        let asked = checks(
            [("a.example", 1), ("b.example", 2), ("c.example", 1)].map(|(host, id)| Route::example(host, id)).into(),
        );
        assert_eq!(asked.iter().map(|check| check.host.as_str()).collect::<Vec<_>>(), ["a.example", "b.example"]);
    }

    #[test]
    fn a_service_is_unhealthy_after_three_failures_in_a_row_and_healthy_after_one_answer() {
        let mut failures = Failures::default();
        let mut check = checks(vec![Route::example("a.example", 1)]).remove(0);
        let mut told = String::new();
        for answer in "xx.xxxxx.x.xxx".chars() {
            let change = failures.count(&check, &(if answer == '.' { Ok(()) } else { Err(()) }));
            told.push(match change {
                Some(Change::Unhealthy) => 'U',
                Some(Change::Healthy) => 'H',
                None => ' ',
            });
            check.unhealthy = change.map_or(check.unhealthy, |change| change == Change::Unhealthy);
        }
        assert_eq!(told, "     U  H    U");
    }

    #[test]
    fn services_are_spread_over_the_round_and_keep_their_place_in_it() {
        // One of known keys: the same numbers each time.
        let (spread, length) = (BuildHasherDefault::<DefaultHasher>::new(), Duration::from_secs(30));
        let at = |deployment, round| offset(&spread, DeploymentId(deployment), round, length);
        let mut in_tenths = [0; 10];
        for deployment in 0..1000 {
            let first = at(deployment, 1);
            assert!(first < length);
            in_tenths[usize::try_from(first.as_secs() / 3).unwrap()] += 1;
            let moved = first.abs_diff(at(deployment, 2));
            assert!(moved <= length / 10 && moved > Duration::ZERO, "{moved:?}");
        }
        assert!(in_tenths.iter().all(|count| (40..200).contains(count)), "{in_tenths:?}");
    }
}
