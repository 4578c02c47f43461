//! The servers of preview databases: whether they let kennel in, and have what branches need.

use std::path::PathBuf;

use anyhow::Context as _;

use super::Subject;
use super::finding::Finding;
use crate::config;
use crate::host::services::postgres::Rights;
use crate::host::services::valkey::Offer;
use crate::host::services::{ServerKind, ServerUrl, postgres, valkey};
use crate::telemetry::chain;

/// What every PostgreSQL has, and lets everybody see.
const USUAL: [&str; 2] = ["postgres", "template1"];

/// Checks the servers that the daemon's file names.
pub(super) async fn check(subject: &Subject) -> Vec<Finding> {
    let Ok(config) = &subject.config else { return Vec::new() };
    let mut findings = Vec::new();
    if let Some(server) = &config.valkey {
        let offer = async {
            let url = read(ServerKind::Valkey, server.url_file.clone()).await?;
            Ok(valkey::offer(&url).await?)
        };
        findings.push(judge_valkey(offer.await));
    }
    if let Some(server) = &config.postgres {
        let rights = async {
            let url = read(ServerKind::Postgres, server.url_file.clone()).await?;
            Ok(postgres::rights(&url).await?)
        };
        findings.push(judge_postgres(rights.await));
    }
    findings
}

async fn read(kind: ServerKind, file: PathBuf) -> anyhow::Result<ServerUrl> {
    let name = file.display().to_string();
    let url =
        tokio::task::spawn_blocking(move || config::read_secret(&file)).await.context("reading was interrupted")?;
    ServerUrl::parse(kind, &url?).with_context(|| format!("cannot use `{name}`"))
}

fn judge_valkey(offer: anyhow::Result<Offer>) -> Finding {
    let check = "valkey";
    match offer {
        Err(err) => Finding::failure(check, chain(&*err), "see that Valkey runs and that `[valkey] url_file` is right"),
        Ok(Offer { databases: 0 | 1, .. }) => Finding::failure(
            check,
            "it has database 0 only, which is nobody's",
            "raise `databases` in valkey.conf: one more than branches want one",
        ),
        Ok(Offer { open_keys: true, .. }) => Finding::warning(
            check,
            "database 0 holds keys, which every branch can read and change",
            "give kennel a Valkey of its own, or move them to another database",
        ),
        Ok(Offer { databases, .. }) => Finding::ok(check, format!("room for {} branches", databases - 1)),
    }
}

fn judge_postgres(rights: anyhow::Result<Rights>) -> Finding {
    let check = "postgresql";
    let rights = match rights {
        Err(err) => {
            let advice = "see that PostgreSQL runs and that `[postgres] url_file` is right";
            return Finding::failure(check, chain(&*err), advice);
        }
        Ok(rights) => rights,
    };
    if rights.superuser {
        return Finding::warning(check, "kennel is a superuser there", "give it a role with CREATEDB and CREATEROLE");
    }
    if !(rights.create_db && rights.create_role) {
        let found = "kennel's role may not make databases and roles";
        return Finding::failure(check, found, "`ALTER ROLE … CREATEDB CREATEROLE` as a superuser");
    }
    let open: Vec<String> = rights.open_databases.into_iter().filter(|name| !USUAL.contains(&&**name)).collect();
    if let Some(first) = open.first() {
        return Finding::warning(
            check,
            format!("every branch may connect to `{}`", open.join("`, `")),
            format!("`REVOKE CONNECT ON DATABASE \"{first}\" FROM PUBLIC`, or give kennel a PostgreSQL of its own"),
        );
    }
    Finding::ok(check, format!("version {}", rights.version))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn a_valkey_without_room_is_a_failure_and_open_keys_are_a_warning() {
        let judged = |databases, open_keys| judge_valkey(Ok(Offer { databases, open_keys }));
        assert_eq!(judged(16, false), Finding::ok("valkey", "room for 15 branches"));
        assert_eq!(judged(1, false).level, Level::Failure);
        assert_eq!(judged(16, true).level, Level::Warning);
        assert_eq!(judge_valkey(Err(anyhow::anyhow!("away"))).found, "away");
    }

    #[test]
    fn a_role_has_just_the_rights_it_needs() {
        let rights = |create, superuser, open: &[&str]| Rights {
            version: "17.6".to_owned(),
            create_db: create,
            create_role: true,
            superuser,
            open_databases: open.iter().map(|&name| name.to_owned()).collect(),
        };
        assert_eq!(judge_postgres(Ok(rights(true, false, &USUAL))), Finding::ok("postgresql", "version 17.6"));
        assert_eq!(judge_postgres(Ok(rights(false, false, &[]))).level, Level::Failure);
        assert_eq!(judge_postgres(Ok(rights(true, true, &[]))).level, Level::Warning);
        let open = judge_postgres(Ok(rights(true, false, &["postgres", "shop"])));
        assert!(open.level == Level::Warning && open.found.contains("`shop`"), "{open:?}");
    }
}
