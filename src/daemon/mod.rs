//! Builds everything, starts it in order, stops it in order.

mod opening;

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use jiff::Timestamp;
use nix::fcntl::Flock;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::api::{self, Api};
use crate::builder::{self, Builder};
use crate::caches::Caches;
use crate::certificates::{self, Keeper};
use crate::config::{self, Config};
use crate::crash::{self, Point};
use crate::deployer::{self, Deployer, Interrupt};
use crate::dns::{self, Records};
use crate::host::Machine;
use crate::monitor::Monitor;
use crate::reconciler::{DatabaseKeeper, Reconciler};
use crate::router::{self, Router};
use crate::sockets::Sockets;
use crate::store::{RunId, Store};
use crate::telemetry::chain;
use crate::wake::Bell;
use crate::webhook::{self, Webhook};
use opening::{host_key, listen, lock, note_projects, open_store, read_pages, read_secrets, read_token};

/// Where env files and the API's socket lie.
pub const RUN_DIR: &str = "/run/kennel";

/// What the daemon is made of beyond its file.
pub struct Parts {
    /// The machine to work on.
    pub machine: Arc<dyn Machine>,
    /// Where the daemon keeps its own: database, keys, certificates.
    pub own_dir: PathBuf,
    /// Where the API's Unix socket lies.
    pub socket: PathBuf,
    /// Listening sockets that are there already.
    pub sockets: Sockets,
    /// Where store paths lie.
    pub store_dir: PathBuf,
    /// What tests do between a step's effect and its record.
    pub interrupt: Interrupt,
}

/// A daemon at work.
pub struct Running {
    store: Store,
    config: config::Shared,
    secrets: webhook::Secrets,
    /// Rung when the file was read again.
    bells: [Bell; 5],
    /// Where the router listens.
    pub router_addr: SocketAddr,
    /// Where it listens for HTTPS, if anywhere.
    pub https_addr: Option<SocketAddr>,
    /// Where the API listens.
    pub api_addr: SocketAddr,
    shutdown: CancellationToken,
    intake: CancellationToken,
    reconciler: Reconciler,
    loops: JoinSet<()>,
    router: router::Handle,
    visitors: JoinSet<()>,
    operators: JoinSet<()>,
    /// What another process would need to listen as well.
    sockets: Vec<OwnedFd>,
    lock: Option<Flock<File>>,
}

