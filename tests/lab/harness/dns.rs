//! A DNS provider with one zone, whose texts Pebble's DNS server shows.

#[path = "../../../src/dns/testing/provider.rs"]
mod provider;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use provider::{FakeProvider, TOKEN};
use serde_json::{Value, json};

/// Where the token lies.
const TOKEN_FILE: &str = "/srv/dns-token";
/// Where the provider listens.
const API: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8057);
/// Where Pebble's DNS server is told what to show.
const MANAGEMENT: &str = "127.0.0.1:8055";

/// A provider, and whether its servers show what it has.
pub(crate) struct Zone {
    pub(crate) provider: FakeProvider,
    slow: Arc<AtomicBool>,
}

impl Zone {
    /// Starts it, with nothing in its zone. Pebble must run.
    pub(crate) async fn start(zone: &str) -> Self {
        give_token(TOKEN);
        let slow = Arc::new(AtomicBool::new(false));
        let held = Arc::clone(&slow);
        let show = move |name: &str, texts: &[String]| {
            if !held.load(Ordering::SeqCst) {
                publish(name, texts);
            }
        };
        Self { provider: FakeProvider::with(API, zone, Box::new(show)).await, slow }
    }

    /// `[dns]`, with more lines.
    pub(crate) fn section(&self, lines: &str) -> String {
        let api = self.provider.api();
        format!(
            "[dns]\nprovider = \"cloudflare\"\ntoken_file = \"{TOKEN_FILE}\"\napi = \"{api}\"\n\
             resolver = \"127.0.0.1:8053\"\n{lines}"
        )
    }

    /// From now on its servers go on showing what they have shown.
    pub(crate) fn hold(&self) {
        self.slow.store(true, Ordering::SeqCst);
    }

    /// Its servers show everything from now on.
    pub(crate) fn release(&self) {
        self.slow.store(false, Ordering::SeqCst);
        for (record, _) in self.provider.records() {
            if let ["TXT", name, text] = record.split(' ').collect::<Vec<_>>()[..] {
                publish(name, &[text.trim_matches('"').to_owned()]);
            }
        }
    }

    /// The names of the texts in it.
    pub(crate) fn texts(&self) -> Vec<String> {
        let records = self.provider.records().into_iter().map(|(record, _)| record);
        records.filter_map(|record| Some(record.strip_prefix("TXT ")?.split(' ').next()?.to_owned())).collect()
    }

    /// The other records in it.
    pub(crate) fn hosts(&self) -> Vec<String> {
        let records = self.provider.records().into_iter().map(|(record, _)| record);
        records.filter(|record| !record.starts_with("TXT ")).collect()
    }
}

/// Puts a token where kennel reads it.
pub(crate) fn give_token(token: &str) {
    fs::write(TOKEN_FILE, token).unwrap();
}

fn publish(name: &str, texts: &[String]) {
    let host = format!("{name}.");
    tell("/clear-txt", &json!({ "host": host }));
    texts.iter().for_each(|text| tell("/set-txt", &json!({ "host": host, "value": text })));
}

fn tell(path: &str, body: &Value) {
    let body = body.to_string();
    let head = format!("POST {path} HTTP/1.0\r\nHost: dns\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut stream = TcpStream::connect(MANAGEMENT).unwrap();
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 200 "), "{path}: {answer}");
}
