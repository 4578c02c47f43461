//! A zone for tests, at a provider that is not there.

mod provider;

use std::path::Path;

pub(crate) use self::provider::{FakeProvider, TOKEN};
use crate::config::{DnsConfig, DnsProvider};

/// A provider with the zone `example.com`.
pub(crate) async fn start() -> FakeProvider {
    FakeProvider::with("127.0.0.1:0".parse().unwrap(), "example.com", Box::new(|_, _| {})).await
}

/// `[dns]` that leads to `fake`, with this token in a file below `dir`.
pub(crate) fn config(fake: &FakeProvider, dir: &Path, token: &str) -> DnsConfig {
    let token_file = dir.join("token");
    std::fs::write(&token_file, token).unwrap();
    DnsConfig {
        provider: DnsProvider::Cloudflare,
        token_file,
        zone: "example.com".parse().unwrap(),
        api: fake.api(),
        resolver: None,
        records: None,
    }
}