impl Running {
    /// Starts everything: lock, database, first route table, listeners, loops.
    ///
    /// # Errors
    /// When any of it cannot be had; then nothing runs.
    pub async fn start(config: Config, mut parts: Parts) -> anyhow::Result<Self> {
        let (state_dir, own_dir) = (config.state_dir.clone(), parts.own_dir);
        tokio::fs::create_dir_all(&own_dir).await.with_context(|| format!("cannot make {}", own_dir.display()))?;
        let lock = lock(&own_dir.join("kennel.lock"))?;
        crash::point(Point::StartLocked);
        let secrets: webhook::Secrets = Arc::new(ArcSwap::from_pointee(read_secrets(&config).await?));
        let key = host_key(&own_dir).await?;
        let store = open_store(&own_dir).await?;
        note_projects(&store, &config).await?;
        crash::point(Point::StartOpened);

        let (builder_bell, deployer_bell, ended) = (Bell::default(), Bell::default(), Bell::default());
        let (certificates_bell, records_bell, caches_bell) = (Bell::default(), Bell::default(), Bell::default());
        let run = RunId::fresh();
        let shared: config::Shared = Arc::new(ArcSwap::from_pointee(config));
        let now = shared.load_full();

        let webhook = webhook::router(Webhook {
            store: store.clone(),
            config: shared.clone(),
            secrets: secrets.clone(),
            builder: builder_bell.clone(),
            deployer: deployer_bell.clone(),
        });
        let (shutdown, intake) = (CancellationToken::new(), CancellationToken::new());
        let operators = api::Access {
            token: read_token(&now).await?,
            group: api::GROUP.to_owned(),
            control_domain: now.control_domain.clone(),
        };
        let metrics = router::Metrics::default();
        let app = api::router(Api {
            metrics: Arc::new({
                let metrics = metrics.clone();
                move || metrics.render()
            }),
            store: store.clone(),
            machine: parts.machine.clone(),
            config: shared.clone(),
            logs: state_dir.join("logs"),
            access: Arc::new(operators),
            builder: builder_bell.clone(),
            deployer: deployer_bell.clone(),
            shutdown: intake.clone(),
        })
        .merge(webhook);

        // What comes through the router bears no `api::Caller`, and so counts as coming from outside.
        let control = now.control_domain.clone().map(|domain| (domain, app.clone()));
        let defaults = router::RouterConfig::default();
        let workers = now.router.workers.unwrap_or(defaults.workers);
        let (router, handle) = Router::new(
            router::RouterConfig {
                store_dir: parts.store_dir,
                control,
                https: https(&now),
                hosts_changed: vec![certificates_bell.clone(), records_bell.clone()],
                workers,
                trusted: now.router.trusted_proxies.clone(),
                proxy_protocol: now.router.proxy_protocol,
                access_log: now.router.access_log,
                pages: read_pages(&now).await?,
                metrics,
                ..defaults
            },
            store.clone(),
        );
        let deployer = deployer::Context {
            store: store.clone(),
            machine: parts.machine.clone(),
            router: handle.clone(),
            config: shared.clone(),
            key,
            run: run.clone(),
            bell: deployer_bell.clone(),
            ended: ended.clone(),
            databases: Bell::default(),
            interrupt: parts.interrupt,
        };
        let builder = builder::Context {
            store: store.clone(),
            machine: parts.machine,
            config: shared.clone(),
            run,
            bell: builder_bell.clone(),
            deployer: deployer_bell.clone(),
            ended,
            caches: caches_bell.clone(),
        };

        handle.reload().await.context("cannot build the first route table")?;
        let (public, router_addr) = listen(&mut parts.sockets, now.router.http)?;
        let (secure, https_addr) = match now.router.https {
            Some(https) => listen(&mut parts.sockets, https).map(|(sockets, address)| (sockets, Some(address)))?,
            None => (Vec::new(), None),
        };
        let (tcp, api_addr) = listen(&mut parts.sockets, now.api.listen)?;
        let unix = match parts.sockets.unix(&parts.socket) {
            Ok(Some(passed)) => Ok(passed),
            Ok(None) => api::listen_unix(&parts.socket, api::GROUP),
            Err(err) => Err(err),
        };
        let unix = unix.with_context(|| format!("cannot listen on {}", parts.socket.display()))?;
        for address in parts.sockets.left() {
            error!(
                "kennel.socket holds {address}, which is no address of kennel's file: whoever connects there waits for \
                 ever. Name the same addresses in both, then: systemctl restart kennel.socket kennel.service"
            );
        }
        drop(parts.sockets);
        let mark = dns::Mark::of(&store).await?;
        let records = dns::Context {
            store: store.clone(),
            config: shared.clone(),
            mark: mark.clone(),
            bell: records_bell.clone(),
        };
        let certificates = certificates::Context {
            store: store.clone(),
            router: handle.clone(),
            config: shared.clone(),
            mark,
            dir: own_dir.clone(),
            bell: certificates_bell.clone(),
        };
        // Before anybody is served by TLS.
        let keeper = Keeper::start(certificates).await.context("cannot read the certificates there are")?;

        // Deliveries and operators are served for as long as visitors are: what they ask for is written down.
        let closed = handle.closed();
        let sockets = tcp.iter().chain(&public).chain(&secure).map(AsFd::as_fd).chain([unix.as_fd()]);
        let sockets = sockets.map(|socket| socket.try_clone_to_owned()).collect::<Result<_, _>>()?;
        let (mut visitors, mut operators) = (JoinSet::new(), JoinSet::new());
        let listeners = router::Listeners { http: public, https: secure };
        visitors.spawn(router.run(listeners, shutdown.clone()));
        for tcp in tcp {
            let (app, closed) = (app.clone(), closed.clone());
            operators.spawn(async move {
                if let Err(err) = api::serve_tcp(tcp, app, closed).await {
                    error!(error = %chain(&err), "The API no longer listens on {api_addr}");
                }
            });
        }
        operators.spawn(api::serve_unix(unix, app, closed));
        crash::point(Point::StartListening);

        let monitor = Monitor::new(store.clone(), handle.clone(), shared.clone());
        let caches = Caches::new(store.clone(), shared.clone(), own_dir.join("caches"), caches_bell.clone());
        let reconciler = Reconciler::new(deployer.clone(), own_dir);
        if let Err(err) = reconciler.begin().await {
            error!(error = %chain(&*err), "Could not compare the rows with the machine");
        }
        crash::point(Point::StartReconciled);
        let mut loops = JoinSet::new();
        loops.spawn(reconciler.clone().run(intake.clone()));
        loops.spawn(keeper.run(intake.clone()));
        loops.spawn(Records::new(records).run(intake.clone()));
        loops.spawn(DatabaseKeeper::new(deployer.clone()).run(intake.clone()));
        loops.spawn(Deployer::new(deployer).run(intake.clone()));
        loops.spawn(Builder::new(builder).run(intake.clone()));
        loops.spawn(monitor.run(intake.clone()));
        loops.spawn(caches.run(intake.clone()));
        info!("kennel serves visitors on {router_addr} and operators on {api_addr}");
        Ok(Self {
            store,
            config: shared,
            secrets,
            bells: [deployer_bell, builder_bell, certificates_bell, records_bell, caches_bell],
            router_addr,
            https_addr,
            api_addr,
            shutdown,
            intake,
            reconciler,
            loops,
            router: handle,
            visitors,
            operators,
            sockets,
            lock: Some(lock),
        })
    }

