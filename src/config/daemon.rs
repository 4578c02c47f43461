//! The daemon's file, section by section; its projects are read by `served`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::served;
use super::table::{Item, Table};
use super::words::quoted;
use super::{
    AccessLog, AcmeChallenge, AcmeConfig, ApiConfig, BuilderConfig, CertificateFiles, Config, DatabaseConfig,
    DnsConfig, DnsProvider, Expiry, RecordsTo, RouterConfig, SystemdConfig, TlsConfig, UpkeepConfig,
};
use super::{cache, confinement};
use crate::model::{HostName, ProjectName};

const CLOUDFLARE: &str = "https://api.cloudflare.com/client/v4";
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// Reads the whole file.
pub(super) fn config(root: &mut Table<'_, '_>) -> Option<Config> {
    let base_domain = root.required("base_domain").and_then(Item::parse::<HostName>);
    let control_domain = root.maybe("control_domain", Item::parse::<HostName>);
    let state_dir = root.or("state_dir", PathBuf::from("/var/lib/kennel"), Item::path);
    let prune_projects = root.or("prune_projects", false, Item::boolean);
    let api = root.section("api").and_then(api);
    let router = root.section("router").and_then(router);
    let builder = root.section("builder").and_then(builder);
    let upkeep = root.section("upkeep").and_then(upkeep);
    let limits = root.section("limits").and_then(confinement::operators);
    let systemd = root.section("systemd").and_then(systemd);
    let projects = root.take("projects");
    let projects = projects.map_or(Some(BTreeMap::new()), |item| served::projects(item, base_domain.as_ref()));
    let valkey = root.maybe("valkey", database);
    let postgres = root.maybe("postgres", database);
    let tls = root.section("tls").and_then(tls);
    let acme = root.maybe("acme", acme);
    let dns = root.maybe("dns", |item| dns(item, base_domain.as_ref()));
    if let (Some(base), Some(Some(control)), Some(projects)) = (&base_domain, &control_domain, &projects) {
        check_control_domain(root, base, control, projects.keys());
    }
    if let (Some(RouterConfig { https: None, .. }), Some(tls), Some(acme)) = (&router, &tls, &acme) {
        let unused = [("tls", !tls.certificates.is_empty() || tls.hsts.is_some()), ("acme", acme.is_some())];
        for (key, _) in unused.iter().filter(|(_, given)| *given) {
            let hint = "write https = \"0.0.0.0:443\" below [router]".to_owned();
            root.fault(key, "is of no use without `router.https`", Some(hint));
        }
    }
    Some(Config {
        base_domain: base_domain?,
        control_domain: control_domain?,
        state_dir: state_dir?,
        prune_projects: prune_projects?,
        api: api?,
        router: router?,
        builder: builder?,
        upkeep: upkeep?,
        limits: limits?,
        systemd: systemd?,
        projects: projects?,
        valkey: valkey?,
        postgres: postgres?,
        tls: tls?,
        acme: acme?,
        dns: dns?,
    })
}

/// The control domain must not be one that a project's service could be given.
fn check_control_domain<'p>(
    root: &Table<'_, '_>,
    base: &HostName,
    control: &HostName,
    mut projects: impl Iterator<Item = &'p ProjectName>,
) {
    let owner = projects.find(|project| control.as_str().ends_with(&format!(".{project}.{base}")));
    if let Some(project) = owner {
        let problem = format!("\"{control}\" lies among the hostnames of project `{project}`");
        root.fault("control_domain", problem, Some(format!("choose another, such as \"kennel.{base}\"")));
    }
}

fn api(mut table: Table<'_, '_>) -> Option<ApiConfig> {
    let listen = table.or("listen", SocketAddr::from(([127, 0, 0, 1], 3000)), address);
    let token_file = table.maybe("token_file", Item::path);
    if let (Some(listen), Some(None)) = (listen, &token_file)
        && !listen.ip().is_loopback()
    {
        let problem = format!("is missing, and needed: `listen` is {listen}, which can be reached from outside");
        table.fault("token_file", problem, Some("listen on 127.0.0.1, or name a token's file".to_owned()));
    }
    Some(ApiConfig { listen: listen?, token_file: token_file? })
}

