//! A repository's kennel.toml, turned into a checked [`Manifest`].
//!
//! The file comes from whoever can push: every size is bounded, every name goes through its type, and a fault says
//! which key on which line.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::OFlag;

use super::confinement;
use super::fault::{Fault, Faults};
use super::table::{Document, Item, Table};
use super::variable;
use super::words::quoted;
use crate::model::settings::{Manifest, ServiceSettings, SiteSettings};
use crate::model::{FlakeOutput, HealthCheck, HostName, Kind, Protocol, ServiceName, Settings};

/// The file's name, at the top of a repository.
pub const FILE_NAME: &str = "kennel.toml";
/// The largest kennel.toml, in bytes.
pub const SIZE_MAX: usize = 256 * 1024;
/// The most services and sites of one repository.
const TARGETS_MAX: usize = 64;
/// The most variables, and the most secrets, of one service.
const VARIABLES_MAX: usize = 256;
/// The longest value of a variable, in bytes: the kernel takes 128 KiB for name and value (`execve(2)`).
const VALUE_MAX: usize = 64 * 1024;
/// The longest path of a health check.
const HEALTH_PATH_MAX: usize = 1_000;

/// Reads and checks a kennel.toml. Blocks.
///
/// # Errors
/// When there is none, it is a symbolic link or not a regular file, it is too large, or anything in it is wrong.
pub fn load(path: &Path) -> Result<Manifest, Faults> {
    let name = path.file_name().map_or_else(|| FILE_NAME.to_owned(), |name| name.to_string_lossy().into_owned());
    let whole = |problem: String| Faults::from(Fault { key: name.clone(), ..Fault::whole(problem) });
    // Following no link and never waiting for a writer: the repository chooses what lies here.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = match std::fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => file,
        Err(err) if err.raw_os_error() == Some(nix::Error::ELOOP as i32) => {
            return Err(whole("is a symbolic link, which kennel does not follow".to_owned()));
        }
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Err(whole("is missing".to_owned())),
        Err(err) => return Err(whole(format!("cannot be read: {err}"))),
    };
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(whole("is not a regular file".to_owned())),
        Err(err) => return Err(whole(format!("cannot be read: {err}"))),
    }
    let mut content = Vec::new();
    file.take(SIZE_MAX as u64 + 1).read_to_end(&mut content).map_err(|err| whole(format!("cannot be read: {err}")))?;
    if content.len() > SIZE_MAX {
        return Err(whole("is larger than 256 KB".to_owned()));
    }
    match str::from_utf8(&content) {
        Ok(text) => parse(text),
        Err(err) => {
            let line = 1 + content[..err.valid_up_to()].iter().filter(|b| **b == b'\n').count();
            Err(Fault { line: Some(line), ..Fault::whole("is not valid UTF-8") }.into())
        }
    }
}

/// Checks the text of a kennel.toml.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str) -> Result<Manifest, Faults> {
    if text.len() > SIZE_MAX {
        return Err(Fault::whole("is larger than 256 KB").into());
    }
    Document::read(text, manifest)
}

/// What a manifest asks for that needs the operator as well.
#[must_use]
pub fn notices(manifest: &Manifest) -> Vec<String> {
    let cachix = "`cachix` is pushed to where the daemon's file has a `cachix_token_file` for the project";
    manifest.cachix.iter().map(|_| cachix.to_owned()).collect()
}

/// Nix's name for the kind of machine this is, such as `x86_64-linux`.
#[must_use]
pub fn nix_system() -> String {
    let os = if std::env::consts::OS == "macos" { "darwin" } else { std::env::consts::OS };
    format!("{}-{os}", std::env::consts::ARCH)
}

fn manifest(root: &mut Table<'_, '_>) -> Option<Manifest> {
    let mut targets = BTreeMap::new();
    let mut named = 0_usize;
    let mut good = true;
    let mut domains = Vec::<(HostName, String)>::new();
    for (key, kind) in [("services", Kind::Service), ("static_sites", Kind::Site)] {
        let Some(item) = root.take(key) else { continue };
        let Some(mut table) = item.table() else {
            (named, good) = (named + 1, false);
            continue;
        };
        for (name, item) in table.entries() {
            named += 1;
            if named == TARGETS_MAX + 1 {
                item.fault::<()>("is one too many: a repository has at most 64 services and sites", None);
            }
            let Some((name, settings)) = target(&name, kind, item, &targets, &mut domains) else {
                good = false;
                continue;
            };
            targets.insert(name, settings);
        }
    }
    let cachix = root.maybe("cachix", cachix);
    if named == 0 {
        let hint = "name something to deploy, such as `[services.api]` or `[static_sites.web]`";
        root.fault("", "names no service and no static site", Some(hint.to_owned()));
        good = false;
    }
    let cachix = cachix?;
    good.then_some(Manifest { targets, cachix })
}

