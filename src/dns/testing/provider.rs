//! A server of the shape that Cloudflare documents for its API, with one zone. The lab includes this file as well.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// The token it accepts.
pub(crate) const TOKEN: &str = "lab-token";
const ZONE_ID: &str = "023e105f4ecef8ad9ca31a8372d0c353";

/// Told of texts: a name without a dot at its end, and all texts there are of it now.
type OnTexts = Box<dyn Fn(&str, &[String]) + Send + Sync>;

/// The provider; it is gone when this is dropped.
pub(crate) struct FakeProvider {
    address: SocketAddr,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

struct Shared {
    zone: String,
    on_texts: OnTexts,
    state: Mutex<Zone>,
}

#[derive(Default)]
struct Zone {
    records: Vec<Value>,
    made: u64,
    /// What it answers instead: a status, and `Retry-After`.
    says: Option<(u16, Option<String>)>,
    /// Methods and paths of what it was asked.
    asked: Vec<String>,
}

impl FakeProvider {
    /// Listens on an address, with one empty zone.
    pub(crate) async fn with(address: SocketAddr, zone: &str, on_texts: OnTexts) -> Self {
        let shared = Arc::new(Shared { zone: zone.to_owned(), on_texts, state: Mutex::default() });
        let zones = format!("/client/v4/zones/{ZONE_ID}/dns_records");
        let app = Router::new()
            .route("/client/v4/zones", get(find_zone))
            .route(&zones, get(list).post(create))
            .route(&format!("{zones}/{{id}}"), delete(remove))
            .layer(from_fn_with_state(Arc::clone(&shared), guard))
            .with_state(Arc::clone(&shared));
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, shared, _server: server }
    }

    /// What goes into `dns.api`.
    pub(crate) fn api(&self) -> String {
        format!("http://{}/client/v4", self.address)
    }

    /// From now on it answers with this status alone, and `Retry-After`; with `0`, it is itself again.
    pub(crate) fn say(&self, status: u16, retry_after: Option<&str>) {
        self.shared.state().says = (status != 0).then(|| (status, retry_after.map(str::to_owned)));
    }

    /// Puts a record there, past all checks.
    pub(crate) fn put(&self, kind: &str, name: &str, content: &str, comment: &str) {
        self.shared.state().add(kind, name, content, comment);
        self.shared.tell(kind, name);
    }

    /// Every record as `type name content`, sorted, with its comment.
    pub(crate) fn records(&self) -> Vec<(String, String)> {
        let text = |record: &Value, key: &str| record[key].as_str().unwrap_or_default().to_owned();
        let mut all: Vec<_> = self
            .shared
            .state()
            .records
            .iter()
            .map(|record| {
                let shown = ["type", "name", "content"].map(|key| text(record, key)).join(" ");
                (shown, text(record, "comment"))
            })
            .collect();
        all.sort();
        all
    }

    /// Methods and paths of what it was asked until now.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.shared.state().asked.clone()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Zone> {
        self.state.lock().unwrap()
    }

    fn tell(&self, kind: &str, name: &str) {
        if kind == "TXT" {
            let texts: Vec<String> = self
                .state()
                .records
                .iter()
                .filter(|record| record["type"] == "TXT" && record["name"] == name)
                .map(|record| record["content"].as_str().unwrap_or_default().trim_matches('"').to_owned())
                .collect();
            (self.on_texts)(name, &texts);
        }
    }
}

impl Zone {
    fn add(&mut self, kind: &str, name: &str, content: &str, comment: &str) -> Value {
        self.made += 1;
        let comment = if comment.is_empty() { Value::Null } else { json!(comment) };
        let record = json!({
            "id": format!("{:032x}", self.made), "type": kind, "name": name, "content": content, "comment": comment,
            "ttl": 1, "proxied": false, "proxiable": true, "settings": {}, "meta": {}, "tags": [],
            "created_on": "2026-01-01T05:20:00.12345Z", "modified_on": "2026-01-01T05:20:00.12345Z",
        });
        self.records.push(record.clone());
        record
    }
}

fn fine(result: Value) -> Response {
    Json(json!({ "errors": [], "messages": [], "success": true, "result": result })).into_response()
}

fn wrong(status: StatusCode, code: u32, message: &str) -> Response {
    let body =
        json!({ "errors": [{ "code": code, "message": message }], "messages": [], "success": false, "result": null });
    (status, Json(body)).into_response()
}

