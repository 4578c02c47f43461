//! The proxies: how each is configured for the same work, started on the second core, and stopped.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::file;
use crate::kennel::{SITE_HOST, Site, host};
use crate::upstream::Upstream;

/// What starts kennel's daemon.
const UNIT: &str = include_str!("../../systemd/kennel.service");

/// A program that can be measured.
#[derive(Debug)]
pub(crate) struct Kind {
    /// What it is called.
    pub(crate) name: &'static str,
    /// Whether it serves files.
    pub(crate) serves_files: bool,
    /// Whether it is configured for TLS.
    pub(crate) serves_tls: bool,
    port: u16,
    program: Option<&'static str>,
    configure: fn(&Setting<'_>) -> String,
    arguments: fn(&str) -> Vec<String>,
}

/// What a configuration is made of.
struct Setting<'a> {
    port: u16,
    directory: &'a Path,
    upstream: &'a Upstream,
    site: &'a Site,
}

/// Where the same is served by TLS.
pub(crate) fn secure(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port() + 100)
}

/// The one this is about.
pub(crate) const KENNEL: Kind = Kind {
    name: "kennel",
    serves_files: true,
    serves_tls: true,
    port: 17_001,
    program: None,
    configure: |_| String::new(),
    arguments: |_| Vec::new(),
};

/// All of them.
pub(crate) const KINDS: &[Kind] = &[
    KENNEL,
    Kind {
        name: "nginx",
        serves_files: true,
        serves_tls: true,
        port: 17_002,
        program: Some("nginx"),
        configure: nginx,
        arguments: |path| vec!["-c".to_owned(), path.to_owned()],
    },
    Kind {
        name: "HAProxy",
        serves_files: false,
        serves_tls: true,
        port: 17_003,
        program: Some("haproxy"),
        configure: haproxy,
        arguments: |path| vec!["-db".to_owned(), "-f".to_owned(), path.to_owned()],
    },
    Kind {
        name: "Caddy",
        serves_files: true,
        serves_tls: false,
        port: 17_004,
        program: Some("caddy"),
        configure: caddy,
        arguments: |path| ["run", "--adapter", "caddyfile", "--config", path].map(str::to_owned).to_vec(),
    },
];

/// A running proxy.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) kind: &'static Kind,
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Proxy {
    /// Starts it; `None` when it is not installed.
    pub(crate) async fn start(
        kind: &'static Kind,
        directory: &Path,
        upstream: &Upstream,
        site: &Site,
    ) -> anyhow::Result<Option<Self>> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, kind.port));
        let mut command = Command::new("taskset");
        command.args(["-c", "1"]).kill_on_drop(true).stdin(Stdio::null());
        match kind.program {
            None => {
                command.arg(std::env::current_exe()?).arg("--serve").arg(address.to_string()).arg(directory);
                command.stdin(Stdio::piped()).stdout(Stdio::piped());
                // As the daemon has it.
                command.envs(UNIT.lines().filter_map(|line| line.strip_prefix("Environment=")?.split_once('=')));
            }
            Some(program) => {
                let Some(program) = find(program) else { return Ok(None) };
                let path = file(directory, &format!("{}.conf", kind.name));
                let setting = Setting { port: kind.port, directory, upstream, site };
                std::fs::write(&path, (kind.configure)(&setting))?;
                let path = path.to_str().context("a path that is not UTF-8")?;
                command.arg(program).args((kind.arguments)(path));
                let log = std::fs::File::create(file(directory, &format!("{}.log", kind.name)))?;
                command.env("GOMAXPROCS", "1").env("HOME", directory).stdout(log.try_clone()?).stderr(log);
            }
        }
        let child = command.spawn().context("cannot run taskset")?;
        let mut proxy = Self { kind, address, child };
        for _ in 0..300 {
            if tokio::net::TcpStream::connect(address).await.is_ok() {
                return Ok(Some(proxy));
            }
            if let Some(status) = proxy.child.try_wait()? {
                let log = std::fs::read_to_string(file(directory, &format!("{}.log", kind.name))).unwrap_or_default();
                anyhow::bail!("it ended with {status}: {log}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::bail!("it does not listen on {address}")
    }

    /// Where kennel is told to switch. There is one.
    pub(crate) fn console(&mut self) -> anyhow::Result<Console> {
        let (input, output) = (self.child.stdin.take(), self.child.stdout.take());
        let (input, output) = input.zip(output).context("only kennel has one, and once")?;
        Ok(Console { input, output: BufReader::new(output).lines() })
    }

    /// Its process; taskset has become it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it is only reaped by `stop`")
    }

    /// Ends it.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("cannot end it")
    }
}

/// Where kennel is told to switch, and says that it has.
#[derive(Debug)]
pub(crate) struct Console {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Console {
    /// Has it read the rows again, and let the requests in this deployment finish.
    pub(crate) async fn drain(&mut self, deployment: i64) -> anyhow::Result<()> {
        Ok(self.input.write_all(format!("{deployment}\n").as_bytes()).await?)
    }

