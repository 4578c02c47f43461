//! What kennel does beside passing requests on: switching versions while visitors ask, and how much memory a gigabyte
//! takes on its way.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::cases::median;
use crate::kennel::{Site, host};
use crate::load::{self, Manner, Requests};
use crate::process::memory_kib;
use crate::proxies::{KENNEL, Proxy};
use crate::upstream::Upstream;
use crate::{HOSTS, file};

/// The service that is deployed.
pub(crate) const DEPLOYED: usize = 7;
/// How many visitors ask, and how often all of them together in a second.
const LOAD: (usize, u32) = (64, 4000);
const GIGABYTE: u64 = 1_000_000_000;
/// Bytes of an answer that says which version it is from.
const DIGITS: usize = 8;

/// Measures both on a kennel that has done nothing else, and prints them. A visitor who is failed ends it.
pub(crate) async fn measure(directory: &Path, upstream: &Upstream, site: &Site, switches: usize) -> anyhow::Result<()> {
    let mut kennel = Proxy::start(&KENNEL, directory, upstream, site).await?.context("kennel is this program")?;
    let growth = pass_gigabyte(&kennel).await.context("a gigabyte did not come through")?;
    println!("\n1 GB through kennel: its memory grew by {growth:.1} MB.");
    let (mut firsts, closed) = switch(&mut kennel, directory, switches).await.context("a visitor was failed")?;
    let (middle, slowest) = (median(&mut firsts), firsts.last().copied().unwrap_or_default());
    println!(
        "{switches} switches under {} requests/s, the old version stopped once its requests were done: 0 failed, \
         {closed} connections closed; from the command to the first answer of the new version {middle:.2} ms, \
         {slowest:.1} ms at most.",
        LOAD.1
    );
    kennel.stop().await
}

fn requests(proxy: &Proxy, path: &str) -> Requests {
    let text = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", host(DEPLOYED));
    Requests { address: proxy.address, texts: Rc::from([text]), status: 200, tls: None }
}

/// By how much a gigabyte to one visitor made its memory grow, in MB.
async fn pass_gigabyte(kennel: &Proxy) -> anyhow::Result<f64> {
    let before = memory_kib(kennel.pid())?;
    load::run(&requests(kennel, "/big"), 1, Manner::Keep, async |seen| {
        while seen.bytes() < GIGABYTE {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    })
    .await?;
    Ok((memory_kib(kennel.pid())? - before) * 1024.0 / 1e6)
}

/// Deploys the service again and again: how long each first answer took, in milliseconds, and how many connections of
/// visitors were closed between two requests.
async fn switch(kennel: &mut Proxy, directory: &Path, switches: usize) -> anyhow::Result<(Vec<f64>, u64)> {
    let database = SqliteConnectOptions::new().filename(file(directory, "kennel.db"));
    let mut rows = SqliteConnection::connect_with(&database).await?;
    let mut console = kennel.console()?;
    // The last version outlives the visitors.
    let mut running = None;
    load::run(&requests(kennel, "/"), LOAD.0, Manner::Rate(LOAD.1), async |seen| {
        let mut probe = TcpStream::connect(kennel.address).await?;
        let target = i64::try_from(DEPLOYED + 1)?;
        let (mut old, mut firsts) = (target, Vec::new());
        for number in 0..switches {
            let version = Version::start(number).await?;
            let new = i64::try_from(HOSTS + 2 + number)?;
            record(&mut rows, target, (old, new), version.port).await?;
            let begun = Instant::now();
            console.drain(old).await?;
            while ask(&mut probe).await? != version.name {}
            firsts.push(begun.elapsed().as_secs_f64() * 1000.0);
            console.drained().await?;
            // The one before ends here.
            (old, running) = (new, Some(version));
        }
        Ok((firsts, seen.closed()))
    })
    .await
}

/// Makes `new` the live deployment of the target, in the place of `old`.
async fn record(rows: &mut SqliteConnection, target: i64, (old, new): (i64, i64), port: u16) -> anyhow::Result<()> {
    let mut rows = rows.begin().await?;
    for (text, id) in [
        ("update deployments set state = 'retired', step = null where id = ?", old),
        ("delete from ports where deployment_id = ?", old),
    ] {
        sqlx::query(text).bind(id).execute(&mut *rows).await?;
    }
    let insert =
        "insert into deployments (id, target_id, build_id, state, step, created_at) values (?, ?, 1, 'live', null, 0)";
    sqlx::query(insert).bind(new).bind(target).execute(&mut *rows).await?;
    let insert = "insert into ports (port, deployment_id) values (?, ?)";
    sqlx::query(insert).bind(port).bind(new).execute(&mut *rows).await?;
    let update = "update routes set deployment_id = ? where target_id = ?";
    sqlx::query(update).bind(new).bind(target).execute(&mut *rows).await?;
    Ok(rows.commit().await?)
}

/// One version of the service, which answers with its name until it is dropped.
struct Version {
    name: String,
    port: u16,
    _connections: JoinSet<anyhow::Result<()>>,
}

impl Version {
    async fn start(number: usize) -> anyhow::Result<Self> {
        let listener = free_port().await?;
        let (name, port) = (format!("{number:0DIGITS$}"), listener.local_addr()?.port());
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {DIGITS}\r\n\r\n{name}");
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await?;
                connections.spawn(reply(stream, answer.clone()));
            }
        });
        Ok(Self { name, port, _connections: accepting })
    }
}

/// The lowest port a deployment may have that nobody listens on.
async fn free_port() -> anyhow::Result<TcpListener> {
    for port in 18000..=19999 {
        if let Ok(listener) = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
            return Ok(listener);
        }
    }
    anyhow::bail!("no port is free")
}

async fn reply(mut stream: TcpStream, answer: String) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut seen = Vec::new();
    while stream.read_buf(&mut seen).await? > 0 {
        if seen.ends_with(b"\r\n\r\n") {
            stream.write_all(answer.as_bytes()).await?;
            seen.clear();
        }
    }
    Ok(())
}

/// The last characters of an answer over a connection that is kept: the version's name.
async fn ask(stream: &mut TcpStream) -> anyhow::Result<String> {
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", host(DEPLOYED)).as_bytes()).await?;
    let mut seen = Vec::new();
    let whole = |seen: &[u8]| {
        let text = std::str::from_utf8(seen).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let head = head.to_ascii_lowercase();
        let length: usize = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse().ok()?;
        (body.len() == length).then(|| (head.starts_with("http/1.1 200 "), body[length - DIGITS..].to_owned()))
    };
    loop {
        anyhow::ensure!(stream.read_buf(&mut seen).await? > 0, "the connection was closed without an answer");
        if let Some((good, name)) = whole(&seen) {
            anyhow::ensure!(good, "{}", String::from_utf8_lossy(&seen));
            return Ok(name);
        }
    }
}
