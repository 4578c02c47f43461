//! What must hold for any bytes whatever, as functions that panic when it does not.
//!
//! The targets of cargo-fuzz and the tests of CI run the very same ones. Each body is about one reader or renderer of
//! kennel's, and its input is laid out so that a file of the corpus can be read and written by people.

#![allow(dead_code, reason = "each fuzz target runs one of them")]

mod kennel_toml;
mod systemd;

use std::collections::BTreeMap;

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderName, HeaderValue};
use kennel::config::RepoType;
use kennel::host::UnitSpec;
use kennel::host::machine::layout::Layout;
use kennel::host::machine::render::env::env_file as render_env_file;
use kennel::host::machine::render::unit::unit_file as render_unit_file;
use kennel::host::machine::render::word;
use kennel::model::{BranchRef, CommitSha, DeploymentId, Environment, Port};
use kennel::router::host_of;
use kennel::webhook::payload::{self, Ask};
use kennel::webhook::signature;
use secrecy::SecretString;
use sha2::Sha256;

pub(crate) use kennel_toml::{kennel_toml, toml_of};

/// The first line of the input, and what follows it.
fn split_line(data: &[u8]) -> (&[u8], &[u8]) {
    match data.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[]),
    }
}

/// Text that may be shown on a terminal and in a page.
#[track_caller]
fn expect_tame(text: &str) {
    assert!(!text.chars().any(char::is_control), "it is not fit to be shown: {text:?}");
}

/// An event's name on the first line, then the JSON of its payload.
pub(crate) fn payloads(data: &[u8]) {
    let (event, body) = split_line(data);
    let event = String::from_utf8_lossy(event);
    match payload::parse(&event, body) {
        Ok(Ask::Build { branch, commit, title, author, .. }) => {
            assert_eq!(branch.as_str().parse::<BranchRef>().as_ref(), Ok(&branch));
            assert_eq!(commit.as_str().parse::<CommitSha>().as_ref(), Ok(&commit));
            for shown in [title, author].into_iter().flatten() {
                expect_tame(&shown);
                assert!(!shown.is_empty() && shown.chars().count() <= 120, "{shown:?}");
            }
        }
        Ok(Ask::BranchGone { branch }) => assert!(!branch.is_pull()),
        Ok(Ask::PullClosed { branch }) => assert!(branch.is_pull()),
        Ok(Ask::Nothing { why }) => expect_tame(&why),
        Err(fault) => {
            let fault = fault.to_string();
            expect_tame(&fault);
            assert!(fault.len() < 2_000, "a fault is not an echo of the payload: {fault}");
        }
    }
}

/// The value of a `Host` header.
pub(crate) fn host_header(data: &[u8]) {
    let Some(host) = host_of(data) else { return };
    assert_eq!(host_of(host.as_bytes()).as_ref(), Some(&host), "what was read reads as itself");
    assert_eq!(host, host.to_ascii_lowercase());
    assert!(!host.is_empty() && host.len() <= 255 && !host.ends_with('.'), "{host:?}");
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-.:[]".contains(&b);
    assert!(host.bytes().all(plain), "{host:?}");
    let value = String::from_utf8_lossy(data).to_ascii_lowercase();
    assert!(host.starts_with('[') || value.starts_with(&host), "{value:?} became {host:?}");
}

/// Variables, each its name, `=` and its value, parted by the byte 1.
pub(crate) fn env_file(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let pairs = text.split('\u{1}').filter_map(|pair| pair.split_once('='));
    let env: BTreeMap<String, String> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    match render_env_file(&env) {
        Ok(file) => {
            let read: BTreeMap<_, _> = systemd::read_env_file(&file).into_iter().collect();
            assert_eq!(read, env, "systemd reads something else");
        }
        Err(error) => {
            expect_tame(&error.to_string());
            let values = env.values().filter(|value| value.len() > 40);
            values.for_each(|value| assert!(!error.to_string().contains(value.as_str()), "a value is shown"));
        }
    }
}

/// Lines: project, slug, service, tag, user, the name of a store path, program; and a text for one word of a unit.
pub(crate) fn unit_file(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match word("it", &text) {
        Ok(line) => {
            assert!(!line.contains('\n') && systemd::read_word(&line) == Some((text.to_string(), "")), "{line:?}");
        }
        Err(_) => assert!(text.contains(char::is_control)),
    }
    let lines: Vec<&str> = text.split('\n').collect();
    let [project, slug, service, tag, user, name, program, ..] = lines[..] else { return };
    let (Ok(project), Ok(slug), Ok(service), Ok(tag), Ok(user), Ok(store_path), Ok(program)) = (
        project.parse(),
        slug.parse(),
        service.parse(),
        tag.parse(),
        user.parse(),
        format!("/nix/store/0123456789abcdfghijklmnpqrsvwxyz-{name}").parse(),
        program.parse(),
    ) else {
        return;
    };
    let spec = UnitSpec {
        project,
        branch: "heads/main".parse().expect("it is a branch"),
        environment: Environment::Prod,
        slug,
        service,
        tag,
        user,
        deployment: DeploymentId(1),
        port: Port::try_from(18_000).expect("it is in the range"),
        store_path,
        program,
        env: BTreeMap::from([("HUSH".to_owned(), text.to_string())]),
        secrets: Default::default(),
        confinement: Default::default(),
    };
    let layout = Layout {
        state_dir: "/var/lib/kennel".into(),
        run_dir: "/run/kennel".into(),
        unit_dir: "/run/systemd/system".into(),
    };
    let unit = render_unit_file(&layout, &spec).expect("names that are names can be rendered");
    let keys: Vec<&str> = unit.lines().map(|line| line.split('=').next().unwrap_or_default()).collect();
    assert_eq!(keys.iter().filter(|key| **key == "User").count(), 1, "{unit}");
    assert_eq!(keys.iter().filter(|key| **key == "ExecStart").count(), 1, "{unit}");
    assert!(!unit.contains('%') && !unit.contains('$') && !unit.contains("HUSH"), "{unit}");
    assert!(!unit.lines().any(|line| line.ends_with('\\')), "{unit}");
}

/// A header's name on the first line, its value on the second, then the body it is to sign.
pub(crate) fn signature(data: &[u8]) {
    const SECRET: &str = "hush";
    let (name, rest) = split_line(data);
    let (value, body) = split_line(rest);
    let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(name, value.clone());
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(body);
    let right = hex::encode(mac.finalize().into_bytes());
    let given = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
    for forge in [RepoType::Github, RepoType::Forgejo] {
        let secret = SecretString::from(SECRET);
        if signature::verify(forge, &headers, &secret, body).is_ok() {
            assert!(given.ends_with(&right), "{given:?} was taken for {right}");
            assert!(signature::verify(forge, &headers, &secret, &[body, b" "].concat()).is_err());
            assert!(signature::verify(forge, &headers, &SecretString::from("other"), body).is_err());
        }
    }
}
