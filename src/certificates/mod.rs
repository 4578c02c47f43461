//! Which certificates there are: those that something else keeps in files, and those kennel orders by ACME.
//!
//! A loop looks at files, routes and rows, does what `plan` says, and hands the router what there is to be shown.
//! What was tried, and when to try again, is in rows; chains and keys lie in files, see `drawer`.
//!
//! **Invariant:** a certificate that is there is shown until a better one is, whatever becomes of its authority.

mod authority;
mod drawer;
mod given;
mod order;
mod plan;
mod proof;
mod settle;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use instant_acme::{Account, CertificateIdentifier};
use jiff::Timestamp;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use self::authority::AuthorityError;
use self::drawer::Drawer;
use self::given::{Given, News};
use self::order::{Desk, Failure};
use self::plan::{Facts, Wildcards};
use self::proof::Proofs;
use crate::chance::chance;
use crate::config::{self, AcmeConfig};
use crate::dns::{self, DnsError};
use crate::model::CertificateName;
use crate::router::{self, Certificate, Certificates};
use crate::store::{CertificateRow, Store};
use crate::telemetry::chain;
use crate::wake::Bell;

/// How often files and rows are looked at when no bell rings.
const TICK: Duration = Duration::from_secs(30);
/// How many certificates are ordered at a time.
const JOBS_MAX: usize = 4;
/// How long one order may take, whatever its authority does.
const ORDER_MAX: Duration = Duration::from_secs(300);
/// How long one question may take.
const ASK_MAX: Duration = Duration::from_secs(60);
/// After how long an authority is asked again when to renew, at the earliest and when it does not say.
const ASK_AGAIN: Duration = Duration::from_secs(6 * 3_600);

/// What this works with.
#[derive(Clone)]
pub struct Context {
    /// The rows.
    pub store: Store,
    /// The router, told of every certificate.
    pub router: router::Handle,
    /// The daemon's file.
    pub config: config::Shared,
    /// By what this kennel's DNS records are known.
    pub mark: dns::Mark,
    /// Below which directory chains and keys lie.
    pub dir: PathBuf,
    /// Rung when hosts have got routes or lost them, and when the file was read again.
    pub bell: Bell,
}

/// The loop that keeps certificates.
pub struct Keeper {
    ctx: Context,
    drawer: Drawer,
    given: Given,
    held: BTreeMap<CertificateName, Arc<Certificate>>,
    /// The account, and what it was opened by.
    account: Option<(AcmeConfig, Account)>,
    jobs: JoinSet<Done>,
    /// What each of them is for.
    working: HashMap<Id, Job>,
    /// When it is looked for proofs that were left in the DNS zone; in milliseconds since 1970.
    sweep_at: Option<i64>,
    sweep_failures: u32,
}

/// What a job is for.
enum Job {
    /// To open the account.
    Open(AcmeConfig),
    /// To order the certificate of this row from the authority of this directory.
    Order(Box<CertificateRow>, String),
    /// To ask when to renew.
    Ask(CertificateName),
    /// To remove proofs that were left in the DNS zone.
    Sweep,
}

/// What a job has come to.
enum Done {
    /// The account, or why there is none.
    Opened(Result<Account, AuthorityError>),
    /// A certificate, or why there is none; and why there may be proofs left.
    Ordered(Result<Certificate, Failure>, Option<DnsError>),
    /// When to renew.
    Asked(Option<(i64, i64)>),
    /// How many proofs were removed.
    Swept(Result<usize, DnsError>),
}

