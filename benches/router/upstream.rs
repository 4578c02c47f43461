//! The service behind all proxies: 1,000 ports on loopback, a short answer, and one of 100 MB.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::HOSTS;

/// What a request for `/big` is answered with.
pub(crate) const BIG: usize = 100_000_000;
/// Ports that a deployment may have; the highest are taken, since kennel gives out the lowest first.
const PORTS: std::ops::RangeInclusive<u16> = 18000..=19999;

/// The ports, one for each host.
pub(crate) struct Upstream {
    pub(crate) ports: Vec<u16>,
}

/// Answers on as many free ports as there are hosts, from a thread of its own, for as long as the process lives.
pub(crate) fn start() -> anyhow::Result<Upstream> {
    let mut listeners = Vec::new();
    for port in PORTS.rev() {
        if listeners.len() < HOSTS
            && let Ok(listener) = std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        {
            listener.set_nonblocking(true)?;
            listeners.push((port, listener));
        }
    }
    anyhow::ensure!(listeners.len() == HOSTS, "too few ports are free");
    let ports = listeners.iter().map(|(port, _)| *port).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for (_, listener) in listeners {
                tasks.spawn(accept(listener));
            }
            while tasks.join_next().await.is_some() {}
        });
    });
    Ok(Upstream { ports })
}

async fn accept(listener: std::net::TcpListener) -> anyhow::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let chunk: Arc<[u8]> = vec![b'x'; 256 * 1024].into();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("cannot accept")?;
                connections.spawn(talk(stream, Arc::clone(&chunk)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn talk(mut stream: TcpStream, chunk: Arc<[u8]>) -> std::io::Result<()> {
    const SHORT: &[u8] = b"HTTP/1.1 200 OK\r\nServer: upstream\r\nDate: Sat, 21 Nov 2026 12:00:00 GMT\r\n\
        Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\nX-Request-Id: 7d1f4a\r\n\
        Content-Length: 100\r\n\r\n\
        0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";
    stream.set_nodelay(true)?;
    let mut seen = Vec::with_capacity(4096);
    loop {
        while !seen.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut seen).await? == 0 {
                return Ok(());
            }
        }
        if seen.starts_with(b"GET /big ") {
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n").as_bytes()).await?;
            let mut left = BIG;
            while left > 0 {
                let part = left.min(chunk.len());
                stream.write_all(&chunk[..part]).await?;
                left -= part;
            }
        } else {
            stream.write_all(SHORT).await?;
        }
        seen.clear();
    }
}
