//! Proofs of dns-01 (RFC 8555, section 8.4): a text at `_acme-challenge.<domain>`, there for as long as an order takes.
//!
//! **Invariant:** no proof of another kennel's, or of somebody else's, is removed.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::DnsConfig;
use crate::dns::{self, DnsError, Kind, Mark, NewRecord, Record, Zone};

/// How long it may take until a proof can be seen.
const SHOWN_MAX: Duration = Duration::from_secs(120);

/// Where proofs are shown.
#[derive(Debug, Clone)]
pub(super) struct Proofs {
    dns: DnsConfig,
    mark: Mark,
}

impl Proofs {
    pub(super) fn new(dns: DnsConfig, mark: Mark) -> Self {
        Self { dns, mark }
    }

    /// Shows a proof for all hosts of `domain`, in place of any before it; returns when it can be seen.
    pub(super) async fn show(&self, domain: &str, text: &str) -> Result<(), DnsError> {
        let zone = dns::open(&self.dns).await?;
        let name = name_of(domain);
        let mut shown = false;
        for own in self.own(&*zone).await? {
            if own.record.name != name {
                continue;
            }
            match own.record.content == text {
                true => shown = true,
                false => zone.delete(&own.id).await?,
            }
        }
        if !shown {
            let record = NewRecord { name: name.clone(), kind: Kind::Txt, content: text.to_owned() };
            zone.create(&record, &self.mark.proof()).await?;
        }
        dns::shown(&*zone, self.dns.resolver, &name, text, Instant::now() + SHOWN_MAX).await
    }

    /// Removes the proofs for a domain.
    pub(super) async fn clear(&self, domain: &str) -> Result<(), DnsError> {
        let name = name_of(domain);
        self.remove(|record| record.name == name).await.map(|_| ())
    }

    /// Removes all proofs but those for these domains. Gives how many.
    pub(super) async fn sweep(&self, domains: &BTreeSet<String>) -> Result<usize, DnsError> {
        let keep: BTreeSet<String> = domains.iter().map(|domain| name_of(domain)).collect();
        self.remove(|record| !keep.contains(&record.name)).await
    }

    async fn remove(&self, which: impl Fn(&NewRecord) -> bool) -> Result<usize, DnsError> {
        let zone = dns::open(&self.dns).await?;
        let gone: Vec<Record> = self.own(&*zone).await?.into_iter().filter(|own| which(&own.record)).collect();
        for own in &gone {
            zone.delete(&own.id).await?;
        }
        Ok(gone.len())
    }

    /// The proofs that this kennel has made.
    async fn own(&self, zone: &dyn Zone) -> Result<Vec<Record>, DnsError> {
        let mut texts = zone.list(Some(Kind::Txt)).await?;
        texts.retain(|record| record.comment == self.mark.proof());
        Ok(texts)
    }
}

fn name_of(domain: &str) -> String {
    format!("_acme-challenge.{domain}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::testing::{self, TOKEN};
    use crate::store::Store;

    #[tokio::test]
    async fn a_sweep_removes_what_an_earlier_run_left_and_nothing_else() {
        let (dir, fake) = (tempfile::tempdir().unwrap(), testing::start().await);
        let store = Store::open(&dir.path().join("kennel.db")).await.unwrap();
        let mark = Mark::of(&store).await.unwrap();
        let proofs = Proofs::new(testing::config(&fake, dir.path(), TOKEN), mark.clone());
        for (name, comment) in [
            ("_acme-challenge.left.example.com", mark.proof()),
            ("_acme-challenge.open.example.com", mark.proof()),
            ("_acme-challenge.hand.example.com", String::new()),
            ("_acme-challenge.other.example.com", "kennel 0123456789abcdef acme-challenge".to_owned()),
        ] {
            fake.put("TXT", name, "\"proof\"", &comment);
        }
        let names = || fake.records().into_iter().map(|(record, _)| record).collect::<Vec<_>>();
        assert_eq!(proofs.sweep(&BTreeSet::from(["open.example.com".to_owned()])).await.unwrap(), 1);
        assert_eq!(names().len(), 3);
        proofs.clear("hand.example.com").await.unwrap();
        proofs.clear("open.example.com").await.unwrap();
        assert_eq!(
            names(),
            ["TXT _acme-challenge.hand.example.com \"proof\"", "TXT _acme-challenge.other.example.com \"proof\""]
        );
    }
}