/// Reads one service or site; all of it, also when its name is wrong.
fn target(
    name: &str,
    kind: Kind,
    item: Item<'_, '_>,
    others: &BTreeMap<ServiceName, Settings>,
    domains: &mut Vec<(HostName, String)>,
) -> Option<(ServiceName, Settings)> {
    let checked = match name.parse::<ServiceName>() {
        Ok(name) if others.contains_key(&name) => {
            item.fault("is the name of a service and of a static site", Some("a name means one thing only"))
        }
        Ok(name) => Some(name),
        Err(err) => item.fault(format!("is not a name: it {}", err.problem), Some("rename it, such as `my-api`")),
    };
    let mut table = item.table()?;
    let flake_output = match table.take("flake_output") {
        Some(item) => item.parse::<FlakeOutput>(),
        None => match name.parse::<FlakeOutput>() {
            Ok(output) => Some(output),
            Err(_) if checked.is_none() => None,
            Err(err) => {
                table.fault(
                    "",
                    format!("cannot be its own flake output: it {}", err.problem),
                    Some("set `flake_output`".to_owned()),
                );
                None
            }
        },
    };
    let custom_domain = table.maybe("custom_domain", |item| custom_domain(item, domains));
    let settings = match kind {
        Kind::Service => service(&mut table, flake_output, custom_domain).map(Settings::Service),
        Kind::Site => {
            let spa = table.or("spa", false, Item::boolean);
            site(flake_output, spa, custom_domain).map(Settings::Site)
        }
    };
    Some((checked?, settings?))
}

#[expect(clippy::option_option, reason = "`None` is a fault that was noted, `Some(None)` a key that is absent")]
fn site(
    flake_output: Option<FlakeOutput>,
    spa: Option<bool>,
    custom_domain: Option<Option<HostName>>,
) -> Option<SiteSettings> {
    Some(SiteSettings { flake_output: flake_output?, spa: spa?, custom_domain: custom_domain? })
}

#[expect(clippy::option_option, reason = "`None` is a fault that was noted, `Some(None)` a key that is absent")]
fn service(
    table: &mut Table<'_, '_>,
    flake_output: Option<FlakeOutput>,
    custom_domain: Option<Option<HostName>>,
) -> Option<ServiceSettings> {
    let secs = |range| move |item: Item<'_, '_>| item.integer(range).and_then(|secs| u32::try_from(secs).ok());
    let protocol = table.or("protocol", Protocol::Http1, |item| {
        item.one_of(&Protocol::ALL.iter().map(|protocol| (protocol.word(), *protocol)).collect::<Vec<_>>())
    });
    // Services of gRPC have no paths but those of their calls.
    let usual = match protocol {
        Some(Protocol::H2c) => HealthCheck::Tcp,
        Some(Protocol::Http1) | None => HealthCheck::Http("/health".to_owned()),
    };
    let health_check = table.or("health_check", usual, health_check);
    let health_check_timeout_secs = table.or("health_check_timeout_secs", 30, secs(1..=600));
    let drain_secs = table.or("drain_secs", 30, secs(0..=3_600));
    let preview_database = table.or("preview_database", false, Item::boolean);
    let preview = preview_database.unwrap_or(false);
    let confinement = confinement::asked(table);
    let env = table.or("env", BTreeMap::new(), |item| env(item, preview));
    let secrets = table.or("secrets", Vec::new(), |item| secrets(item, preview, env.as_ref()));
    Some(ServiceSettings {
        flake_output: flake_output?,
        protocol: protocol?,
        health_check: health_check?,
        health_check_timeout_secs: health_check_timeout_secs?,
        drain_secs: drain_secs?,
        custom_domain: custom_domain?,
        preview_database: preview_database?,
        secrets: secrets?,
        env: env?,
        confinement: confinement?,
    })
}

