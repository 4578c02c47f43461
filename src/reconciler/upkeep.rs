//! What goes by itself: services and sites nobody uses, and rows that are over.
//!
//! **Invariant:** the time is handed in. What is decided here is decided as of then.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{error, info, warn};

use super::Reconciler;
use crate::config::{Config, Expiry};
use crate::crash::{self, Point};
use crate::host::disk;
use crate::store::{LastUse, Sweep, Swept};
use crate::telemetry::chain;

/// How many rows of a kind one transaction removes: a webhook waits for no more than that.
const BATCH: u32 = 100;
/// How long deliveries are kept at least: forges let people send them again for days.
const REDELIVERY_TIME: Duration = Duration::from_secs(7 * 24 * 3600);

impl Reconciler {
    /// Tears down what nobody uses and removes what is over. What fails is told, and tried again next time.
    pub async fn upkeep(&self, now: Timestamp) {
        self.ctx.router.note_requests().await;
        if let Err(err) = self.expire(now).await {
            error!(error = %chain(&*err), "Could not tear down what nobody uses");
        }
        if let Err(err) = self.sweep(now).await {
            error!(error = %chain(&*err), "Could not remove old rows");
        }
        if let Err(err) = keep_reserve(&self.own_dir).await {
            warn!(error = %chain(&*err), "Could not keep room in reserve in {}", self.own_dir.display());
        }
    }

    async fn expire(&self, now: Timestamp) -> anyhow::Result<()> {
        let config = self.ctx.config.load_full();
        for last in self.ctx.store.last_uses().await? {
            let Some(after) = expired(&config, &last, now) else { continue };
            let reason = format!("no request and no push for {}", in_words(after));
            if self.ctx.store.expire(last.target, ago(now, after), &reason).await? {
                crash::point(Point::ExpiryRecorded);
                info!(
                    project.name = %last.project, branch.name = %last.branch.name(), service.name = %last.name,
                    "Tearing `{}` of {} from {} down: {reason}", last.name, last.project, last.branch.name()
                );
                self.ctx.bell.ring();
            }
        }
        Ok(())
    }

    async fn sweep(&self, now: Timestamp) -> anyhow::Result<()> {
        let keep_for = self.ctx.config.load().upkeep.keep_for;
        let sweep = Sweep {
            before: ago(now, keep_for),
            delivered_before: ago(now, keep_for.max(REDELIVERY_TIME)),
            limit: BATCH,
        };
        let mut all = Swept::default();
        loop {
            let some = self.ctx.store.sweep_work(sweep).await?;
            all.deployments += some.deployments;
            all.builds += some.builds;
            if some.total() == 0 {
                break;
            }
            crash::point(Point::SweepStored);
        }
        while self.ctx.store.sweep_places(sweep).await?.total() > 0 {}
        if all.builds + all.deployments > 0 {
            let (builds, deployments) = (all.builds, all.deployments);
            info!("Forgot {builds} builds and {deployments} deployments that ended {} ago", in_words(keep_for));
        }
        Ok(())
    }
}

/// After what time of disuse a target is to go, if it is to go now.
fn expired(config: &Config, last: &LastUse, now: Timestamp) -> Option<Duration> {
    match config.expiry(&last.project, last.environment) {
        Expiry::Never => None,
        Expiry::After(after) => (last.at <= ago(now, after)).then_some(after),
    }
}

/// The time that long before, in milliseconds since 1970.
fn ago(now: Timestamp, time: Duration) -> i64 {
    now.as_millisecond().saturating_sub(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}

/// `7 days`, `36 hours`.
fn in_words(time: Duration) -> String {
    let secs = time.as_secs();
    let (number, unit) = match secs {
        0..3_600 => (secs / 60, "minute"),
        _ if secs.is_multiple_of(86_400) => (secs / 86_400, "day"),
        _ => (secs / 3_600, "hour"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

async fn keep_reserve(state_dir: &Path) -> anyhow::Result<()> {
    let dir = state_dir.to_owned();
    Ok(tokio::task::spawn_blocking(move || disk::keep_reserve(&dir)).await??)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::model::{BranchRef, Environment, TargetId};

    const DAY: i64 = 86_400_000;

    #[rstest]
    #[case::a_day_short(Environment::Dev, "shop", 6 * DAY, None)]
    #[case::to_the_millisecond(Environment::Dev, "shop", 7 * DAY, Some(7))]
    #[case::a_pull_request(Environment::Preview, "shop", 8 * DAY, Some(7))]
    #[case::prod(Environment::Prod, "shop", 999 * DAY, None)]
    #[case::staging(Environment::Staging, "shop", 999 * DAY, None)]
    #[case::a_longer_time(Environment::Dev, "slow", 13 * DAY, None)]
    #[case::past_a_longer_time(Environment::Dev, "slow", 14 * DAY, Some(14))]
    #[case::a_project_that_keeps_all(Environment::Dev, "keep", 999 * DAY, None)]
    #[case::a_project_that_left_the_file(Environment::Dev, "gone", 999 * DAY, None)]
    fn only_what_nobody_used_for_its_time_expires(
        #[case] environment: Environment,
        #[case] project: &str,
        #[case] unused_ms: i64,
        #[case] after_days: Option<u64>,
    ) {
        let table = |name: &str, line: &str| {
            format!(
                "[projects.{name}]\nrepo_url = \"https://h/r\"\nrepo_type = \"github\"\n\
                 webhook_secret_file = \"/s\"\n{line}\n"
            )
        };
        let text = format!(
            "base_domain = \"a.b\"\n{}{}{}",
            table("shop", ""),
            table("slow", "expire_after = \"14d\""),
            table("keep", "expire_after = \"never\"")
        );
        let now = Timestamp::from_millisecond(2_000_000_000_000).unwrap();
        let last = LastUse {
            target: TargetId(1),
            project: project.parse().unwrap(),
            branch: BranchRef::head("topic").unwrap(),
            name: "api".parse().unwrap(),
            environment,
            at: now.as_millisecond() - unused_ms,
        };
        let days = |days| Duration::from_secs(days * 86_400);
        assert_eq!(expired(&crate::config::parse(&text).unwrap(), &last, now), after_days.map(days));
    }

    #[rstest]
    #[case(7 * 86_400, "7 days")]
    #[case(86_400, "1 day")]
    #[case(90_000, "25 hours")]
    #[case(3_600, "1 hour")]
    fn times_are_told_in_words(#[case] secs: u64, #[case] text: &str) {
        assert_eq!(in_words(Duration::from_secs(secs)), text);
    }
}
