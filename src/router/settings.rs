//! What an operator may set of the router: how long things may take, and how much there may be.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::metrics::Metrics;
use super::replaced::Pages;
use crate::config::AccessLog;
use crate::model::HostName;
use crate::wake::Bell;

/// What the router needs to know.
#[derive(Debug, Clone)]
pub struct RouterConfig {
    /// Where store paths lie: `/nix/store`, but for tests.
    pub store_dir: PathBuf,
    /// The host that is kennel's own, and what answers there, in process.
    pub control: Option<(HostName, axum::Router)>,
    /// How visitors who come by TLS are treated, and those who could.
    pub https: Https,
    /// Rung when the hosts that have routes have changed.
    pub hosts_changed: Vec<Bell>,
    /// How many threads serve visitors, each with its own connections to services: as many as there are cores.
    pub workers: NonZeroUsize,
    /// The proxies in front of kennel: what they say in `X-Forwarded-For`, `-Proto` and `-Port` counts.
    pub trusted: Vec<IpNet>,
    /// Whether their connections begin with the visitor's address, by the PROXY protocol, version 2.
    pub proxy_protocol: bool,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// How much there may be.
    pub limits: Limits,
    /// Which requests get a line in the journal.
    pub access_log: AccessLog,
    /// The operator's pages, shown in the place of kennel's own.
    pub pages: Pages,
    /// Where it counts.
    pub metrics: Metrics,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            store_dir: PathBuf::from("/nix/store"),
            control: None,
            trusted: Vec::new(),
            proxy_protocol: false,
            https: Https::default(),
            hosts_changed: Vec::new(),
            workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            access_log: AccessLog::Off,
            pages: Pages::default(),
            metrics: Metrics::default(),
        }
    }
}

/// What goes with serving visitors by TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Https {
    /// The port to which visitors of plain HTTP are sent, where their host has a certificate; `None` leaves them.
    pub redirect_to: Option<u16>,
    /// For how long browsers are told to come by TLS only (RFC 6797), in answers to those who do; `None` does not.
    pub hsts: Option<Duration>,
}

/// How long things may take. Nothing limits a whole exchange: that would kill long uploads.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// Connecting to a service: 2 s.
    pub connect: Duration,
    /// From the end of a request to the head of its answer: 60 s.
    pub response_header: Duration,
    /// Silence of either side within a message, or a visitor taking nothing: 60 s. A visitor's is counted together, and
    /// made up for by what he sends or takes, at 256 bytes a second.
    pub idle: Duration,
    /// Silence of a service within an answer of unknown length, such as server-sent events: 1 h.
    pub streaming_idle: Duration,
    /// Silence of both sides after a switch of protocols: 1 h.
    pub upgraded_idle: Duration,
    /// From a visitor's connecting, or the end of the last answer, to the end of a request's head: 10 s.
    pub request_header: Duration,
    /// From a visitor's connecting to the end of the TLS handshake: 10 s.
    pub handshake: Duration,
    /// How long a connection idles before its buffers are given back: 250 ms.
    pub park: Duration,
    /// At the end: how long open connections still get answers as usual: 300 ms.
    pub lame_duck: Duration,
    /// At the end: how long what has begun may take after that: 30 s.
    pub finish: Duration,
    /// How long what has begun may go on, WebSockets included, after another process has taken the router's place: 24 h.
    pub hand_over: Duration,
    /// How often the table is rebuilt unasked: 30 s.
    pub tick: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            response_header: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            streaming_idle: Duration::from_secs(3600),
            upgraded_idle: Duration::from_secs(3600),
            request_header: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            park: Duration::from_millis(250),
            lame_duck: Duration::from_millis(300),
            finish: Duration::from_secs(30),
            hand_over: Duration::from_secs(24 * 3600),
            tick: Duration::from_secs(30),
        }
    }
}

/// How much there may be.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections of visitors, upgraded ones included: 8192. More wait in the kernel's queue.
    pub connections: usize,
    /// Of these, with one address (IPv6: one /64): 4096. More are turned away, so that there is room for others.
    pub connections_of_one: usize,
    /// Requests at a time on one connection of HTTP/2: 100.
    pub streams: u32,
    /// Headers of a request: 100.
    pub headers: usize,
    /// Bytes of a request's head: 64 KiB.
    pub head_bytes: usize,
    /// Bytes of static sites that are kept in memory, for all sites together: 64 MiB.
    pub site_memory_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8192,
            connections_of_one: 4096,
            streams: 100,
            headers: 100,
            head_bytes: 64 * 1024,
            site_memory_bytes: 64 * 1024 * 1024,
        }
    }
}
