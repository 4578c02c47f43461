//! Keeps the records that lead visitors here, if `[dns] records` says where that is: compares rows with the zone at
//! start, when hosts have got routes or lost them, and every 10 minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::plan::{self, Plan};
use super::{DnsError, Mark, NewRecord};
use crate::chance::{BackOff, chance};
use crate::config::{self, Config};
use crate::store::Store;
use crate::telemetry::chain;
use crate::wake::Bell;

/// How often the zone is compared when no bell rings.
const TICK: Duration = Duration::from_secs(600);
/// How long the provider is left alone after failures.
const BACK_OFF: BackOff = BackOff { first: Duration::from_secs(10), most: TICK };
/// How long one comparison may take.
const ROUND_MAX: Duration = Duration::from_secs(300);

/// What this works with.
#[derive(Clone)]
pub struct Context {
    /// The rows.
    pub store: Store,
    /// The daemon's file.
    pub config: config::Shared,
    /// By what this kennel's records are known.
    pub mark: Mark,
    /// Rung when hosts have got routes or lost them, and when the file was read again.
    pub bell: Bell,
}

/// The loop that keeps records.
pub struct Records {
    ctx: Context,
    /// Names that are somebody else's, as they were last told of.
    taken: BTreeMap<String, String>,
    failures: u32,
    /// Before this, the provider is left alone, unless the file was read again.
    left_alone: Option<(Arc<Config>, Instant)>,
    /// What the zone was last made to hold, by which file, and when.
    held: Option<(Arc<Config>, BTreeSet<NewRecord>, Instant)>,
}

impl Records {
    /// A keeper that has compared nothing yet.
    #[must_use]
    pub fn new(ctx: Context) -> Self {
        Self { ctx, taken: BTreeMap::new(), failures: 0, left_alone: None, held: None }
    }

    /// Works until shutdown.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let next = tokio::select! {
                next = self.look() => next,
                () = shutdown.cancelled() => return,
            };
            let bell = self.ctx.bell.clone();
            tokio::select! {
                () = bell.rung() => {}
                () = tokio::time::sleep(next) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Compares once, unless the provider is to be left alone. Gives for how long there is nothing to do.
    async fn look(&mut self) -> Duration {
        let config = self.ctx.config.load_full();
        if let Some((of, until)) = &self.left_alone
            && Arc::ptr_eq(of, &config)
            && let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        {
            return left;
        }
        let compared = tokio::time::timeout(ROUND_MAX, self.compare(&config)).await;
        let failed = match compared {
            Ok(Ok(())) => {
                (self.failures, self.left_alone) = (0, None);
                return TICK;
            }
            Ok(Err(err)) => err,
            Err(_) => anyhow::anyhow!("the DNS provider took too long"),
        };
        let own = BACK_OFF.spread(self.failures, chance());
        let wait = failed.downcast_ref().map_or(own, |err: &DnsError| own.max(err.retry_after()));
        self.failures = self.failures.saturating_add(1);
        self.left_alone = Some((config, Instant::now() + wait));
        let (said, seconds) = (chain(&*failed), wait.as_secs());
        warn!(error = %said, "DNS records are not kept, trying again in {seconds} s: {said}");
        wait
    }

    /// Makes the zone what the rows want.
    async fn compare(&mut self, config: &Arc<Config>) -> anyhow::Result<()> {
        let Some((dns, to)) = config.dns.as_ref().and_then(|dns| Some((dns, dns.records.as_ref()?))) else {
            return Ok(());
        };
        let routes = self.ctx.store.routes().await.context("cannot tell which hosts have routes")?;
        let wanted = plan::wanted(config, dns, to, &routes);
        if let Some((of, held, at)) = &self.held
            && Arc::ptr_eq(of, config)
            && *held == wanted
            && at.elapsed() < TICK
        {
            // Hosts of previews come and go below the same names.
            return Ok(());
        }
        let zone = super::open(dns).await?;
        let own = self.ctx.mark.visitors();
        let Plan { clear, create, delete, taken } = plan::plan(&wanted, &zone.list(None).await?, &own);
        for (name, what) in taken.iter().filter(|(name, what)| self.taken.get(*name) != Some(what)) {
            warn!(
                "The DNS record `{name}` ({what}) is not kennel's own: it is left as it is, and leads where it leads"
            );
        }
        self.taken = taken;
        for record in clear {
            zone.delete(&record.id).await?;
            tell("Removed", &record.record);
        }
        for record in create {
            zone.create(&record, &own).await?;
            tell("Made", &record);
        }
        for record in delete {
            zone.delete(&record.id).await?;
            tell("Removed", &record.record);
        }
        self.held = Some((Arc::clone(config), wanted, Instant::now()));
        Ok(())
    }
}