fn router(mut table: Table<'_, '_>) -> Option<RouterConfig> {
    let http = table.or("http", SocketAddr::from(([0, 0, 0, 0], 80)), address);
    let https = table.maybe("https", address);
    let count = |item: Item<'_, '_>| item.integer(1..=64).and_then(|n| NonZeroUsize::new(usize::try_from(n).ok()?));
    let workers = table.maybe("workers", count);
    let trusted_proxies = table.or("trusted_proxies", Vec::new(), |item| item.each(network));
    let proxy_protocol = table.or("proxy_protocol", false, |item| item.boolean());
    if proxy_protocol == Some(true) && trusted_proxies.as_ref().is_some_and(Vec::is_empty) {
        table.fault("proxy_protocol", "needs `trusted_proxies`: the proxies that are to be believed", None);
    }
    let words = [("off", AccessLog::Off), ("errors", AccessLog::Errors), ("all", AccessLog::All)];
    let access_log = table.or("access_log", AccessLog::Off, |item| item.one_of(&words));
    let pages = table.maybe("pages", Item::path);
    let seconds = Duration::from_secs;
    let monitor_interval = table.or("monitor_interval", seconds(30), |item| item.duration(seconds(1)..=seconds(3_600)));
    if let (Some(http), Some(Some(https))) = (http, https)
        && http == https
        && http.port() != 0
    {
        table.fault("https", format!("is {https}, where `http` listens already"), None);
    }
    Some(RouterConfig {
        http: http?,
        https: https?,
        workers: workers?,
        access_log: access_log?,
        pages: pages?,
        monitor_interval: monitor_interval?,
        trusted_proxies: trusted_proxies?,
        proxy_protocol: proxy_protocol?,
    })
}

fn builder(mut table: Table<'_, '_>) -> Option<BuilderConfig> {
    let count = |item: Item<'_, '_>| item.integer(1..=64).and_then(|n| usize::try_from(n).ok());
    let hours = |n: u64| Duration::from_secs(n * 3_600);
    let max_concurrent_builds = table.or("max_concurrent_builds", 2, count);
    let max_parallel = table.or("max_parallel", 2, count);
    let timeout = table.or("timeout", hours(1), |item| item.duration(Duration::from_secs(1)..=hours(24)));
    let log_limit_bytes = table.or("log_limit_bytes", 16 << 20, |item| item.integer(64 << 10..=1 << 30));
    let memory_max_bytes = table.or("memory_max", 4 << 30, |item| item.size(256 << 20..=1 << 40));
    let tasks_max = table.or("tasks_max", 1024, |item| item.integer(64..=65_536));
    let min_free = table.maybe("min_free", |item| item.size(0..=1 << 50));
    let cache = table.maybe("cache", cache::cache);
    Some(BuilderConfig {
        max_concurrent_builds: max_concurrent_builds?,
        max_parallel: max_parallel?,
        timeout: timeout?,
        log_limit_bytes: log_limit_bytes?,
        memory_max_bytes: memory_max_bytes?,
        tasks_max: tasks_max?,
        min_free: min_free?,
        cache: cache?,
    })
}

fn upkeep(mut table: Table<'_, '_>) -> Option<UpkeepConfig> {
    let days = |n: u64| Duration::from_secs(n * 86_400);
    let expire_after = table.or("expire_after", Expiry::After(days(7)), served::expiry);
    let keep_for = table.or("keep_for", days(30), |item| item.duration(days(1)..=days(3_650)));
    Some(UpkeepConfig { expire_after: expire_after?, keep_for: keep_for? })
}

fn systemd(mut table: Table<'_, '_>) -> Option<SystemdConfig> {
    let unit_dir = table.or("unit_dir", PathBuf::from("/run/systemd/system"), Item::path);
    Some(SystemdConfig { unit_dir: unit_dir? })
}

fn database(item: Item<'_, '_>) -> Option<DatabaseConfig> {
    let mut table = item.table()?;
    let url_file = table.required("url_file").and_then(Item::path);
    Some(DatabaseConfig { url_file: url_file? })
}

fn acme(item: Item<'_, '_>) -> Option<AcmeConfig> {
    let mut table = item.table()?;
    let email = table.required("email").and_then(email);
    let directory = table.or("directory", LETS_ENCRYPT.to_owned(), directory);
    let ca_file = table.maybe("ca_file", Item::path);
    let challenges = [("http-01", AcmeChallenge::Http01), ("tls-alpn-01", AcmeChallenge::TlsAlpn01)];
    let challenge = table.or("challenge", AcmeChallenge::Http01, |item| item.one_of(&challenges));
    Some(AcmeConfig { email: email?, directory: directory?, ca_file: ca_file?, challenge: challenge? })
}