impl Keeper {
    /// Reads the certificates there are, and has the router show them.
    ///
    /// # Errors
    /// When rows cannot be read.
    pub async fn start(ctx: Context) -> anyhow::Result<Self> {
        // The client that talks to authorities takes the one that is installed. It may have been done before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let drawer = Drawer::of(&ctx.dir);
        let rows = ctx.store.certificates().await?;
        let own = drawer.clone();
        let held = tokio::task::spawn_blocking(move || read_all(&own, &rows)).await?;
        let (given, jobs, working) = (Given::default(), JoinSet::new(), HashMap::new());
        let (account, sweep_at, sweep_failures) = (None, Some(now()), 0);
        let mut keeper = Self { ctx, drawer, given, held, account, jobs, working, sweep_at, sweep_failures };
        keeper.read_given().await?;
        keeper.show();
        Ok(keeper)
    }

    /// Works until shutdown. An order that is under way then is gone on with after the next start.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let next = match self.look().await {
                Ok(next) => next,
                Err(err) => {
                    error!(error = %chain(&*err), "Could not look after certificates");
                    TICK
                }
            };
            let bell = self.ctx.bell.clone();
            tokio::select! {
                () = bell.rung() => {}
                () = tokio::time::sleep(next.min(TICK)) => {}
                Some(done) = self.jobs.join_next_with_id() => self.settle(done).await,
                () = shutdown.cancelled() => break,
            }
        }
        self.jobs.shutdown().await;
    }

    /// Looks at everything once, and begins what is due. Gives how long there is nothing to do then.
    async fn look(&mut self) -> anyhow::Result<Duration> {
        self.read_given().await?;
        self.show();
        let config = self.ctx.config.load_full();
        let Some(acme) = &config.acme else { return Ok(TICK) };
        let wanted = self.wanted(&config).await?;
        let rows = self.ctx.store.certificates().await?;
        let held: BTreeSet<CertificateName> = self.held.keys().cloned().collect();
        let now = now();
        let facts = Facts { now, wanted: &wanted, rows: &rows, held: &held, directory: &acme.directory };
        let plan = plan::plan(&facts);
        if !plan.wanted.is_empty() || !plan.unwanted.is_empty() {
            self.ctx.store.note_wanted(&plan.wanted, &plan.unwanted, now).await?;
        }
        for name in &plan.forget {
            self.forget(name).await?;
        }
        let proofs = config.dns.clone().map(|dns| Proofs::new(dns, self.ctx.mark.clone()));
        if let Some(proofs) = &proofs {
            self.sweep(proofs, &rows, now);
        }
        let busy = self.busy();
        let idle = |name: &&CertificateName| !busy.contains(*name);
        let order: Vec<_> = plan.order.iter().filter(idle).cloned().collect();
        let ask: Vec<_> = plan.ask.iter().filter(idle).cloned().collect();
        if !(order.is_empty() && ask.is_empty())
            && let Some(wait) = self.begin(acme, proofs, &rows, &order, &ask).await?
        {
            return Ok(wait);
        }
        Ok(plan.next.map_or(TICK, |next| Duration::from_millis(u64::try_from(next - now).unwrap_or(0))))
    }

    /// Begins orders and questions, as many as there may be at a time. Gives how long the authority is left alone.
    async fn begin(
        &mut self,
        acme: &AcmeConfig,
        proofs: Option<Proofs>,
        rows: &[CertificateRow],
        order: &[CertificateName],
        ask: &[CertificateName],
    ) -> anyhow::Result<Option<Duration>> {
        if self.working.values().any(|job| matches!(job, Job::Open(_))) {
            return Ok(None);
        }
        let away = self.ctx.store.authority_away(&acme.directory).await?;
        if let Some(away) = away.filter(|away| away.try_at > now()) {
            return Ok(Some(Duration::from_millis(u64::try_from(away.try_at - now()).unwrap_or(0))));
        }
        let account = match &self.account {
            Some((by, account)) if by == acme => account.clone(),
            _ => {
                let (config, drawer) = (acme.clone(), self.drawer.clone());
                self.spawn(Job::Open(acme.clone()), async move {
                    let opened = tokio::time::timeout(ASK_MAX, authority::open(&config, &drawer)).await;
                    Done::Opened(opened.unwrap_or_else(|_| Err(no_answer().into())))
                });
                return Ok(None);
            }
        };
        for name in order {
            if self.working.len() >= JOBS_MAX {
                return Ok(None);
            }
            if name.domain().is_some() && self.working.values().any(|job| matches!(job, Job::Sweep)) {
                continue;
            }
            // One that is new has got its row a moment ago.
            let Some(row) = rows.iter().find(|row| row.name == *name).cloned() else {
                self.ctx.bell.ring();
                continue;
            };
            let desk = Desk {
                account: account.clone(),
                directory: acme.directory.clone(),
                challenge: acme.challenge,
                drawer: self.drawer.clone(),
                store: self.ctx.store.clone(),
                router: self.ctx.router.clone(),
                proofs: proofs.clone(),
            };
            let held = self.held.get(name).filter(|_| row.directory.as_ref() == Some(&acme.directory)).cloned();
            let job = Job::Order(Box::new(row.clone()), acme.directory.clone());
            self.spawn(job, async move {
                let obtained = tokio::time::timeout(ORDER_MAX, desk.obtain(&row, held.as_deref())).await;
                let left = tokio::time::timeout(ASK_MAX, desk.clear(&row.name)).await;
                let left = left.unwrap_or_else(|_| Some(DnsError::Silent("`dns.api`".to_owned())));
                Done::Ordered(obtained.unwrap_or_else(|_| Err(no_answer())), left)
            });
        }
        for name in ask {
            let Some(held) = self.held.get(name).filter(|_| self.working.len() < JOBS_MAX).cloned() else { continue };
            let account = account.clone();
            self.spawn(Job::Ask(name.clone()), async move {
                let asked = tokio::time::timeout(ASK_MAX, ask_when_to_renew(&account, &held)).await;
                Done::Asked(asked.ok().flatten())
            });
        }
        Ok(None)
    }

    /// Has proofs removed that an earlier run left, if that is due. Those of orders that are under way stay.
    fn sweep(&mut self, proofs: &Proofs, rows: &[CertificateRow], now: i64) {
        let sweeps = self.working.values().any(|job| matches!(job, Job::Sweep));
        if sweeps || self.sweep_at.is_none_or(|at| at > now) {
            return;
        }
        let busy = self.busy();
        let open = rows.iter().filter(|row| row.order_url.is_some() || busy.contains(&row.name));
        let domains: BTreeSet<String> = open.filter_map(|row| row.name.domain().map(str::to_owned)).collect();
        let proofs = proofs.clone();
        self.spawn(Job::Sweep, async move {
            let swept = tokio::time::timeout(ASK_MAX, proofs.sweep(&domains)).await;
            Done::Swept(swept.unwrap_or_else(|_| Err(DnsError::Silent("`dns.api`".to_owned()))))
        });
    }

    fn spawn(&mut self, job: Job, work: impl Future<Output = Done> + Send + 'static) {
        let task = self.jobs.spawn(Box::pin(work));
        self.working.insert(task.id(), job);
    }

    /// What is being ordered or asked for.
    fn busy(&self) -> BTreeSet<CertificateName> {
        let name = |job: &Job| match job {
            Job::Open(_) | Job::Sweep => None,
            Job::Order(row, _) => Some(row.name.clone()),
            Job::Ask(name) => Some(name.clone()),
        };
        self.working.values().filter_map(name).collect()
    }

    async fn forget(&mut self, name: &CertificateName) -> anyhow::Result<()> {
        let (drawer, own) = (self.drawer.clone(), name.clone());
        tokio::task::spawn_blocking(move || drawer.remove(&own)).await??;
        self.ctx.store.forget_certificate(name).await?;
        self.held.remove(name);
        info!(certificate.name = %name, "Removed the certificate of {name}, which has had no route for a week");
        Ok(())
    }

    /// What certificates by ACME are to be for: hosts with routes, and kennel's own, unless files cover them; where
    /// there is a DNS provider, all hosts of a project together, whether it has any yet or not.
    async fn wanted(&self, config: &config::Config) -> anyhow::Result<BTreeSet<CertificateName>> {
        let now = Timestamp::now();
        let routes = self.ctx.store.routes().await.context("cannot tell which hosts have routes")?;
        let hosts: Vec<_> = routes.into_iter().map(|route| route.host).chain(config.control_domain.clone()).collect();
        let given = |name: &CertificateName| {
            self.given.certificates().any(|given| given.covers(name.as_str()) && now < given.ends())
        };
        let wildcards = if config.dns.is_some() { Wildcards::Yes } else { Wildcards::No };
        let names = plan::names(&hosts, config.projects.keys(), &config.base_domain, wildcards);
        Ok(names.into_iter().filter(|name| !given(name)).collect())
    }

    async fn read_given(&mut self) -> anyhow::Result<()> {
        let files = self.ctx.config.load().tls.certificates.clone();
        let mut given = std::mem::take(&mut self.given);
        let (given, news) = tokio::task::spawn_blocking(move || {
            let news = given.refresh(&files);
            (given, news)
        })
        .await
        .context("reading certificates was interrupted")?;
        self.given = given;
        for (files, news) in news {
            let file = files.certificate_file.display();
            match news {
                News::Certificate(certificate) => {
                    let names = certificate.names().collect::<Vec<_>>().join(", ");
                    info!("Read `{file}`: for {names}, until {}", certificate.ends());
                }
                News::Problem(err) => error!(error = %chain(&err), "No new certificate: {}", chain(&err)),
            }
        }
        Ok(())
    }

    /// Has the router show what there is.
    fn show(&self) {
        let all = self.given.certificates().chain(self.held.values()).cloned();
        self.ctx.router.show(Certificates::new(all, Timestamp::now()));
    }
}