fn tell(done: &str, NewRecord { name, kind, content }: &NewRecord) {
    info!("{done} the DNS record `{name}` ({} {content})", kind.as_str());
}

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwap;

    use super::super::testing::{self, FakeProvider, TOKEN};
    use super::*;
    use crate::config::RecordsTo;

    const PROJECT: &str = "base_domain = \"apps.example.com\"\n[projects.shop]\n\
        repo_url = \"https://forge.example.com/me/shop.git\"\nrepo_type = \"forgejo\"\nwebhook_secret_file = \"/s\"\n\
        default_branch = \"main\"";

    /// A kennel of its own, which serves the project `shop`.
    async fn kennel(fake: &FakeProvider, dir: &std::path::Path) -> Records {
        let mut config = config::parse(PROJECT).unwrap();
        let mut dns = testing::config(fake, dir, TOKEN);
        dns.records = Some(RecordsTo::Addresses(vec!["203.0.113.7".parse().unwrap()]));
        config.dns = Some(dns);
        let store = Store::open(&dir.join("kennel.db")).await.unwrap();
        let mark = Mark::of(&store).await.unwrap();
        Records::new(Context { store, config: Arc::new(ArcSwap::from_pointee(config)), mark, bell: Bell::default() })
    }

    fn shown(fake: &FakeProvider) -> Vec<String> {
        fake.records().into_iter().map(|(record, _)| record).collect()
    }

    #[tokio::test]
    async fn records_come_and_go_with_their_projects_and_those_of_others_stay() {
        let (dirs, fake) = ([tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()], testing::start().await);
        fake.put("A", "www.example.com", "198.51.100.1", "");
        let mut one = kennel(&fake, dirs[0].path()).await;
        let mut two = kennel(&fake, dirs[1].path()).await;
        assert_ne!(one.ctx.mark, two.ctx.mark);
        assert_eq!(one.look().await, TICK);
        let asked = fake.asked().len();
        assert_eq!(one.look().await, TICK);
        assert_eq!(fake.asked().len(), asked, "nothing is new");
        one.held = None;
        assert_eq!(one.look().await, TICK);
        assert_eq!(shown(&fake), ["A *.shop.apps.example.com 203.0.113.7", "A www.example.com 198.51.100.1"]);

        // Another kennel that wants the same name leaves it to the first, whether it wants it or not.
        assert_eq!(two.look().await, TICK);
        assert_eq!(two.taken.len(), 1);
        let mut without = (**two.ctx.config.load()).clone();
        without.projects.clear();
        two.ctx.config.store(Arc::new(without.clone()));
        assert_eq!(two.look().await, TICK);
        assert_eq!(shown(&fake).len(), 2);

        without.dns.as_mut().unwrap().records = None;
        one.ctx.config.store(Arc::new(without.clone()));
        assert_eq!(one.look().await, TICK);
        assert_eq!(shown(&fake).len(), 2, "without `records` nothing is touched");
        without.dns.as_mut().unwrap().records = Some(RecordsTo::Host("here.example.net".parse().unwrap()));
        one.ctx.config.store(Arc::new(without));
        assert_eq!(one.look().await, TICK);
        assert_eq!(shown(&fake), ["A www.example.com 198.51.100.1"], "the project has gone");
    }

    #[tokio::test]
    async fn a_provider_that_fails_is_left_alone_for_a_while_and_longer_when_it_says_so() {
        let (dir, fake) = (tempfile::tempdir().unwrap(), testing::start().await);
        let mut records = kennel(&fake, dir.path()).await;
        fake.say(502, None);
        let wait = records.look().await;
        assert!(wait >= Duration::from_secs(7) && wait < Duration::from_secs(13), "{wait:?}");
        let asked = fake.asked().len();
        assert!(records.look().await <= wait);
        assert_eq!(fake.asked().len(), asked, "it is left alone");

        records.left_alone = None;
        fake.say(429, Some("1234"));
        assert_eq!(records.look().await, Duration::from_secs(1_234));
        records.left_alone = None;
        fake.say(0, None);
        assert_eq!(records.look().await, TICK);
        assert_eq!(shown(&fake).len(), 1);
    }
}
