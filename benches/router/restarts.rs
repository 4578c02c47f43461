//! What visitors notice of kennel's restarts while somebody else holds its listening socket, as systemd does.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::deploys::DEPLOYED;
use crate::kennel::host;
use crate::load::{self, Manner, Requests};

/// How many visitors ask, and how often each of them at the least.
const LOAD: (usize, u64) = (8, 2000);
/// How many answers there are between two restarts, at the least.
const BETWEEN: u64 = 500;

/// Restarts kennel so often under load, and prints what came of it. A visitor who is failed ends it.
pub(crate) async fn measure(directory: &Path, restarts: usize) -> anyhow::Result<()> {
    let socket = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let address = socket.local_addr()?;
    let text = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", host(DEPLOYED + 1));
    let requests = Requests { address, texts: Rc::from([text]), status: 200, tls: None };
    let mut kennel = start(&socket, directory)?;
    let (answers, slowest) = load::run(&requests, LOAD.0, Manner::Keep, async |seen| {
        for _ in 0..restarts {
            let enough = seen.answers() + BETWEEN;
            reach(|| seen.answers() >= enough).await;
            let pid = kennel.id().context("it has ended by itself")?;
            kill(Pid::from_raw(pid.try_into()?), Signal::SIGTERM)?;
            let status = kennel.wait().await?;
            anyhow::ensure!(status.success(), "it ended with {status}");
            kennel = start(&socket, directory)?;
        }
        reach(|| seen.answers() >= LOAD.0 as u64 * LOAD.1).await;
        anyhow::ensure!(seen.closed() == 0, "{} requests were left unanswered", seen.closed());
        Ok((seen.answers(), seen.take_latencies().into_iter().fold(0.0, f64::max)))
    })
    .await
    .context("a visitor was failed")?;
    println!(
        "\n{restarts} restarts, {} visitors, {answers} requests: none refused, reset or left unanswered; the slowest took \
         {slowest:.0} ms.",
        LOAD.0
    );
    kennel.kill().await.context("cannot end it")
}

async fn reach(is_reached: impl Fn() -> bool) {
    while !is_reached() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// kennel, with `socket` as its standard input.
fn start(socket: &TcpListener, directory: &Path) -> anyhow::Result<Child> {
    let mut command = Command::new("taskset");
    command.args(["-c", "1"]).arg(std::env::current_exe()?).arg("--held").arg(directory);
    command.stdin(Stdio::from(OwnedFd::from(socket.try_clone()?))).kill_on_drop(true);
    command.spawn().context("cannot run taskset")
}
