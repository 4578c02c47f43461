//! What is measured: each case says who asks how, and which figure counts.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use http::Version;

use crate::HOSTS;
use crate::kennel::{SITE_HOST, host};
use crate::load::{self, Manner, Requests, Seen};
use crate::process::{cpu_seconds, memory_kib};
use crate::proxies::{Kind, Proxy, secure};
use crate::secure::Tls;

/// How long the visitors run before the measurement begins.
const WARM_UP: Duration = Duration::from_millis(150);
/// How many connections idle for [`Figure::Idle`], and for how long before memory is read.
const IDLE: usize = 10_000;
const SETTLE: Duration = Duration::from_secs(3);

/// Which figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figure {
    /// CPU seconds for 100,000 answers.
    Requests,
    /// CPU seconds for a gigabyte.
    Gigabyte,
    /// The median latency, in milliseconds.
    Latency,
    /// Memory of a connection that idles, in KiB.
    Idle,
}

impl Figure {
    /// Its unit.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Requests => "CPU s / 100,000",
            Self::Gigabyte => "CPU s / GB",
            Self::Latency => "ms, median",
            Self::Idle => "KiB each",
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
enum What {
    One,
    Secure(Version),
    Every,
    Big,
    Site(&'static str, &'static str, u16),
}

/// What a figure of kennel's is held to: never more than the first, and in the end the second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    pub(crate) hold: f64,
    pub(crate) goal: f64,
}

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) figure: Figure,
    what: What,
    visitors: usize,
    manner: Manner,
    /// For kennel's share of what nginx and HAProxy take.
    pub(crate) shares: [Option<Bound>; 2],
    /// For kennel's own figure.
    pub(crate) own: Option<Bound>,
}

const fn case(name: &'static str, figure: Figure, what: What, visitors: usize, manner: Manner) -> Case {
    Case { name, figure, what, visitors, manner, shares: [None; 2], own: None }
}

/// All of them.
pub(crate) const CASES: &[Case] = &[
    case("keep-alive, 64 connections", Figure::Requests, What::One, 64, Manner::Keep)
        .of_nginx(1.05, 0.95)
        .of_haproxy(0.95, 0.87),
    case("512 connections", Figure::Requests, What::One, 512, Manner::Keep).of_nginx(1.05, 0.90).of_haproxy(0.90, 0.72),
    case("rotating over 1,000 hosts", Figure::Requests, What::Every, 64, Manner::Keep)
        .of_nginx(0.90, 0.70)
        .of_haproxy(0.95, 0.75),
    case("new connection each", Figure::Requests, What::One, 64, Manner::Renew)
        .of_nginx(1.15, 1.05)
        .of_haproxy(1.05, 0.95),
    case("100 MB answers", Figure::Gigabyte, What::Big, 4, Manner::Keep).of_nginx(0.5, 0.35).of_haproxy(0.6, 0.50),
    case("latency at 5,000/s", Figure::Latency, What::One, 64, Manner::Rate(5000)).of_nginx(1.10, 1.00),
    case("TLS 1.3, HTTP/1.1", Figure::Requests, What::Secure(Version::HTTP_11), 64, Manner::Keep).of_nginx(1.0, 0.90),
    case("TLS 1.3, HTTP/2", Figure::Requests, What::Secure(Version::HTTP_2), 64, Manner::Many).of_nginx(1.1, 0.92),
    case("static 1 KiB", Figure::Requests, What::Site("/small.css", "", 200), 64, Manner::Keep).of_nginx(1.0, 0.70),
    case(
        "static range",
        Figure::Requests,
        What::Site("/large.js", "Range: bytes=1000-1999\r\n", 206),
        64,
        Manner::Keep,
    )
    .of_nginx(1.0, 0.75),
    case("static 304", Figure::Requests, What::Site("/small.css", "If-None-Match: *\r\n", 304), 64, Manner::Keep)
        .of_nginx(1.05, 0.95),
    case("static 100 KiB", Figure::Requests, What::Site("/large.js", "", 200), 64, Manner::Keep).of_nginx(1.0, 0.88),
    case("idle connection", Figure::Idle, What::One, IDLE, Manner::Keep).at_most(15.0, 4.0),
];

