//! Reads every `crate::` path of the source and fails when a module knows one above or beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The layer of each top-level module; a module may use those of lower layers.
const LAYERS: &[(&str, u8)] = &[
    ("crash", 0),
    ("model", 0),
    ("config", 1),
    ("chance", 1),
    ("wake", 1),
    ("telemetry", 1),
    ("places", 1),
    ("sockets", 1),
    ("store", 2),
    ("host", 2),
    ("handover", 2),
    ("router", 3),
    ("dns", 3),
    ("webhook", 4),
    ("builder", 4),
    ("deployer", 4),
    ("api", 4),
    ("monitor", 4),
    ("certificates", 4),
    ("caches", 4),
    ("reconciler", 5),
    ("daemon", 6),
    ("service", 7),
    ("cli", 8),
];

/// What a module may use less than its layer says, with the reason.
const NARROWER: &[(&str, &[&str])] = &[
    // SQL knows the vocabulary and nothing of the machine or the files that configure it.
    ("store", &["crash", "model"]),
    // What visitors meet reads routes; it does nothing to the machine.
    ("router", &["model", "config", "wake", "telemetry", "places", "store"]),
    // Webhooks only record: no machine, no router.
    ("webhook", &["crash", "model", "config", "wake", "telemetry", "places", "store"]),
    // Builds end in rows; traffic is the deployer's.
    ("builder", &["crash", "model", "config", "wake", "telemetry", "store", "host"]),
    // Certificates are files and rows; the router is told which there are.
    ("certificates", &["chance", "model", "config", "wake", "telemetry", "store", "host", "dns", "router"]),
    // The zone is the provider's: rows say what is wanted there, and nothing is done to the machine.
    ("dns", &["chance", "model", "config", "wake", "telemetry", "store"]),
    // Caches get what rows name; builds do not wait for them.
    ("caches", &["chance", "model", "config", "wake", "telemetry", "store", "host"]),
    // Operators ask by writing rows.
    ("api", &["model", "config", "wake", "telemetry", "places", "store", "host"]),
    // The command line talks to the API's socket; only `daemon` and the build worker are run in place.
    ("cli", &["model", "config", "wake", "telemetry", "sockets", "handover", "api", "service", "builder", "host"]),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The names that follow `crate::` in a file, `use crate::{a, b::c}` included.
fn used(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        for (at, _) in line.match_indices("crate::") {
            let rest = &line[at + "crate::".len()..];
            match rest.strip_prefix('{') {
                Some(group) => names.extend(group.split(',').map(first_name)),
                None => names.push(first_name(rest)),
            }
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn first_name(path: &str) -> String {
    path.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

/// What is wrong with `module` using `other`, if anything.
fn fault(module: &str, other: &str) -> Option<String> {
    let layers: BTreeMap<&str, u8> = LAYERS.iter().copied().collect();
    let (Some(own), Some(its)) = (layers.get(module), layers.get(other)) else {
        return Some(format!("`{module}` or `{other}` has no layer"));
    };
    if module == other {
        return None;
    }
    if let Some((_, allowed)) = NARROWER.iter().find(|(name, _)| *name == module)
        && !allowed.contains(&other)
    {
        return Some(format!("`{module}` may use only {allowed:?}, not `{other}`"));
    }
    (its >= own).then(|| format!("`{module}` (layer {own}) uses `{other}` (layer {its})"))
}

#[test]
fn dependencies_point_down_and_never_sideways() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut faults = Vec::new();
    let mut arrows = 0;
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let module = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if matches!(module.as_str(), "lib" | "main") {
            continue;
        }
        for other in used(&std::fs::read_to_string(&file).unwrap()) {
            arrows += 1;
            if let Some(fault) = fault(&module, &other) {
                faults.push(format!("{}: {fault}", relative.display()));
            }
        }
    }
    assert!(arrows > 50, "only {arrows} uses were found: the reader of this test is broken");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_use_that_points_up_or_sideways_is_a_fault() {
    assert_eq!(fault("deployer", "store"), None);
    assert!(fault("store", "deployer").is_some());
    assert!(fault("webhook", "builder").is_some());
    assert!(fault("host", "store").is_some());
    assert!(fault("router", "host").is_some());
    assert_eq!(used("use crate::{model::X, store};"), ["model", "store"]);
    assert_eq!(used("// crate::daemon"), Vec::<String>::new());
}
