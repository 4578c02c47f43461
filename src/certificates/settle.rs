//! What becomes of an order, of a question, and of an authority that is away: written down as rows.
//!
//! **Invariant:** a failure is noted with the time before which nothing is tried again.

use std::error::Error;
use std::sync::Arc;

use instant_acme::Account;
use tokio::task::{Id, JoinError};
use tracing::{error, info, warn};

use super::authority::AuthorityError;
use super::order::Failure;
use super::plan::{self, BackOff, ms};
use super::{ASK_AGAIN, Done, Job, Keeper, now, time};
use crate::chance::chance;
use crate::config::AcmeConfig;
use crate::model::HostName;
use crate::router::Certificate;
use crate::store::{CertificateRow, FailedTry, Issued};
use crate::telemetry::chain;

impl Keeper {
    /// Writes down what has become of a job, and has the router show what has come. One that panicked has failed.
    pub(super) async fn settle(&mut self, ended: Result<(Id, Done), JoinError>) {
        let (task, done) = match ended {
            Ok((task, done)) => (task, Ok(done)),
            Err(panic) => (panic.id(), Err(panic)),
        };
        let noted = match (self.working.remove(&task), done) {
            (Some(Job::Open(acme)), Ok(Done::Opened(opened))) => self.opened(acme, opened).await,
            (Some(Job::Open(acme)), Err(panic)) => self.opened(acme, Err(panic.into())).await,
            (Some(Job::Order(row, directory)), Ok(Done::Ordered(obtained))) => {
                self.ordered(&row, &directory, obtained).await
            }
            (Some(Job::Order(row, directory)), Err(panic)) => self.ordered(&row, &directory, Err(panic.into())).await,
            (Some(Job::Ask(host)), Ok(Done::Asked(answer))) => self.asked(&host, answer).await,
            (Some(Job::Ask(host)), Err(panic)) => {
                error!(error = %panic, "Could not ask when to renew the certificate of {host}");
                self.asked(&host, None).await
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
        let host = &row.host;
        let failure = match obtained {
            Ok(certificate) => {
                let (begins, ends) = (certificate.begins().as_millisecond(), certificate.ends().as_millisecond());
                let (renew_at, now) = (plan::renewal(begins, ends, chance()), now());
                let issued = Issued { directory: directory.to_owned(), expires_at: ends, renew_at, ask_at: now };
                info!(host = %host, "{host} has a certificate until {}", certificate.ends());
                self.held.insert(host.clone(), Arc::new(certificate));
                self.show();
                self.ctx.store.note_issued(host, &issued).await?;
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
            Failure::Limited(_) => BackOff::LIMITED,
            _ => BackOff::HOST,
        };
        let problem = chain(&failure);
        let try_at = now().saturating_add(back_off.wait(row.failures, chance()));
        let again = time(try_at);
        warn!(host = %host, error = %problem, "No certificate for {host}, trying again at {again}: {problem}");
        Ok(self.ctx.store.note_failed_try(host, &FailedTry { try_at, problem }).await?)
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
        let try_at = now().saturating_add(BackOff::AUTHORITY.wait(failures, chance()));
        let again = time(try_at);
        warn!(error = %problem, "No certificates from {directory}, trying again at {again}: {problem}");
        Ok(self.ctx.store.note_authority_away(directory, &FailedTry { try_at, problem }).await?)
    }

    async fn asked(&self, host: &HostName, answer: Option<(i64, i64)>) -> anyhow::Result<()> {
        let earliest = now().saturating_add(ms(ASK_AGAIN));
        let (renew_at, ask_at) = answer.map_or((None, earliest), |(renew_at, ask_at)| (Some(renew_at), ask_at));
        Ok(self.ctx.store.plan_renewal(host, renew_at, ask_at.max(earliest)).await?)
    }
}
