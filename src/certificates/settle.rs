//! What becomes of an order, of a question, and of an authority that is away: written down as rows.
//!
//! **Invariant:** a failure is noted with the time before which nothing is tried again.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::Account;
use tokio::task::{Id, JoinError};
use tracing::{error, info, warn};

use super::authority::AuthorityError;
use super::order::Failure;
use super::plan::{self, ms};
use super::{ASK_AGAIN, Done, Job, Keeper, now, time};
use crate::chance::chance;
use crate::config::AcmeConfig;
use crate::dns::DnsError;
use crate::model::CertificateName;
use crate::router::Certificate;
use crate::store::{CertificateRow, FailedTry, Issued};
use crate::telemetry::chain;

impl Keeper {
    /// Writes down what has become of a job, and has the router show what has come. One that panicked has failed.
    pub(super) async fn settle(&mut self, ended: Result<(Id, Done), JoinError>) {
        let (task, done) = match ended {
            Ok((task, done)) => (task, Ok(done)),
            Err(panic) => {
                // What it was about to remove is still there.
                self.sweep_at = Some(now());
                (panic.id(), Err(panic))
            }
        };
        let noted = match (self.working.remove(&task), done) {
            (Some(Job::Open(acme)), Ok(Done::Opened(opened))) => self.opened(acme, opened).await,
            (Some(Job::Open(acme)), Err(panic)) => self.opened(acme, Err(panic.into())).await,
            (Some(Job::Order(row, directory)), Ok(Done::Ordered(obtained, left))) => {
                if let Some(err) = left {
                    self.left_behind(&err);
                }
                self.ordered(&row, &directory, obtained).await
            }
            (Some(Job::Order(row, directory)), Err(panic)) => self.ordered(&row, &directory, Err(panic.into())).await,
            (Some(Job::Ask(name)), Ok(Done::Asked(answer))) => self.asked(&name, answer).await,
            (Some(Job::Ask(name)), Err(panic)) => {
                error!(error = %panic, "Could not ask when to renew the certificate of {name}");
                self.asked(&name, None).await
            }
            (Some(Job::Sweep), Ok(Done::Swept(swept))) => {
                self.swept(swept);
                Ok(())
            }
            (Some(Job::Sweep), Err(panic)) => {
                self.swept(Err(panic.into()));
                Ok(())
            }
            (None, _) | (Some(_), Ok(_)) => unreachable!("each job is noted, with what it is for"),
        };
        if let Err(err) = noted {
            error!(error = %chain(&*err), "Could not write down what has become of a certificate");
        }
    }

    async fn opened(&mut self, acme: AcmeConfig, opened: Result<Account, AuthorityError>) -> anyhow::Result<()> {
        match opened {
            Ok(account) => {
                self.account = Some((acme, account));
                Ok(())
            }
            Err(err) => self.away(&acme.directory, &err).await,
        }
    }

    async fn ordered(
        &mut self,
        row: &CertificateRow,
        directory: &str,
        obtained: Result<Certificate, Failure>,
    ) -> anyhow::Result<()> {
        let name = &row.name;
        let failure = match obtained {
            Ok(certificate) => {
                let (begins, ends) = (certificate.begins().as_millisecond(), certificate.ends().as_millisecond());
                let (renew_at, now) = (plan::renewal(begins, ends, chance()), now());
                let issued = Issued { directory: directory.to_owned(), expires_at: ends, renew_at, ask_at: now };
                info!(certificate.name = %name, "{name} has a certificate until {}", certificate.ends());
                self.held.insert(name.clone(), Arc::new(certificate));
                self.show();
                self.ctx.store.note_issued(name, &issued).await?;
                return Ok(self.ctx.store.note_authority_back(directory).await?);
            }
            Err(failure) => failure,
        };
        let back_off = match &failure {
            Failure::Authority(_) => return self.away(directory, &failure).await,
            Failure::NoAccount(_) => {
                self.account = None;
                let (drawer, own) = (self.drawer.clone(), directory.to_owned());
                tokio::task::spawn_blocking(move || drawer.remove_account(&own)).await??;
                return self.away(directory, &failure).await;
            }
            Failure::Limited(_) => plan::LIMITED,
            Failure::Dns(err) if is_passing(err) => plan::PROVIDER,
            _ => plan::HOST,
        };
        let problem = chain(&failure);
        let asked_for = match &failure {
            Failure::Dns(err) => err.retry_after(),
            _ => Duration::ZERO,
        };
        let wait = back_off.spread(row.failures, chance()).max(asked_for);
        let try_at = now().saturating_add(ms(wait));
        let again = time(try_at);
        warn!(certificate.name = %name, error = %problem, "No certificate for {name}, trying again at {again}: {problem}");
        Ok(self.ctx.store.note_failed_try(name, &FailedTry { try_at, problem }).await?)
    }

    /// Notes that the authority cannot be used, and leaves it alone for a while.
    async fn away(&mut self, directory: &str, err: &(dyn Error + Send + Sync + 'static)) -> anyhow::Result<()> {
        let before = self.ctx.store.authority_away(directory).await?;
        if before.as_ref().is_some_and(|away| away.try_at > now()) {
            // Another order has found that out a moment ago.
            return Ok(());
        }
        let problem = chain(err);
        let failures = before.map_or(0, |away| away.failures);
        let try_at = now().saturating_add(ms(plan::AUTHORITY.spread(failures, chance())));
        let again = time(try_at);
        warn!(error = %problem, "No certificates from {directory}, trying again at {again}: {problem}");
        Ok(self.ctx.store.note_authority_away(directory, &FailedTry { try_at, problem }).await?)
    }

    /// Has a proof that could not be removed be looked for later.
    fn left_behind(&mut self, err: &DnsError) {
        let wait = plan::PROVIDER.spread(self.sweep_failures, chance()).max(err.retry_after());
        self.sweep_failures = self.sweep_failures.saturating_add(1);
        let at = now().saturating_add(ms(wait));
        self.sweep_at = Some(at);
        let (said, again) = (chain(err), time(at));
        warn!(error = %said, "A proof may be left in the DNS zone, looking again at {again}: {said}");
    }

    fn swept(&mut self, swept: Result<usize, DnsError>) {
        match swept {
            Ok(removed) => {
                (self.sweep_at, self.sweep_failures) = (None, 0);
                if removed > 0 {
                    info!("Removed {removed} proofs from the DNS zone, which a run before this left there");
                }
            }
            Err(err) => self.left_behind(&err),
        }
    }

    async fn asked(&self, name: &CertificateName, answer: Option<(i64, i64)>) -> anyhow::Result<()> {
        let earliest = now().saturating_add(ms(ASK_AGAIN));
        let (renew_at, ask_at) = answer.map_or((None, earliest), |(renew_at, ask_at)| (Some(renew_at), ask_at));
        Ok(self.ctx.store.plan_renewal(name, renew_at, ask_at.max(earliest)).await?)
    }
}

/// Whether what is wrong with the provider may well be over soon.
fn is_passing(err: &DnsError) -> bool {
    match err {
        DnsError::Away { .. }
        | DnsError::Silent(_)
        | DnsError::Busy { .. }
        | DnsError::Strange(_)
        | DnsError::Interrupted(_) => true,
        DnsError::Failed { status, .. } => *status >= 500,
        DnsError::Token(_)
        | DnsError::Roots(_)
        | DnsError::Refused(_)
        | DnsError::NoZone(_)
        | DnsError::Unseen { .. } => false,
    }
}
