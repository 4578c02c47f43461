//! kennel's front door beside nginx, HAProxy and Caddy: what a request costs each of them, on this machine.
//!
//! `cargo bench --bench router` runs every proxy that is installed in turn on the same upstream, one worker each and
//! 1,000 hosts in the table, in interleaved rounds, and prints medians. The figure to compare is the proxy's CPU time
//! for 100,000 requests: throughput on a shared machine depends on what else runs.

#![expect(clippy::print_stdout, reason = "the table is what this is for")]

mod cases;
mod deploys;
mod kennel;
mod load;
mod process;
mod proxies;
mod report;
mod restarts;
mod secure;
mod upstream;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;

use self::cases::Case;
use self::proxies::Proxy;
use self::report::Report;

/// How many hosts are in the table, each with an upstream port of its own.
const HOSTS: usize = 1000;

/// kennel's front door beside other proxies.
#[derive(Debug, Parser)]
struct Options {
    /// Rounds; each case is measured once for each proxy in each. Many short ones bear a machine that changes its speed.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Only the proxies whose name contains one of these.
    #[arg(long, value_delimiter = ',')]
    proxies: Vec<String>,
    /// Only the cases whose name contains one of these.
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// How many versions are switched under load, for the case "switches".
    #[arg(long, default_value_t = 1000)]
    switches: usize,
    /// How many restarts there are under load, for the case "restarts".
    #[arg(long, default_value_t = 20)]
    restarts: usize,
    /// Internal: be kennel's router on this address, with the database and store in the directory given.
    #[arg(long, hide = true, num_args = 2, value_names = ["ADDRESS", "DIRECTORY"])]
    serve: Option<Vec<String>>,
    /// Internal: be kennel's router on the socket that is the standard input, with the database in the directory given.
    #[arg(long, hide = true, value_name = "DIRECTORY")]
    held: Option<PathBuf>,
    /// cargo says this to benchmarks.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    process::raise_descriptor_limit()?;
    if let Some([address, directory]) = options.serve.as_deref() {
        return kennel::serve(address.parse()?, directory.as_ref());
    }
    if let Some(directory) = &options.held {
        return kennel::serve_held(directory);
    }
    // Load and upstream on the first core, the proxies on the second.
    process::pin_self(0)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(compare(&options))
}

fn wanted(filters: &[String], name: &str) -> bool {
    filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
}

async fn compare(options: &Options) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let upstream = upstream::start().context("cannot start the upstream")?;
    secure::certificate(directory.path()).context("cannot make a certificate")?;
    let site = kennel::prepare(directory.path(), &upstream).await.context("cannot prepare the table")?;
    let start = async || {
        let mut proxies: Vec<Proxy> = Vec::new();
        for kind in proxies::KINDS.iter().filter(|kind| wanted(&options.proxies, kind.name)) {
            match Proxy::start(kind, directory.path(), &upstream, &site).await {
                Ok(Some(proxy)) => proxies.push(proxy),
                Ok(None) => eprintln!("{} is not installed", kind.name),
                Err(err) => return Err(err.context(format!("cannot start {}", kind.name))),
            }
        }
        Ok(proxies)
    };
    let cases: Vec<&Case> = cases::CASES.iter().filter(|case| wanted(&options.cases, case.name)).collect();
    let mut report = Report::new(&cases);
    let duration = Duration::from_secs_f64(options.seconds);
    let measure = async |report: &mut Report<'_>, case: &Case, proxy: &Proxy| {
        if case.runs(proxy.kind) {
            let figures = case.measure(proxy, directory.path(), duration).await;
            let figures = figures.with_context(|| format!("`{}` through {} failed", case.name, proxy.kind.name))?;
            report.add(case, proxy.kind.name, figures);
        }
        anyhow::Ok(())
    };
    let proxies = start().await?;
    let names: Vec<&str> = proxies.iter().map(|proxy| proxy.kind.name).collect();
    let (once, again): (Vec<&Case>, Vec<&Case>) = cases.iter().partition(|case| case.is_of_a_fresh_process());
    for round in 0..options.rounds {
        for case in &again {
            for turn in 0..proxies.len() {
                measure(&mut report, case, &proxies[(turn + round) % proxies.len()]).await?;
            }
        }
        eprintln!("round {} of {}", round + 1, options.rounds);
    }
    stop(proxies).await?;
    for case in once {
        let proxies = start().await?;
        for proxy in &proxies {
            measure(&mut report, case, proxy).await?;
        }
        stop(proxies).await?;
    }
    if !cases.is_empty() {
        print!("{}", report.render(&names));
    }
    if wanted(&options.cases, "switches") && wanted(&options.proxies, "kennel") {
        deploys::measure(directory.path(), &upstream, &site, options.switches).await?;
    }
    if wanted(&options.cases, "restarts") && wanted(&options.proxies, "kennel") {
        restarts::measure(directory.path(), options.restarts).await?;
    }
    Ok(())
}

async fn stop(proxies: Vec<Proxy>) -> anyhow::Result<()> {
    for proxy in proxies {
        proxy.stop().await?;
    }
    Ok(())
}

/// What of a proxy's files lies where.
fn file(directory: &std::path::Path, name: &str) -> PathBuf {
    directory.join(name)
}