/// `tcp`, or the path of a URL with an optional query.
fn health_check(item: Item<'_, '_>) -> Option<HealthCheck> {
    let text = item.text()?;
    if text == "tcp" {
        return Some(HealthCheck::Tcp);
    }
    if !text.starts_with('/') || text.starts_with("//") {
        let problem = format!("{} is neither a path that begins with one `/` nor \"tcp\"", quoted(text));
        return item.fault(problem, Some("write it like \"/health\""));
    }
    if text.len() > HEALTH_PATH_MAX {
        return item.fault("is longer than 1000 characters", None);
    }
    let clean = text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    if !clean || text.parse::<http::uri::PathAndQuery>().is_err() {
        let problem = format!("{} holds a space or another character no path may hold", quoted(text));
        return item.fault(problem, Some("percent-encode it"));
    }
    Some(HealthCheck::Http(text.to_owned()))
}

/// A hostname of its own: with a dot, not an address, and asked for only once.
fn custom_domain(item: Item<'_, '_>, domains: &mut Vec<(HostName, String)>) -> Option<HostName> {
    let text = item.text()?;
    let host = match text.parse::<HostName>() {
        Ok(host) => host,
        Err(err) => return item.fault(format!("{err}"), None),
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    if !text.contains('.') || last.bytes().all(|b| b.is_ascii_digit()) {
        return item.fault(format!("{} is not a domain", quoted(text)), Some("write it like \"api.example.org\""));
    }
    if let Some((_, owner)) = domains.iter().find(|(taken, _)| *taken == host) {
        return item.fault(format!("{} is asked for twice: `{owner}` has it already", quoted(text)), None);
    }
    domains.push((host.clone(), item.key().to_owned()));
    Some(host)
}

fn reserved_for_preview(name: &str, preview: bool) -> bool {
    preview && variable::PREVIEW.contains(&name)
}

fn env(item: Item<'_, '_>, preview: bool) -> Option<BTreeMap<String, String>> {
    let mut table = item.table()?;
    let mut env = BTreeMap::new();
    let mut good = true;
    let mut left = VARIABLES_MAX;
    for (name, item) in table.entries() {
        let problem = match variable::check_name(&name) {
            Err(problem) => Some(problem),
            Ok(()) if reserved_for_preview(&name, preview) => Some("is reserved: `preview_database` sets it"),
            Ok(()) if left == 0 => Some("is one too many: a service has at most 256 variables"),
            Ok(()) => None,
        };
        left = left.saturating_sub(1);
        if let Some(problem) = problem {
            item.fault::<()>(problem, None);
        }
        match value(&item) {
            Some(value) if problem.is_none() => {
                env.insert(name, value);
            }
            _ => good = false,
        }
    }
    good.then_some(env)
}

fn value(item: &Item<'_, '_>) -> Option<String> {
    if let Some(written) = item.as_written() {
        return item.fault(
            format!("must be a string: a variable has no type, and {} is a TOML {}", written, item.kind()),
            Some(&format!("write \"{written}\"")),
        );
    }
    let text = item.text()?;
    if text.len() > VALUE_MAX {
        return item.fault("is longer than 64 KiB", None);
    }
    match variable::check_value(text) {
        Ok(()) => Some(text.to_owned()),
        Err(problem) => item.fault(problem, None),
    }
}

fn secrets(item: Item<'_, '_>, preview: bool, env: Option<&BTreeMap<String, String>>) -> Option<Vec<String>> {
    let mut seen = Vec::<String>::new();
    item.each(|item| {
        let name = item.text()?;
        if let Err(problem) = variable::check_name(name) {
            return item.fault(format!("{} {problem}", quoted(name)), None);
        }
        if reserved_for_preview(name, preview) {
            return item.fault(format!("{} is reserved: `preview_database` sets it", quoted(name)), None);
        }
        if env.is_some_and(|env| env.contains_key(name)) {
            return item.fault(format!("{} is also set in `env`", quoted(name)), None);
        }
        if seen.iter().any(|other| other == name) {
            return item.fault(format!("{} is listed twice", quoted(name)), None);
        }
        if seen.len() == VARIABLES_MAX {
            return item.fault("is one too many: a service has at most 256 secrets", None);
        }
        seen.push(name.to_owned());
        Some(name.to_owned())
    })
}

fn cachix(item: Item<'_, '_>) -> Option<String> {
    let mut table = item.table()?;
    let item = table.required("cache_name")?;
    let name = item.text()?;
    let fine = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if name.is_empty() || name.len() > 63 || name.starts_with('-') || !fine {
        return item.fault(
            format!("{} is not a cache's name: 1 to 63 letters, digits, `-` and `_`", quoted(name)),
            Some("write only the name, such as \"my-cache\" for my-cache.cachix.org"),
        );
    }
    Some(name.to_owned())
}