async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let says = {
        let mut state = shared.state();
        state.asked.push(format!("{} {}", request.method(), request.uri().path()));
        state.says.clone()
    };
    if let Some((status, retry_after)) = says {
        let mut response = Response::builder().status(status);
        if let Some(retry_after) = retry_after {
            response = response.header("Retry-After", retry_after);
        }
        return response.body(Body::empty()).unwrap();
    }
    let given = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    if given != Some(&format!("Bearer {TOKEN}")) {
        return wrong(StatusCode::FORBIDDEN, 9109, "Invalid access token");
    }
    if request.method() == Method::POST
        && request.headers().get("content-type").is_none_or(|kind| kind != "application/json")
    {
        return wrong(StatusCode::BAD_REQUEST, 6003, "Invalid request headers");
    }
    next.run(request).await
}

async fn find_zone(State(shared): State<Arc<Shared>>, Query(query): Query<HashMap<String, String>>) -> Response {
    let servers = ["ada.ns.example", "bob.ns.example"];
    let zone = json!({ "id": ZONE_ID, "name": shared.zone, "status": "active", "name_servers": servers });
    let found: Vec<Value> =
        query.get("name").is_none_or(|name| *name == shared.zone).then_some(zone).into_iter().collect();
    fine(json!(found))
}

async fn list(State(shared): State<Arc<Shared>>, Query(query): Query<HashMap<String, String>>) -> Response {
    let number = |key: &str, default: usize| query.get(key).map_or(default, |text| text.parse().unwrap());
    let (page, per_page) = (number("page", 1), number("per_page", 100));
    let state = shared.state();
    let wanted: Vec<&Value> = state
        .records
        .iter()
        .filter(|record| ["type", "name"].iter().all(|key| query.get(*key).is_none_or(|text| record[*key] == **text)))
        .collect();
    let part: Vec<&&Value> = wanted.iter().skip((page - 1) * per_page).take(per_page).collect();
    let info = json!({
        "page": page, "per_page": per_page, "count": part.len(), "total_count": wanted.len(),
        "total_pages": wanted.len().div_ceil(per_page),
    });
    Json(json!({ "errors": [], "messages": [], "success": true, "result": part, "result_info": info })).into_response()
}

async fn create(State(shared): State<Arc<Shared>>, Json(body): Json<Value>) -> Response {
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let [kind, name, content, comment] = ["type", "name", "content", "comment"].map(text);
    let ttl = body["ttl"].as_u64().unwrap_or(0);
    if kind.is_empty() || content.is_empty() || comment.len() > 100 || !(ttl == 1 || (60..=86_400).contains(&ttl)) {
        return wrong(StatusCode::BAD_REQUEST, 9005, "Content for the record is invalid.");
    }
    if name != shared.zone && !name.ends_with(&format!(".{}", shared.zone)) {
        return wrong(StatusCode::BAD_REQUEST, 9000, "DNS name is invalid.");
    }
    let record = {
        let mut state = shared.state();
        let there: Vec<&Value> = state.records.iter().filter(|record| record["name"] == name.as_str()).collect();
        if there.iter().any(|record| record["type"] == kind.as_str() && record["content"] == content.as_str()) {
            return wrong(StatusCode::BAD_REQUEST, 81058, "An identical record already exists.");
        }
        let is_host = |record: &&&Value| record["type"] == "A" || record["type"] == "AAAA" || record["type"] == "CNAME";
        let hosts: Vec<_> = there.iter().filter(is_host).collect();
        if (kind == "CNAME" && !hosts.is_empty())
            || (kind.starts_with('A') && hosts.iter().any(|r| r["type"] == "CNAME"))
        {
            let said = "An A, AAAA, or CNAME record with that host already exists.";
            return wrong(StatusCode::BAD_REQUEST, 81053, said);
        }
        state.add(&kind, &name, &content, &comment)
    };
    shared.tell(&kind, &name);
    fine(record)
}

async fn remove(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    let removed = {
        let mut state = shared.state();
        let at = state.records.iter().position(|record| record["id"] == id.as_str());
        at.map(|at| state.records.remove(at))
    };
    let Some(record) = removed else { return wrong(StatusCode::NOT_FOUND, 81044, "Record does not exist.") };
    shared.tell(record["type"].as_str().unwrap(), record["name"].as_str().unwrap());
    fine(json!({ "id": id }))
}
