//! What the router counts, as Prometheus reads it (text exposition format 0.0.4).
//!
//! Each of the router's threads counts in a cell of its own, so that none of them waits for another's cache line.
//!
//! **Invariant:** labels are names of projects and services that have, or had, a route, and words of this file: nothing
//! that a visitor sends.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;

use super::access_log::Line;
use super::pages::Problem;
use super::tls;
use crate::model::{ProjectName, ServiceName};

/// Upper bounds of the latency's buckets, in milliseconds.
const BUCKETS_MS: [u64; 11] = [5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000];
/// The statuses that are told apart.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// Why a service gave no answer.
const FAILURES: [&str; 3] = ["refused", "broke_off", "silent"];

/// Whose answers are counted; `None` stands for kennel itself: its own host, challenges, redirects to HTTPS, and
/// refusals of what no route leads anywhere.
pub(super) type Of = Option<(ProjectName, ServiceName)>;

/// Everything the router counts. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    series: Mutex<BTreeMap<Of, Arc<Series>>>,
    connections: AtomicI64,
    routes: AtomicU64,
    reloaded: Mutex<Option<Instant>>,
    tls: Arc<tls::Counts>,
}

/// What one service or site has answered, all its branches together.
#[derive(Debug)]
pub(super) struct Series(Box<[Cell]>);

/// What one thread has counted of it, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Cell {
    answers: [AtomicU64; CLASSES.len()],
    /// One for each bucket; those that took longer are in none.
    within: [AtomicU64; BUCKETS_MS.len()],
    micros: AtomicU64,
    bytes: AtomicU64,
    failures: [AtomicU64; FAILURES.len()],
}

/// One connection, for as long as it lives.
#[derive(Debug)]
pub(super) struct Connected(Metrics);

/// One answer on its way. It is counted when it ends, whole or not.
#[derive(Debug)]
pub(super) struct Tally {
    series: Arc<Series>,
    lane: usize,
    begun: Instant,
    status: StatusCode,
    bytes: u64,
    line: Option<Box<Line>>,
}

impl Metrics {
    /// The counts of a service or site.
    pub(super) fn series(&self, of: Of, lanes: usize) -> Arc<Series> {
        let mut series = self.0.series.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Arc::new(Series((0..lanes).map(|_| Cell::default()).collect()));
        Arc::clone(series.entry(of).or_insert_with(fresh))
    }

    /// Counts a connection until what this returns is dropped.
    pub(super) fn connected(&self) -> Connected {
        self.0.connections.fetch_add(1, Ordering::Relaxed);
        Connected(self.clone())
    }

