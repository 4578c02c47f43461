//! A certificate authority of one's own: Pebble, the test server of Let's Encrypt, and the DNS it asks.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};

use super::{machine, until};

/// Where its files lie.
const DIR: &str = "/srv/pebble";
/// Where kennel finds it.
pub(crate) const DIRECTORY: &str = "https://127.0.0.1:14000/dir";
const UNITS: [&str; 2] = ["lab-pebble.service", "lab-dns.service"];

/// The authority. It forgets everything when it is stopped.
pub(crate) struct Pebble {
    /// Where it looks for proofs of http-01.
    pub(crate) http_port: u16,
    /// How long its certificates are valid, in seconds.
    pub(crate) validity_secs: u32,
}

impl Pebble {
    /// One that looks at kennel's own ports, and whose certificates are valid for 90 days.
    pub(crate) async fn start() -> Self {
        Self::with(8080, 90 * 86_400).await
    }

    pub(crate) async fn with(http_port: u16, validity_secs: u32) -> Self {
        let pebble = Self { http_port, validity_secs };
        pebble.stop().await;
        let _ = fs::remove_dir_all(DIR);
        fs::create_dir_all(DIR).unwrap();
        write_server_certificate();
        pebble.resume().await;
        pebble
    }

    /// The certificate by which kennel knows it.
    pub(crate) fn ca_file() -> PathBuf {
        PathBuf::from(DIR).join("ca.pem")
    }

    /// Ends it, and what it knew.
    pub(crate) async fn stop(&self) {
        for unit in UNITS {
            let _ = machine::run("systemctl", &["stop", unit]).await;
            let _ = machine::run("systemctl", &["reset-failed", unit]).await;
        }
    }

    /// Starts it, with a new root.
    pub(crate) async fn resume(&self) {
        let config = serde_json::json!({ "pebble": {
            "listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000",
            "certificate": format!("{DIR}/cert.pem"), "privateKey": format!("{DIR}/key.pem"),
            "httpPort": self.http_port, "tlsPort": 8443, "ocspResponderURL": "",
            "externalAccountBindingRequired": false, "certificateValidityPeriod": self.validity_secs,
            "retryAfter": { "authz": 1, "order": 1 },
        }});
        fs::write(format!("{DIR}/config.json"), config.to_string()).unwrap();
        let dns = ["-dns01", "127.0.0.1:8053", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""];
        let off = ["-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "", "-management", "127.0.0.1:8055"];
        let unit = |name: &str| format!("--unit={name}");
        let [authority, names] = UNITS.map(unit);
        machine::ok("systemd-run", &[&["--quiet", &names, "pebble-challtestsrv"], &dns[..], &off[..]].concat()).await;
        let settings = ["--setenv=PEBBLE_VA_NOSLEEP=1", "--setenv=PEBBLE_WFE_NONCEREJECT=20"];
        let run = ["pebble", "-config", "/srv/pebble/config.json", "-dnsserver", "127.0.0.1:8053"];
        machine::ok("systemd-run", &[&["--quiet", &authority], &settings[..], &run[..]].concat()).await;
        // It makes keys of its own first, which takes a busy machine long.
        until("Pebble answers", Duration::from_secs(90), async || {
            let root = machine::run("curl", &["-skf", "https://127.0.0.1:15000/roots/0"]).await;
            root.status.success().then(|| fs::write(Self::root_file(), root.stdout).unwrap())
        })
        .await;
    }

    /// The root of the certificates it issues.
    pub(crate) fn root_file() -> PathBuf {
        PathBuf::from(DIR).join("root.pem")
    }

    /// What it wrote since it was started last.
    pub(crate) async fn said(&self) -> String {
        machine::ok("journalctl", &["--sync"]).await;
        let id = machine::property(UNITS[0], "InvocationID").await;
        machine::ok("journalctl", &["--quiet", "--no-pager", "--output=cat", &format!("_SYSTEMD_INVOCATION_ID={id}")])
            .await
    }
}

/// What a visitor gets by HTTPS, who trusts this root: the body, or what curl says.
pub(crate) async fn visit_by_tls(host: &str, path: &str, root: &str) -> Result<String, String> {
    curl(host, path, root, &[]).await
}

/// The version of HTTP that a visitor speaks by TLS who offers what `offer` says, an option of curl's.
pub(crate) async fn version_by_tls(host: &str, root: &str, offer: &str) -> String {
    let only_version = [offer, "--output", "/dev/null", "--write-out", "%{http_version}"];
    curl(host, "/", root, &only_version).await.expect("it is served")
}

async fn curl(host: &str, path: &str, root: &str, more: &[&str]) -> Result<String, String> {
    let (resolve, url) = (format!("{host}:8443:127.0.0.1"), format!("https://{host}:8443{path}"));
    let curl = ["-sS", "--fail", "--max-time", "10", "--cacert", root, "--resolve", &resolve, &url];
    let output = machine::run("curl", &[&curl, more].concat()).await;
    if output.status.success() { Ok(machine::text(&output.stdout)) } else { Err(machine::text(&output.stderr)) }
}

/// A certificate for Pebble's own address, by an authority of its own.
fn write_server_certificate() {
    let named = |name: &str, of: Vec<String>| {
        let mut params = CertificateParams::new(of).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut ca = named("Lab CA", Vec::new());
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(Pebble::ca_file(), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let server = named("Pebble", vec!["127.0.0.1".to_owned()]);
    let issued = server.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).unwrap();
    fs::write(format!("{DIR}/cert.pem"), issued.pem()).unwrap();
    fs::write(format!("{DIR}/key.pem"), key.serialize_pem()).unwrap();
}
