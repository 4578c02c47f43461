//! Cloudflare's API, version 4: `https://developers.cloudflare.com/api/resources/dns/subresources/records/`.
//!
//! The token needs `Zone:Read` and `DNS:Edit` of the zone.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::timeout;

use super::{DnsError, Kind, NewRecord, Record, Zone};
use crate::config::DnsConfig;

/// How long one answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// The largest answer, in bytes.
const SIZE_MAX: usize = 16 * 1024 * 1024;
/// How many records it gives at a time.
const PER_PAGE: u32 = 500;
/// As many pages as there may be: a provider that always has another must not hold kennel for ever.
const PAGES_MAX: u32 = 400;
/// How long a resolver may remember a proof, in seconds: the shortest there is.
const PROOF_TTL: u32 = 60;
/// How long resolvers may remember where visitors go: as long as Cloudflare likes.
const AUTOMATIC_TTL: u32 = 1;
/// How long it is left alone when it says that it is busy and not how long.
const BUSY: Duration = Duration::from_secs(60);
/// The longest it may have itself left alone.
const BUSY_MAX: Duration = Duration::from_secs(3_600);
/// "Invalid request headers": what a token gets that is none.
const INVALID_HEADERS: u32 = 6003;

/// One zone at Cloudflare.
pub(super) struct Cloudflare {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    api: String,
    token: SecretString,
    zone: String,
    servers: Vec<String>,
}

/// What every answer lies in.
#[derive(Deserialize)]
struct Envelope<T> {
    success: bool,
    #[serde(default)]
    errors: Vec<Said>,
    result: Option<T>,
    result_info: Option<Page>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    total_pages: u32,
}

#[derive(Deserialize)]
struct FoundZone {
    id: String,
    #[serde(default)]
    name_servers: Vec<String>,
}

#[derive(Deserialize)]
struct FoundRecord {
    id: String,
    name: String,
    r#type: String,
    #[serde(default)]
    content: String,
    comment: Option<String>,
}

/// Of answers whose result is of no interest.
#[derive(Deserialize)]
struct Whatever {}

impl Cloudflare {
    /// Looks the zone up.
    pub(super) async fn open(config: &DnsConfig, token: SecretString) -> Result<Self, DnsError> {
        let builder = HttpsConnectorBuilder::new();
        let builder = match config.api.starts_with("https:") {
            true => {
                let builder = builder.with_provider_and_platform_verifier(ring::default_provider());
                builder.map_err(DnsError::Roots)?.https_only()
            }
            // On this machine itself; see `config`.
            false => builder.with_tls_config(tls_to_nobody()).https_or_http(),
        };
        let client = Client::builder(TokioExecutor::new()).build(builder.enable_http1().build());
        let api = config.api.trim_end_matches('/').to_owned();
        let mut this = Self { client, api, token, zone: String::new(), servers: Vec::new() };
        let found: Envelope<Vec<FoundZone>> =
            this.ask(Method::GET, &format!("/zones?name={}", config.zone), None).await?;
        let found = found.result.into_iter().flatten().next().ok_or_else(|| DnsError::NoZone(config.zone.clone()))?;
        (this.zone, this.servers) = (found.id, found.name_servers);
        Ok(this)
    }

    fn records(&self) -> String {
        format!("/zones/{}/dns_records", self.zone)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<serde_json::Value>,
    ) -> Result<Envelope<T>, DnsError> {
        let (status, headers, body) = self.send(method, path, body).await?;
        if status == StatusCode::TOO_MANY_REQUESTS {
            return Err(DnsError::Busy { retry_after: retry_after(&headers) });
        }
        let answer = serde_json::from_slice::<Envelope<T>>(&body);
        match answer {
            Ok(answer) if answer.success && status.is_success() => Ok(answer),
            Err(err) if status.is_success() => Err(DnsError::Strange(err)),
            _ => Err(failure(status, &body)),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<serde_json::Value>,
    ) -> Result<(StatusCode, HeaderMap, Bytes), DnsError> {
        let silent = || DnsError::Silent(self.api.clone());
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.api))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token.expose_secret().trim()))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("kennel/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::from(body)))
            .map_err(|_| DnsError::Refused("it holds a character that no token has".to_owned()))?;
        let exchange = async {
            let away = |source| DnsError::Away { api: self.api.clone(), source };
            let (head, body) = self.client.request(request).await.map_err(away)?.into_parts();
            let body = Limited::new(body, SIZE_MAX).collect().await.map_err(|_| silent())?;
            Ok((head.status, head.headers, body.to_bytes()))
        };
        timeout(ANSWER_MAX, exchange).await.map_err(|_| silent())?
    }
}

/// For a client that does not use it.
fn tls_to_nobody() -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has what the usual versions need")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

/// What an answer says that is no success, with as much of its text as fits in a line.
fn failure(status: StatusCode, body: &[u8]) -> DnsError {
    let errors = serde_json::from_slice::<Envelope<serde_json::Value>>(body).map(|answer| answer.errors);
    let errors = errors.unwrap_or_default();
    let said = errors.iter().map(|said| format!("{} ({})", said.message, said.code)).collect::<Vec<_>>().join(", ");
    let said: String = said.chars().filter(|c| !c.is_control()).take(300).collect();
    let said = if said.is_empty() { "it does not say why".to_owned() } else { said };
    let unreadable = errors.iter().any(|said| said.code == INVALID_HEADERS);
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => DnsError::Refused(said),
        StatusCode::BAD_REQUEST if unreadable => DnsError::Refused(said),
        status => DnsError::Failed { status: status.as_u16(), said },
    }
}

fn retry_after(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    seconds.map_or(BUSY, Duration::from_secs).min(BUSY_MAX)
}