    /// A table with so many hosts is in use from now on.
    pub(super) fn note_table(&self, hosts: usize) {
        self.0.routes.store(hosts as u64, Ordering::Relaxed);
        *self.0.reloaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// What is counted of TLS.
    pub(super) fn tls(&self) -> &Arc<tls::Counts> {
        &self.0.tls
    }

    /// Everything, as text.
    #[must_use]
    pub fn render(&self) -> String {
        let series = self.0.series.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sums: Vec<(String, Sum)> = series.iter().map(|(of, series)| (labels(of), Sum::of(&series.0))).collect();
        let mut page = Page::default();
        page.begin("kennel_http_requests_total", "counter", "Requests that got an answer, by its status.");
        for (labels, sum) in &sums {
            for (class, count) in CLASSES.iter().zip(sum.answers) {
                page.line("", &format!("{labels},code=\"{class}\""), count);
            }
        }
        page.begin(
            "kennel_http_request_duration_seconds",
            "histogram",
            "From the end of a request's head to the end of its answer.",
        );
        for (labels, sum) in &sums {
            let total = sum.answers.iter().sum::<u64>();
            let mut below = 0;
            for (bound, within) in BUCKETS_MS.iter().zip(sum.within) {
                below += within;
                let bound = Duration::from_millis(*bound).as_secs_f64();
                page.line("_bucket", &format!("{labels},le=\"{bound}\""), below);
            }
            page.line("_bucket", &format!("{labels},le=\"+Inf\""), total);
            page.line("_sum", labels, Duration::from_micros(sum.micros).as_secs_f64());
            page.line("_count", labels, total);
        }
        page.begin("kennel_http_response_bytes_total", "counter", "Bytes of answers' bodies handed to visitors.");
        for (labels, sum) in &sums {
            page.line("", labels, sum.bytes);
        }
        page.begin("kennel_upstream_failures_total", "counter", "Requests that a service gave no proper answer to.");
        for (labels, sum) in &sums {
            for (reason, count) in FAILURES.iter().zip(sum.failures) {
                page.line("", &format!("{labels},reason=\"{reason}\""), count);
            }
        }
        page.begin("kennel_connections", "gauge", "Connections of visitors, upgraded ones included.");
        page.line("", "", self.0.connections.load(Ordering::Relaxed));
        page.begin("kennel_routes", "gauge", "Hostnames in the route table.");
        page.line("", "", self.0.routes.load(Ordering::Relaxed));
        page.begin("kennel_route_table_age_seconds", "gauge", "Since the route table was last read from the rows.");
        if let Some(reloaded) = *self.0.reloaded.lock().unwrap_or_else(PoisonError::into_inner) {
            page.line("", "", reloaded.elapsed().as_secs_f64());
        }
        self.0.tls.render(&mut page);
        page.text
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Series {
    /// Begins to count an answer with this status to a request that came at `begun`; `line` is written in the end.
    pub(super) fn tally(
        self: Arc<Self>,
        lane: usize,
        begun: Instant,
        status: StatusCode,
        line: Option<Box<Line>>,
    ) -> Tally {
        Tally { series: self, lane, begun, status, bytes: 0, line }
    }

    /// Counts why a service gave no answer, if that is why.
    pub(super) fn note_problem(&self, lane: usize, problem: &Problem) {
        let reason = match problem {
            Problem::Refused => 0,
            Problem::Broken => 1,
            Problem::Silent => 2,
            _ => return,
        };
        self.0[lane].failures[reason].fetch_add(1, Ordering::Relaxed);
    }
}

impl Tally {
    /// So many bytes of the body went out.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let cell = &self.series.0[self.lane];
        let took = self.begun.elapsed();
        let class = usize::from(self.status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        cell.answers[class].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = BUCKETS_MS.iter().position(|bound| micros <= bound * 1_000) {
            cell.within[bucket].fetch_add(1, Ordering::Relaxed);
        }
        cell.micros.fetch_add(micros, Ordering::Relaxed);
        cell.bytes.fetch_add(self.bytes, Ordering::Relaxed);
        if let Some(line) = &self.line {
            line.write(self.status, self.bytes, took);
        }
    }
}

/// What all threads have counted of a series.
#[derive(Debug, Default)]
struct Sum {
    answers: [u64; CLASSES.len()],
    within: [u64; BUCKETS_MS.len()],
    micros: u64,
    bytes: u64,
    failures: [u64; FAILURES.len()],
}

impl Sum {
    fn of(cells: &[Cell]) -> Self {
        let mut sum = Self::default();
        let add = |to: &mut [u64], from: &[AtomicU64]| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from.load(Ordering::Relaxed));
        };
        for cell in cells {
            add(&mut sum.answers, &cell.answers);
            add(&mut sum.within, &cell.within);
            add(&mut sum.failures, &cell.failures);
            sum.micros += cell.micros.load(Ordering::Relaxed);
            sum.bytes += cell.bytes.load(Ordering::Relaxed);
        }
        sum
    }
}

fn labels(of: &Of) -> String {
    match of {
        Some((project, service)) => format!("project=\"{project}\",service=\"{service}\""),
        None => "project=\"\",service=\"\"".to_owned(),
    }
}

/// A page that is being written.
#[derive(Debug, Default)]
pub(super) struct Page {
    text: String,
    name: &'static str,
}

impl Page {
    pub(super) fn begin(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    pub(super) fn line(&mut self, suffix: &str, labels: &str, value: impl std::fmt::Display) {
        let name = self.name;
        let _ = match labels {
            "" => writeln!(self.text, "{name}{suffix} {value}"),
            labels => writeln!(self.text, "{name}{suffix}{{{labels}}} {value}"),
        };
    }
}