    /// Reads what a start reads of files beside its own, so that one that will fail can be told before.
    ///
    /// # Errors
    /// When one cannot be read.
    pub async fn rehearse(config: &Config) -> anyhow::Result<()> {
        read_secrets(config).await?;
        read_token(config).await?;
        read_pages(config).await?;
        Ok(())
    }

    /// The database, for tests and benchmarks that look at rows.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Does at once what the daemon does every 10 minutes, as of a time.
    ///
    /// # Errors
    /// When rows or machine could not be read.
    pub async fn upkeep(&self, now: Timestamp) -> anyhow::Result<()> {
        self.reconciler.upkeep(now).await;
        self.reconciler.run_once().await
    }

    /// Reads the file again; projects and limits change, addresses and directories do not.
    ///
    /// # Errors
    /// When the file is faulty; then nothing has changed.
    pub async fn reload(&self, path: &Path) -> anyhow::Result<()> {
        let config = config::load(path)?;
        let secrets = read_secrets(&config).await?;
        note_projects(&self.store, &config).await?;
        // The operator may have mended what they failed for.
        self.store.retry_certificates().await?;
        self.store.retry_pushes().await?;
        crash::point(Point::ReloadNoted);
        self.secrets.store(Arc::new(secrets));
        self.config.store(Arc::new(config));
        self.bells.iter().for_each(Bell::ring);
        crash::point(Point::ReloadDone);
        Ok(())
    }

    /// Stops in order: loops to a step's boundary, requests to their end, database closed.
    pub async fn stop(mut self) {
        self.intake.cancel();
        while self.loops.join_next().await.is_some() {}
        crash::point(Point::StopLoopsEnded);
        self.shutdown.cancel();
        self.sockets.clear();
        while self.visitors.join_next().await.is_some() {}
        while self.operators.join_next().await.is_some() {}
        self.store.close().await;
    }

    /// The sockets it listens on.
    #[must_use]
    pub fn sockets(&self) -> &[OwnedFd] {
        &self.sockets
    }

    /// Lets go of rows, machine and sockets, for another process to take; answers and WebSockets that have begun go on.
    pub async fn leave(&mut self) {
        self.intake.cancel();
        while self.loops.join_next().await.is_some() {}
        self.router.leave().await;
        while self.operators.join_next().await.is_some() {}
        self.store.close().await;
        self.sockets.clear();
        self.lock = None;
    }

    /// Returns when what went on after [`Self::leave`] has ended.
    pub async fn drained(&mut self) {
        while self.visitors.join_next().await.is_some() {}
    }
}

/// How the router treats those who come by TLS, and those who could.
fn https(config: &Config) -> router::Https {
    let redirect_to = config.router.https.map(|https| https.port()).filter(|_| config.tls.redirect);
    router::Https { redirect_to, hsts: config.tls.hsts }
}