#[async_trait]
impl Zone for Cloudflare {
    async fn list(&self, kind: Option<Kind>) -> Result<Vec<Record>, DnsError> {
        let only = kind.map(|kind| format!("&type={}", kind.as_str())).unwrap_or_default();
        let mut records = Vec::new();
        for page in 1..=PAGES_MAX {
            let path = format!("{}?per_page={PER_PAGE}&page={page}{only}", self.records());
            let answer: Envelope<Vec<FoundRecord>> = self.ask(Method::GET, &path, None).await?;
            records.extend(answer.result.unwrap_or_default().into_iter().map(Record::from));
            if answer.result_info.is_none_or(|info| page >= info.total_pages) {
                break;
            }
        }
        Ok(records)
    }

    async fn create(&self, record: &NewRecord, comment: &str) -> Result<(), DnsError> {
        let NewRecord { name, kind, content } = record;
        let (content, ttl) = match kind {
            // Text without quotes is taken and warned of.
            Kind::Txt => (format!("\"{content}\""), PROOF_TTL),
            _ => (content.clone(), AUTOMATIC_TTL),
        };
        let body = json!({
            "name": name, "type": kind.as_str(), "content": content, "ttl": ttl, "proxied": false, "comment": comment,
        });
        self.ask::<Whatever>(Method::POST, &self.records(), Some(body)).await.map(|_| ())
    }

    async fn delete(&self, id: &str) -> Result<(), DnsError> {
        match self.ask::<Whatever>(Method::DELETE, &format!("{}/{id}", self.records()), None).await {
            Ok(_) | Err(DnsError::Failed { status: 404, .. }) => Ok(()),
            Err(err) => Err(err),
        }
    }

    fn servers(&self) -> &[String] {
        &self.servers
    }
}

impl From<FoundRecord> for Record {
    fn from(found: FoundRecord) -> Self {
        let kind = Kind::of(&found.r#type);
        let content = match kind {
            Kind::Txt => found.content.trim_matches('"').to_owned(),
            Kind::Cname => found.content.trim_end_matches('.').to_ascii_lowercase(),
            _ => found.content,
        };
        let record = NewRecord { name: found.name.to_ascii_lowercase(), kind, content };
        Self { id: found.id, record, comment: found.comment.unwrap_or_default() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, FakeProvider, TOKEN, config};
    use super::*;
    use crate::telemetry::chain;

    async fn open(fake: &FakeProvider, token: &str) -> Result<Box<dyn Zone>, DnsError> {
        let dir = tempfile::tempdir().unwrap();
        super::super::open(&config(fake, dir.path(), token)).await
    }

    fn text(name: &str, content: &str) -> NewRecord {
        NewRecord { name: name.to_owned(), kind: Kind::Txt, content: content.to_owned() }
    }

    #[tokio::test]
    async fn records_are_made_found_and_removed() {
        let fake = testing::start().await;
        let zone = open(&fake, TOKEN).await.unwrap();
        assert_eq!(zone.servers(), ["ada.ns.example", "bob.ns.example"]);
        // As many as fill more than one page.
        for n in 0..1_003 {
            fake.put("A", &format!("h{n}.example.com"), "203.0.113.1", "by hand");
        }
        zone.create(&text("_acme-challenge.shop.example.com", "proof"), "kennel 1 acme-challenge").await.unwrap();
        let all = zone.list(None).await.unwrap();
        assert_eq!(all.len(), 1_004);
        let [made] = &zone.list(Some(Kind::Txt)).await.unwrap()[..] else { panic!("there is one") };
        assert_eq!(made.record, text("_acme-challenge.shop.example.com", "proof"));
        assert_eq!(made.comment, "kennel 1 acme-challenge");
        zone.delete(&made.id).await.unwrap();
        zone.delete(&made.id).await.unwrap();
        assert_eq!(zone.list(Some(Kind::Txt)).await.unwrap(), []);
    }

    #[tokio::test]
    async fn what_the_provider_says_against_it_is_told() {
        let fake = testing::start().await;
        let refused = open(&fake, "another-token").await.err().unwrap();
        assert!(matches!(refused, DnsError::Refused(_)), "{refused}");
        assert_eq!(
            chain(&refused),
            "the DNS provider refuses the token of `dns.token_file`: Invalid access token (9109)"
        );
        let broken = open(&fake, "line\nbreak").await.err().unwrap();
        assert!(chain(&broken).contains("a character that no token has"), "{broken}");

        let zone = open(&fake, TOKEN).await.unwrap();
        fake.say(429, Some("7"));
        let busy = zone.list(None).await.unwrap_err();
        assert_eq!(busy.retry_after(), Duration::from_secs(7));
        fake.say(429, None);
        assert_eq!(zone.list(None).await.unwrap_err().retry_after(), BUSY);
        fake.say(502, None);
        assert_eq!(
            chain(&zone.list(None).await.unwrap_err()),
            "the DNS provider answered with status 502: it does not say why"
        );
        fake.say(200, None);
        assert!(matches!(zone.list(None).await.unwrap_err(), DnsError::Strange(_)));

        fake.say(0, None);
        let dir = tempfile::tempdir().unwrap();
        let mut other = config(&fake, dir.path(), TOKEN);
        other.zone = "example.org".parse().unwrap();
        let none = super::super::open(&other).await.err().unwrap();
        assert!(chain(&none).contains("shows no zone `example.org`"), "{none}");
        other.api = "http://127.0.0.1:1".to_owned();
        let away = super::super::open(&other).await.err().unwrap();
        assert!(chain(&away).starts_with("cannot reach the DNS provider at http://127.0.0.1:1"), "{}", chain(&away));
    }
}
