//! kennel's API as an operator asks it, over the loopback listener.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::delivery::Delivery;
use super::http::{Answer, request, send};

/// Where kennel's API listens.
pub(crate) const API: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 3000);

/// One of `GET /builds`, and `GET /builds/<id>`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Build {
    pub(crate) id: i64,
    pub(crate) project: String,
    pub(crate) branch: String,
    pub(crate) state: String,
    pub(crate) reason: Option<String>,
    pub(crate) queued_at: i64,
    pub(crate) started_at: Option<i64>,
    pub(crate) finished_at: Option<i64>,
    pub(crate) fetch_ms: Option<i64>,
    pub(crate) nix_ms: Option<i64>,
    #[serde(default)]
    pub(crate) artifacts: Vec<Artifact>,
    #[serde(default)]
    pub(crate) deployments: Vec<Deployment>,
}

/// What a build made.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Artifact {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) store_path: Option<String>,
    pub(crate) reason: Option<String>,
}

/// One of `GET /deployments`, and `GET /deployments/<id>`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Deployment {
    pub(crate) id: i64,
    pub(crate) branch: String,
    pub(crate) service: String,
    pub(crate) build: i64,
    pub(crate) commit: String,
    pub(crate) state: String,
    pub(crate) step: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
    pub(crate) journal_tag: String,
    pub(crate) unnamed: bool,
    pub(crate) started_at: Option<i64>,
    pub(crate) live_at: Option<i64>,
    #[serde(default)]
    pub(crate) events: Vec<Event>,
}

/// One attempt at one step.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Event {
    pub(crate) at: i64,
    pub(crate) step: String,
    pub(crate) duration_ms: i64,
}

impl Build {
    pub(crate) fn has_ended(&self) -> bool {
        !matches!(self.state.as_str(), "queued" | "building")
    }

    #[track_caller]
    pub(crate) fn artifact(&self, name: &str) -> &Artifact {
        self.artifacts.iter().find(|artifact| artifact.name == name).unwrap_or_else(|| {
            panic!("build {} is `{}` ({:?}) and has no artifact `{name}`", self.id, self.state, self.reason)
        })
    }
}

impl Deployment {
    pub(crate) fn unit(&self) -> String {
        format!("{}@{}.service", self.journal_tag, self.id)
    }

    /// Whether nothing more happens to it by itself.
    pub(crate) fn has_settled(&self) -> bool {
        self.step.is_none() && self.state != "pending"
    }

    #[track_caller]
    pub(crate) fn reason(&self) -> &str {
        self.reason.as_deref().unwrap_or_else(|| panic!("deployment {} gives no reason for `{}`", self.id, self.state))
    }
}

/// Asks; whatever is answered.
pub(crate) async fn ask(method: Method, path: &str) -> Answer {
    try_ask(method, path).await.unwrap_or_else(|err| panic!("kennel's API did not answer {path}: {err}"))
}

/// Asks, when kennel may not be there.
pub(crate) async fn try_ask(method: Method, path: &str) -> Result<Answer, String> {
    send(API, request(method, "127.0.0.1:3000", path, "")).await
}

/// Gets what must be there.
pub(crate) async fn get<T: DeserializeOwned>(path: &str) -> T {
    ask(Method::GET, path).await.expect(200).json()
}

/// Every build, newest first.
pub(crate) async fn builds() -> Vec<Build> {
    get("/builds?limit=1000").await
}

pub(crate) async fn build(id: i64) -> Build {
    get(&format!("/builds/{id}")).await
}

/// Every deployment there ever was, newest first.
pub(crate) async fn deployments() -> Vec<Deployment> {
    get("/deployments?all=1").await
}

pub(crate) async fn deployment(id: i64) -> Deployment {
    get(&format!("/deployments/{id}")).await
}

pub(crate) async fn log(build: i64, name: &str) -> String {
    ask(Method::GET, &format!("/builds/{build}/logs/{name}")).await.expect(200).text()
}

/// Posts a JSON body.
pub(crate) async fn post(path: &str, body: &Value) -> Answer {
    let mut request = request(Method::POST, "127.0.0.1:3000", path, body.to_string());
    request.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    send(API, request).await.unwrap_or_else(|err| panic!("kennel's API did not answer {path}: {err}"))
}

/// Sends a delivery, as a forge does.
pub(crate) async fn deliver(delivery: &Delivery) -> Answer {
    try_deliver(delivery).await.unwrap_or_else(|err| panic!("kennel did not answer a delivery: {err}"))
}

/// Sends a delivery, when kennel may not be there.
pub(crate) async fn try_deliver(delivery: &Delivery) -> Result<Answer, String> {
    send(API, request_of(delivery)).await
}

/// A delivery as it goes over the line.
pub(crate) fn request_of(delivery: &Delivery) -> Request<Full<Bytes>> {
    let path = format!("/webhook/{}", delivery.project);
    let mut request = request(Method::POST, "127.0.0.1:3000", &path, delivery.body.clone());
    for (name, value) in &delivery.headers {
        let name: header::HeaderName = name.parse().expect("a header's name");
        request
            .headers_mut()
            .append(name, header::HeaderValue::from_bytes(value.as_bytes()).expect("a header's value"));
    }
    request
}