/// Reads the certificates of all rows, and removes what no row names. Blocks.
fn read_all(drawer: &Drawer, rows: &[CertificateRow]) -> BTreeMap<CertificateName, Arc<Certificate>> {
    let mut held = BTreeMap::new();
    for name in rows.iter().map(|row| &row.name) {
        match drawer.certificate(name) {
            Ok(Some(certificate)) => {
                held.insert(name.clone(), Arc::new(certificate));
            }
            Ok(None) => {}
            Err(err) => error!(error = %chain(&err), "Ordering another certificate for {name}: {}", chain(&err)),
        }
    }
    let orphans =
        drawer.names().map(|names| names.into_iter().filter(|name| !rows.iter().any(|row| row.name == *name)));
    let removed = orphans.and_then(|mut orphans| orphans.try_for_each(|name| drawer.remove(&name)));
    if let Err(err) = removed {
        error!(error = %chain(&err), "Could not remove certificates that no row names");
    }
    held
}

/// When the authority wants a certificate renewed (RFC 9773), and when it wants to be asked again.
async fn ask_when_to_renew(account: &Account, held: &Certificate) -> Option<(i64, i64)> {
    let id = CertificateIdentifier::try_from(held.chain().first()?).ok()?;
    let (info, again) = account.renewal_info(&id).await.ok()?;
    let at = |time: time::OffsetDateTime| i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok();
    let window = info.suggested_window;
    let life = (held.begins().as_millisecond(), held.ends().as_millisecond());
    let renew_at = plan::suggested((at(window.start)?, at(window.end)?), now(), life, chance());
    Some((renew_at, now().saturating_add(plan::ms(again))))
}

fn no_answer() -> Failure {
    Failure::Authority(instant_acme::Error::Str("an answer in time"))
}

fn now() -> i64 {
    Timestamp::now().as_millisecond()
}

/// For people.
fn time(ms: i64) -> String {
    Timestamp::from_millisecond(ms)
        .map_or_else(|_| "some time".to_owned(), |time| time.strftime("%F %T UTC").to_string())
}