    /// Returns when they have.
    pub(crate) async fn drained(&mut self) -> anyhow::Result<()> {
        self.output.next_line().await?.map(drop).context("kennel has ended")
    }
}

/// Where a program is, in PATH or where Debian puts daemons.
fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').map(|directory| Path::new(directory).join(program)).find(|path| path.is_file())
}

fn nginx(setting: &Setting<'_>) -> String {
    let Setting { port, directory, .. } = setting;
    let directory = directory.display();
    let mut text = format!(
        "daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 40000; user root;\n\
         pid {directory}/nginx.pid; error_log {directory}/nginx-error.log;\n\
         events {{ worker_connections 30000; multi_accept on; }}\nhttp {{\n\
         access_log off; sendfile on; tcp_nopush on; server_names_hash_max_size 8192; server_names_hash_bucket_size 128;\n\
         keepalive_timeout 600s; keepalive_requests 100000000; client_header_timeout 10s; client_body_timeout 60s;\n\
         proxy_connect_timeout 2s; proxy_read_timeout 60s; proxy_send_timeout 60s; proxy_max_temp_file_size 0;\n\
         proxy_http_version 1.1; proxy_next_upstream error non_idempotent; open_file_cache max=1000;\n\
         client_body_temp_path {directory}/b; proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f;\n\
         uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;\n\
         proxy_set_header Host $host; proxy_set_header Connection \"\";\n\
         proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;\n\
         proxy_set_header X-Forwarded-Host $host; proxy_set_header X-Forwarded-Port $server_port;\n\
         proxy_set_header X-Real-IP $remote_addr; proxy_set_header Forwarded \"for=$remote_addr;host=$host;proto=$scheme\";\n\
         types {{ text/css css; text/javascript js; }}\n\
         ssl_certificate {directory}/tls.crt; ssl_certificate_key {directory}/tls.key; ssl_protocols TLSv1.3;\n\
         server {{ listen 127.0.0.1:{port} default_server backlog=4096; return 404; }}\n\
         server {{ listen 127.0.0.1:{port}; server_name {SITE_HOST}; root {}; }}\n",
        setting.site.directory.display()
    );
    for (number, upstream) in setting.upstream.ports.iter().enumerate() {
        _ = writeln!(
            text,
            "upstream u{number} {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 100000000; \
             keepalive_timeout 4s; }}\n\
             server {{ listen 127.0.0.1:{port}; listen 127.0.0.1:{} ssl http2; server_name {}; \
             location / {{ proxy_pass http://u{number}; }} }}",
            port + 100,
            host(number)
        );
    }
    text + "}\n"
}

fn haproxy(setting: &Setting<'_>) -> String {
    let mut map = String::new();
    let mut text = format!(
        "global\n  no strict-limits\n  nbthread 1\n  maxconn 12000\n  tune.maxpollevents 200\n\
         defaults\n  mode http\n  timeout connect 2s\n  timeout client 60s\n  timeout server 60s\n\
         \x20 timeout http-keep-alive 600s\n  timeout http-request 10s\n  timeout tunnel 1h\n  maxconn 12000\n\
         \x20 option forwardfor\n  option splice-auto\n  http-reuse safe\n  retries 1\n\
         frontend front\n  bind 127.0.0.1:{port} backlog 4096\n\
         \x20 bind 127.0.0.1:{} ssl crt {}/tls.pem alpn h2,http/1.1 ssl-min-ver TLSv1.3\n\
         \x20 http-request set-header X-Forwarded-Proto http\n  http-request set-header X-Forwarded-Host %[req.hdr(host)]\n\
         \x20 http-request set-header X-Forwarded-Port %[dst_port]\n  http-request set-header X-Real-IP %[src]\n\
         \x20 http-request set-header Forwarded for=%[src];host=%[req.hdr(host)];proto=http\n\
         \x20 use_backend %[req.hdr(host),lower,map({}/hosts.map)]\n  default_backend none\n\
         backend none\n  http-request return status 404\n",
        setting.port + 100,
        setting.directory.display(),
        setting.directory.display(),
        port = setting.port,
    );
    for (number, upstream) in setting.upstream.ports.iter().enumerate() {
        _ = writeln!(map, "{} u{number}", host(number));
        _ = writeln!(text, "backend u{number}\n  server s 127.0.0.1:{upstream} pool-max-conn 1024 pool-purge-delay 4s");
    }
    // Nothing else reads it, and a configuration without it does not start.
    _ = std::fs::write(file(setting.directory, "hosts.map"), map);
    text
}

fn caddy(setting: &Setting<'_>) -> String {
    let port = setting.port;
    let mut text = format!(
        "{{\n admin off\n auto_https off\n log {{\n level ERROR\n }}\n}}\n\
         http://{SITE_HOST}:{port} {{\n bind 127.0.0.1\n root * {}\n file_server\n}}\n",
        setting.site.directory.display()
    );
    for (number, upstream) in setting.upstream.ports.iter().enumerate() {
        _ = writeln!(
            text,
            "http://{}:{port} {{\n bind 127.0.0.1\n reverse_proxy 127.0.0.1:{upstream} {{\n \
             transport http {{\n keepalive 4s\n keepalive_idle_conns_per_host 1024\n }}\n }}\n}}",
            host(number)
        );
    }
    text
}
