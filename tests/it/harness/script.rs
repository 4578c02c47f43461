//! What the workers of the fake machine make of each commit.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use kennel::builder::worker::{BuildReport, FetchReport, TargetReport};
use kennel::config;
use kennel::host::BuildJob;
use kennel::host::fake::{FakeBuild, Gate};
use kennel::model::StorePath;

/// What the worker of one commit makes.
#[derive(Clone, Default)]
pub(crate) struct Script {
    /// The text of kennel.toml.
    pub(crate) manifest: String,
    /// The store path of each service or site; missing ones fail.
    pub(crate) outputs: BTreeMap<String, StorePath>,
    /// Held closed, it keeps the build running.
    pub(crate) gate: Option<Gate>,
    /// How many of the build's units end before their work begins.
    pub(crate) stillborn: usize,
}

impl Script {
    /// One service, `api`, whose store path is made of `version`.
    pub(crate) fn api(version: &str) -> Self {
        Self::named(&["api"], version)
    }

    /// Several services whose store paths are made of `version`.
    pub(crate) fn named(services: &[&str], version: &str) -> Self {
        let manifest = services.iter().map(|name| format!("[services.{name}]\ndrain_secs = 1\n")).collect();
        let outputs = services.iter().map(|name| ((*name).to_owned(), store_path(name, version))).collect();
        Self { manifest, outputs, ..Self::default() }
    }

    /// One static site, `web`.
    pub(crate) fn site(version: &str) -> Self {
        Self {
            manifest: "[static_sites.web]\n".to_owned(),
            outputs: [("web".to_owned(), store_path("web", version))].into(),
            ..Self::default()
        }
    }
}

/// A store path that tells service and version.
pub(crate) fn store_path(name: &str, version: &str) -> StorePath {
    let hash: String = format!("{version:0>32}").replace(['e', 'o', 'u', 't'], "z");
    format!("/nix/store/{hash}-{name}").parse().unwrap()
}

/// A commit whose every digit is `digit`.
pub(crate) fn commit(digit: char) -> String {
    digit.to_string().repeat(40)
}

/// By commit.
pub(super) type Scripts = Arc<Mutex<HashMap<String, Script>>>;

/// What the worker does: what the commit's script says.
pub(super) fn work(scripts: &Scripts, job: &BuildJob) -> FakeBuild {
    let script = scripts.lock().unwrap().get(job.commit.as_str()).cloned().unwrap_or_default();
    let fetch = serde_json::to_vec(&FetchReport::Fetched { duration_ms: 1 }).unwrap();
    let report = match config::project::parse(&script.manifest) {
        Err(faults) => {
            BuildReport { failure: Some(faults.to_string()), manifest: None, targets: BTreeMap::new(), nix_ms: 0 }
        }
        Ok(manifest) => {
            let report = |name: &kennel::model::ServiceName| match script.outputs.get(name.as_str()) {
                Some(_) => TargetReport::Built { program: Some(name.as_str().parse().unwrap()), nix_ms: 1 },
                None => TargetReport::Failed { reason: "the builder failed".to_owned() },
            };
            let targets = manifest.targets.keys().map(|name| (name.clone(), report(name))).collect();
            BuildReport { failure: None, manifest: Some(manifest), targets, nix_ms: 1 }
        }
    };
    FakeBuild {
        fetch: Some(fetch),
        build: Some(serde_json::to_vec(&report).unwrap()),
        outputs: script.outputs.iter().map(|(name, path)| (name.parse().unwrap(), path.clone())).collect(),
        gate: script.gate,
        stillborn: script.stillborn,
    }
}