/// What came of one measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    /// The figure that counts.
    pub(crate) cost: f64,
    /// Answers in a second, where that means something.
    pub(crate) rate: Option<f64>,
}

impl Case {
    const fn of_nginx(mut self, hold: f64, goal: f64) -> Self {
        self.shares[0] = Some(Bound { hold, goal });
        self
    }

    const fn of_haproxy(mut self, hold: f64, goal: f64) -> Self {
        self.shares[1] = Some(Bound { hold, goal });
        self
    }

    const fn at_most(mut self, hold: f64, goal: f64) -> Self {
        self.own = Some(Bound { hold, goal });
        self
    }

    /// Whether it is measured for this proxy.
    pub(crate) fn runs(&self, kind: &Kind) -> bool {
        match self.what {
            What::Site(..) => kind.serves_files,
            What::Secure(_) => kind.serves_tls,
            What::One | What::Every | What::Big => true,
        }
    }

    /// Whether it is measured once, and of a process that has done nothing else: one that has done much takes memory for
    /// connections which it has already.
    pub(crate) fn is_of_a_fresh_process(&self) -> bool {
        self.figure == Figure::Idle
    }

    fn requests(&self, proxy: &Proxy, directory: &Path) -> anyhow::Result<Requests> {
        let text = |host: &str, path: &str, more: &str| {
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: bench/1\r\nAccept: */*\r\n{more}\r\n")
        };
        let (texts, status): (Vec<String>, u16) = match self.what {
            What::One | What::Secure(_) => (vec![text(&host(7), "/api/items?page=3", "")], 200),
            What::Every => ((0..HOSTS).map(|number| text(&host(number), "/api/items?page=3", "")).collect(), 200),
            What::Big => (vec![text(&host(7), "/big", "")], 200),
            What::Site(path, more, status) => (vec![text(SITE_HOST, path, more)], status),
        };
        let (address, tls) = match self.what {
            What::Secure(version) => {
                let tls = Tls::new(directory, version, &host(7), "/api/items?page=3", self.visitors)?;
                (secure(proxy.address), Some(tls))
            }
            _ => (proxy.address, None),
        };
        Ok(Requests { address, texts: Rc::from(texts), status, tls })
    }

    /// Measures `proxy` for about `duration`.
    pub(crate) async fn measure(&self, proxy: &Proxy, directory: &Path, duration: Duration) -> anyhow::Result<Figures> {
        let requests = self.requests(proxy, directory)?;
        if self.figure == Figure::Idle {
            return idle(proxy, &requests).await;
        }
        load::run(&requests, self.visitors, self.manner, async |seen: &Seen| {
            tokio::time::sleep(WARM_UP).await;
            seen.take_latencies();
            let (cpu, answers, bytes) = (cpu_seconds(proxy.pid())?, seen.answers(), seen.bytes());
            let begun = tokio::time::Instant::now();
            // Of long answers, the parts that have come count.
            let least = if self.figure == Figure::Gigabyte { 0 } else { self.visitors as u64 };
            while begun.elapsed() < duration || seen.answers() - answers < least {
                tokio::time::sleep(duration / 10).await;
            }
            let cpu = cpu_seconds(proxy.pid())? - cpu;
            let (answers, bytes) = ((seen.answers() - answers) as f64, (seen.bytes() - bytes) as f64);
            let rate = Some(answers / begun.elapsed().as_secs_f64());
            let cost = match self.figure {
                Figure::Gigabyte => cpu / bytes * 1e9,
                Figure::Latency => median(&mut seen.take_latencies()),
                Figure::Requests | Figure::Idle => cpu / answers * 1e5,
            };
            Ok(Figures { cost, rate })
        })
        .await
    }
}

/// Memory by connection, once it has had an answer and time to be forgotten.
async fn idle(proxy: &Proxy, requests: &Requests) -> anyhow::Result<Figures> {
    let before = memory_kib(proxy.pid())?;
    let streams = load::open(requests, IDLE).await?;
    tokio::time::sleep(SETTLE).await;
    let after = memory_kib(proxy.pid())?;
    Ok(Figures { cost: (after - before) / streams.len() as f64, rate: None })
}

/// The value in the middle; zero of none.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