fn tls(mut table: Table<'_, '_>) -> Option<TlsConfig> {
    let years = |n: u64| Duration::from_secs(n * 365 * 86_400);
    let redirect = table.or("redirect", true, Item::boolean);
    let hsts = table.maybe("hsts", |item| item.duration(Duration::from_secs(1)..=years(2)));
    let certificates = table.or("certificates", Vec::new(), |item| item.each(certificate));
    Some(TlsConfig { redirect: redirect?, hsts: hsts?, certificates: certificates? })
}

fn certificate(item: Item<'_, '_>) -> Option<CertificateFiles> {
    let mut table = item.table()?;
    let certificate_file = table.required("certificate_file").and_then(Item::path);
    let key_file = table.required("key_file").and_then(Item::path);
    Some(CertificateFiles { certificate_file: certificate_file?, key_file: key_file? })
}

fn dns(item: Item<'_, '_>, base_domain: Option<&HostName>) -> Option<DnsConfig> {
    let mut table = item.table()?;
    let provider = table.required("provider").and_then(|item| item.one_of(&[("cloudflare", DnsProvider::Cloudflare)]));
    let token_file = table.required("token_file").and_then(Item::path);
    let zone = table.maybe("zone", Item::parse::<HostName>);
    let api = table.or("api", CLOUDFLARE.to_owned(), api_url);
    let resolver = table.maybe("resolver", address);
    let records = table.maybe("records", records_to);
    let zone = zone?.or_else(|| base_domain.cloned())?;
    if let Some(base) = base_domain
        && *base != zone
        && !base.as_str().ends_with(&format!(".{zone}"))
    {
        table.fault("zone", format!("\"{zone}\" does not hold `base_domain`, which is \"{base}\""), None);
    }
    Some(DnsConfig {
        provider: provider?,
        token_file: token_file?,
        zone,
        api: api?,
        resolver: resolver?,
        records: records?,
    })
}

/// Addresses, or the name of a host.
fn records_to(item: Item<'_, '_>) -> Option<RecordsTo> {
    if item.kind() == "string" {
        return item.parse().map(RecordsTo::Host);
    }
    let addresses = item.each(|item| {
        let text = item.text()?;
        match text.parse::<IpAddr>() {
            Ok(address) if !address.is_unspecified() && !address.is_multicast() => Some(address),
            _ => item.fault(format!("{} is not the address of a machine", quoted(text)), None),
        }
    });
    addresses.map(RecordsTo::Addresses)
}

/// The URL of an API. A token does not go over a network in the clear.
fn api_url(item: Item<'_, '_>) -> Option<String> {
    let text = item.text()?;
    let url = text.parse::<http::Uri>().ok();
    let near = |host: &str| host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let fine = url.is_some_and(|url| match (url.scheme_str(), url.host()) {
        (Some("https"), Some(_)) => url.query().is_none(),
        (Some("http"), Some(host)) => url.query().is_none() && near(host),
        _ => false,
    });
    match fine {
        true => Some(text.to_owned()),
        false => item.fault(format!("{} is neither an https URL nor one of this machine", quoted(text)), None),
    }
}

fn address(item: Item<'_, '_>) -> Option<SocketAddr> {
    let text = item.text()?;
    match text.parse() {
        Ok(address) => Some(address),
        Err(_) => item.fault(
            format!("{} is not an address and port", quoted(text)),
            Some("write it like \"127.0.0.1:3000\", \"0.0.0.0:80\" or \"[::]:80\""),
        ),
    }
}

/// A network, or an address that stands for itself.
fn network(item: Item<'_, '_>) -> Option<IpNet> {
    let text = item.text()?;
    let whole = || text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
    match text.parse().or_else(|_| whole()) {
        Ok(network) => Some(network),
        Err(_) => item.fault(
            format!("{} is neither an address nor a network", quoted(text)),
            Some("write it like \"127.0.0.1\", \"10.0.0.0/8\" or \"2001:db8::/32\""),
        ),
    }
}

fn email(item: Item<'_, '_>) -> Option<String> {
    let text = item.text()?;
    let clean = text.len() <= 254 && text.bytes().all(|b| b.is_ascii_graphic());
    match text.split_once('@') {
        Some((user, host)) if clean && !user.is_empty() && host.parse::<HostName>().is_ok() => Some(text.to_owned()),
        _ => item.fault(format!("{} is not an e-mail address", quoted(text)), None),
    }
}

fn directory(item: Item<'_, '_>) -> Option<String> {
    let text = item.text()?;
    let uri = text.parse::<http::Uri>().ok();
    if uri.is_some_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some()) {
        return Some(text.to_owned());
    }
    item.fault(format!("{} is not an https URL", quoted(text)), None)
}
