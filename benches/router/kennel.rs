//! kennel's side: a database with 1,000 routes, and its router on it, as the daemon runs it.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use kennel::model::{DeploymentId, TargetId};
use kennel::router::{Certificate, Certificates, Handle, Limits, Listeners, Router, RouterConfig, Timeouts};
use kennel::store::Store;
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::deploys::DEPLOYED;
use crate::proxies::secure;
use crate::upstream::Upstream;
use crate::{HOSTS, file};

/// The host of the static site.
pub(crate) const SITE_HOST: &str = "site-main.shop.example.com";
const SITE: &str = "00000000000000000000000000000000-site";

/// The host of this number.
pub(crate) fn host(number: usize) -> String {
    format!("service{number}-main.shop.example.com")
}

/// A static site's directory.
pub(crate) struct Site {
    pub(crate) directory: std::path::PathBuf,
}

/// Makes the site's files, and the rows of a kennel that serves it and [`HOSTS`] services.
pub(crate) async fn prepare(directory: &Path, upstream: &Upstream) -> anyhow::Result<Site> {
    let site = file(directory, "store").join(SITE);
    std::fs::create_dir_all(&site)?;
    std::fs::write(site.join("small.css"), "a{color:red}\n".repeat(79).get(..1024).context("too short")?)?;
    std::fs::write(site.join("large.js"), "let a = 'some text';\n".repeat(5000).get(..102_400).context("too short")?)?;

    let database = file(directory, "kennel.db");
    Store::open(&database).await?.close().await;
    let mut rows = SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(&database)).await?;
    let mut rows = rows.begin().await?;
    sqlx::raw_sql(
        "insert into projects (name, configured) values ('shop', 1);
         insert into branches (id, project, ref, slug, environment, wanted, pushed_at)
           values (1, 'shop', 'heads/main', 'main', 'prod', 1, 0);
         insert into builds (id, branch_id, commit_sha, state, queued_at) values (1, 1, 'c', 'success', 0);",
    )
    .execute(&mut *rows)
    .await?;
    for number in 0..=HOSTS {
        let (name, host, kind, port) = match upstream.ports.get(number) {
            Some(port) => (format!("service{number}"), host(number), "service", Some(*port)),
            None => ("site".to_owned(), SITE_HOST.to_owned(), "site", None),
        };
        let settings = match kind {
            "service" => serde_json::json!({
                "kind": "service", "flake_output": name, "health_check": {"http": "/health"},
                "health_check_timeout_secs": 30, "drain_secs": 30, "custom_domain": null,
                "preview_database": false, "secrets": [], "env": {},
            }),
            _ => serde_json::json!({"kind": "site", "flake_output": name, "spa": false, "custom_domain": null}),
        };
        let id = i64::try_from(number + 1)?;
        sqlx::query(
            "insert into artifacts (build_id, name, kind, state, store_path, settings, nix_ms, rooted)
             values (1, ?, ?, 'built', ?, ?, 0, 0)",
        )
        .bind(&name)
        .bind(kind)
        .bind(format!("/nix/store/{SITE}"))
        .bind(settings.to_string())
        .execute(&mut *rows)
        .await?;
        sqlx::query(
            "insert into targets (id, branch_id, name, kind, host, tag, user_name, created_at)
             values (?, 1, ?, ?, ?, ?, ?, 0)",
        )
        .bind(id)
        .bind(&name)
        .bind(kind)
        .bind(&host)
        .bind(&name)
        .bind(&name)
        .execute(&mut *rows)
        .await?;
        sqlx::query("insert into deployments (id, target_id, build_id, state, step, created_at) values (?, ?, 1, 'live', null, 0)")
            .bind(id)
            .bind(id)
            .execute(&mut *rows)
            .await?;
        if let Some(port) = port {
            let insert = sqlx::query("insert into ports (port, deployment_id) values (?, ?)").bind(port).bind(id);
            insert.execute(&mut *rows).await?;
        }
        sqlx::query("insert into routes (host, target_id, deployment_id) values (?, ?, ?)")
            .bind(&host)
            .bind(id)
            .bind(id)
            .execute(&mut *rows)
            .await?;
    }
    rows.commit().await?;
    Ok(Site { directory: site })
}

/// The daemon's own runtime; it has one thread here, as every proxy has.
fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()
}

async fn router(directory: &Path) -> anyhow::Result<(Router, Handle)> {
    let store = Store::open(&file(directory, "kennel.db")).await?;
    let config = RouterConfig {
        store_dir: file(directory, "store"),
        workers: NonZeroUsize::MIN,
        limits: Limits { connections: 16_384, connections_of_one: 16_384, ..Limits::default() },
        // Connections that idle are to be measured, not closed.
        timeouts: Timeouts { request_header: Duration::from_secs(600), ..Timeouts::default() },
        ..RouterConfig::default()
    };
    let (router, handle) = Router::new(config, store);
    handle.reload().await.context("cannot build the table")?;
    Ok((router, handle))
}

/// Is the router on the socket that is the standard input, until it is told to end; then it finishes what has begun.
pub(crate) fn serve_held(directory: &Path) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let (router, _handle) = router(directory).await?;
        let socket = std::net::TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        socket.set_nonblocking(true)?;
        let listeners = Listeners { http: vec![tokio::net::TcpListener::from_std(socket)?], https: Vec::new() };
        let shutdown = CancellationToken::new();
        let mut told = signal(SignalKind::terminate())?;
        tokio::join!(router.run(listeners, shutdown.clone()), async {
            told.recv().await;
            shutdown.cancel();
        });
        Ok(())
    })
}

/// Is the router until the process is ended.
pub(crate) fn serve(address: SocketAddr, directory: &Path) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let (router, handle) = router(directory).await?;
        let read = |name| std::fs::read(file(directory, name));
        let certificate = Certificate::read(&read("tls.crt")?, &read("tls.key")?)?;
        handle.show(Certificates::new([std::sync::Arc::new(certificate)], jiff::Timestamp::now()));
        let listeners = Listeners {
            http: vec![tokio::net::TcpListener::bind(address).await?],
            https: vec![tokio::net::TcpListener::bind(secure(address)).await?],
        };
        tokio::select! {
            () = router.run(listeners, CancellationToken::new()) => Ok(()),
            problem = obey(&handle) => problem,
        }
    })
}

/// Takes deployments from the standard input: each has been replaced in the rows, and is to be drained.
async fn obey(handle: &Handle) -> anyhow::Result<()> {
    let input = pipe::Receiver::from_owned_fd(std::io::stdin().as_fd().try_clone_to_owned()?)?;
    let mut output = pipe::Sender::from_owned_fd(std::io::stdout().as_fd().try_clone_to_owned()?)?;
    let mut input = BufReader::new(input).lines();
    let target = TargetId(i64::try_from(DEPLOYED + 1)?);
    while let Some(line) = input.next_line().await? {
        handle.reload_target(target).await?;
        handle.drain(DeploymentId(line.parse()?), Duration::from_secs(30)).await;
        output.write_all(b"drained\n").await?;
    }
    std::future::pending().await
}
