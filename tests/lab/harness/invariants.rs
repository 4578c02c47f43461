//! What the lab sees of its machine, for the invariants of `tests/invariants.rs`, and what only a real machine has:
//! processes, sockets, links into the store, answers to visitors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ::http::Method;

use super::http::{request, send};
use super::leftovers::{PRIVATE, RUN, STATE, UNITS};
use super::{ROUTER, databases, machine};
use crate::invariants::{Acknowledged, Live, Machine, Rows, faults};

/// How long kennel may take to come to rest: less than the 30 s after which it looks again unasked, so that nothing
/// that waits for that counts as rest.
const REST_MAX: Duration = Duration::from_secs(25);

/// A machine at rest.
#[derive(Debug, Clone, Default)]
pub(crate) struct AtRest {
    pub(crate) rows: Rows,
    pub(crate) machine: Machine,
    /// The main process of each unit that runs.
    pub(crate) pids: BTreeMap<String, u32>,
}

impl AtRest {
    /// Each hostname and the commit that is live there.
    pub(crate) fn commits(&self) -> BTreeMap<&str, &str> {
        self.rows.live.iter().map(|live| (live.host.as_str(), live.commit.as_str())).collect()
    }

    /// No service that ran before and runs now was started in between.
    #[track_caller]
    pub(crate) fn expect_same_processes(&self, before: &Self) {
        for (unit, pid) in &before.pids {
            assert!(self.pids.get(unit).is_none_or(|now| now == pid), "`{unit}` was restarted");
        }
    }
}

/// Waits until nothing is under way, everything holds, and each hostname leads to the commit it should; nothing else
/// may be live.
pub(crate) async fn at_rest(acknowledged: &[Acknowledged], wanted: &BTreeMap<String, String>) -> AtRest {
    let begun = Instant::now();
    loop {
        let (seen, mut found) = look(acknowledged).await;
        for (host, commit) in wanted {
            match seen.commits().get(host.as_str()) {
                Some(live) if live == commit => {}
                other => found.push(format!("{host} should lead to {commit}, not to {other:?}")),
            }
        }
        for live in seen.rows.live.iter().filter(|live| !wanted.contains_key(&live.host)) {
            found.push(format!("{} should lead nowhere, not to deployment {}", live.host, live.id));
        }
        if found.is_empty() {
            return seen;
        }
        let all = found.join("\n  ");
        assert!(begun.elapsed() < REST_MAX, "kennel did not come to rest within {} s:\n  {all}", REST_MAX.as_secs());
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

/// Looks once; tells what it saw and what is wrong with it.
async fn look(acknowledged: &[Acknowledged]) -> (AtRest, Vec<String>) {
    let rows = match Rows::read(&super::split::database()).await {
        Ok(rows) => rows,
        Err(err) => return (AtRest::default(), vec![format!("the database cannot be read: {err}")]),
    };
    if !rows.under_way.is_empty() {
        let found = rows.under_way.iter().cloned().collect();
        return (AtRest { rows, ..AtRest::default() }, found);
    }
    let (units, slices) = units().await;
    let machine = Machine { databases: databases::seen().await, ..observe(&units) };
    let mut found = faults(&rows, &machine, acknowledged);
    for live in &rows.live {
        found.extend(visit(live, &units).await);
    }
    found.extend(strays(&rows).await);
    found.extend(drafts().into_iter().map(|path| format!("{path} was never put in its place")));
    found.extend(overdue().into_iter().map(|path| format!("{path} has lain in the trash for more than 7 days")));
    let services = rows.live.iter().filter(|live| live.kind == "service");
    let used: BTreeSet<_> = services.filter_map(|live| live.host.rsplit('.').nth(2)).map(slice_of).collect();
    let empty = slices.iter().filter(|&slice| slice != "kennel-_builds.slice" && !used.contains(slice));
    found.extend(empty.map(|slice| format!("nothing is in {slice}")));
    // Last, as it is dearest.
    if found.is_empty() {
        for live in &rows.live {
            found.extend(databases::try_out(&live.unit).await);
        }
    }
    let pids = units.into_iter().map(|(name, unit)| (name, unit.pid)).collect();
    (AtRest { rows, machine, pids }, found)
}

fn slice_of(project: &str) -> String {
    format!("kennel-{}.slice", project.replace('-', "\\x2d"))
}

/// A unit as systemd shows it.
#[derive(Debug, Default)]
struct Unit {
    pid: u32,
    active: String,
    restarts: u32,
}

/// kennel's units, and the slices of its projects, that systemd knows.
async fn units() -> (BTreeMap<String, Unit>, Vec<String>) {
    let properties = "--property=Id,MainPID,ActiveState,NRestarts";
    let shown = machine::ok("systemctl", &["show", "--all", properties, "kennel-*.service", "kennel-*.slice"]).await;
    let (mut units, mut slices) = (BTreeMap::new(), Vec::new());
    for block in shown.split("\n\n") {
        let value = |name: &str| {
            block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default().to_owned()
        };
        let (id, active) = (value("Id"), value("ActiveState"));
        if id.ends_with(".slice") && active == "active" {
            slices.push(id);
        } else if id.ends_with(".service") && id != "kennel-host.service" {
            let number = |name| value(name).parse().unwrap_or_default();
            units.insert(id, Unit { pid: number("MainPID"), active, restarts: number("NRestarts") });
        }
    }
    (units, slices)
}

fn observe(units: &BTreeMap<String, Unit>) -> Machine {
    let state = Path::new(STATE);
    let ours = |name: &String| name.starts_with("kennel-") && name.ends_with(".service");
    let env_files = machine::names(&Path::new(RUN).join("secrets")).into_iter();
    let env_files = env_files.map(|name| format!("kennel-{}.service", name.strip_suffix(".env").unwrap_or(&name)));
    let names = |dir: &str| machine::names(&state.join(dir)).into_iter().collect();
    let mut data_dirs = three_deep(&state.join("services"));
    data_dirs.extend(three_deep(&Path::new(PRIVATE).join("services")));
    Machine {
        units: units.keys().cloned().collect(),
        unit_files: machine::names(Path::new(UNITS)).into_iter().filter(ours).collect(),
        env_files: env_files.collect(),
        gc_roots: machine::names(&state.join("gcroots"))
            .into_iter()
            .map(|name| (name.clone(), leads_to(&state.join("gcroots").join(name))))
            .collect(),
        site_links: three_deep(&state.join("sites"))
            .into_iter()
            .map(|place| (place.clone(), leads_to(&state.join("sites").join(place))))
            .collect(),
        data_dirs,
        work_dirs: names("work"),
        log_dirs: names("logs"),
        databases: None,
    }
}

fn leads_to(link: &Path) -> String {
    fs::read_link(link).map_or_else(|err| format!("nothing: {err}"), |to| to.display().to_string())
}

/// `<a>/<b>/<c>` of what lies below a directory; of what is empty before that, as much as there is.
fn three_deep(top: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::from([String::new()]);
    for _ in 0..3 {
        found = found
            .into_iter()
            .flat_map(|place| {
                let below = machine::names(&top.join(&place));
                let join = |name: String| if place.is_empty() { name } else { format!("{place}/{name}") };
                if below.is_empty() { vec![place.clone()] } else { below.into_iter().map(join).collect() }
            })
            .collect();
    }
    found.remove("");
    found
}

/// What is wrong with a live version as a visitor and systemd see it.
async fn visit(live: &Live, units: &BTreeMap<String, Unit>) -> Vec<String> {
    let mut found = Vec::new();
    match send(ROUTER, request(Method::GET, &live.host, "/", "")).await {
        Ok(answer) if answer.status == 200 => {}
        Ok(answer) => found.push(format!("http://{}/ answers {}", live.host, answer.status)),
        Err(err) => found.push(format!("http://{}/ does not answer: {err}", live.host)),
    }
    if !Path::new(&live.store_path).exists() {
        found.push(format!("{} is not in the store", live.store_path));
    }
    if live.kind != "service" {
        return found;
    }
    let unit = units.get(&live.unit);
    if unit.is_none_or(|unit| unit.active != "active" || unit.pid == 0) {
        found.push(format!("`{}` does not run: {unit:?}", live.unit));
    }
    if unit.is_some_and(|unit| unit.restarts > 0) {
        found.push(format!("`{}` was started again by systemd", live.unit));
    }
    found
}

/// Listeners, processes and builders that belong to nothing.
async fn strays(rows: &Rows) -> Vec<String> {
    let ports: BTreeSet<_> = rows.live.iter().filter_map(|live| live.port).collect();
    let listening: BTreeSet<_> =
        machine::listening_ports().into_iter().filter(|port| (18000..20000).contains(port)).collect();
    let mut found: Vec<_> = listening.difference(&ports).map(|port| format!("somebody listens on {port}")).collect();
    found.extend(ports.difference(&listening).map(|port| format!("nobody listens on {port}")));
    let build_user = machine::uid_of("kennel-build").await;
    let mut processes = machine::processes_of(|uid| uid == build_user);
    processes.extend(machine::nix_builders());
    found.extend(processes.into_iter().map(|process| format!("a build's process is left: {process:?}")));
    found
}

/// Files, links and directories that were made beside their place and never put there.
fn drafts() -> Vec<String> {
    let state = Path::new(STATE);
    let mut dirs =
        vec![Path::new(UNITS).to_owned(), Path::new(RUN).join("secrets"), state.join("gcroots"), state.join("logs")];
    let branches = three_deep(&state.join("sites"));
    dirs.extend(branches.iter().filter_map(|place| Some(state.join("sites").join(place).parent()?.to_owned())));
    let names = dirs.into_iter().flat_map(|dir| machine::names(&dir).into_iter().map(move |name| (dir.clone(), name)));
    let drafts = names.filter(|(_, name)| name.starts_with('.') && name.ends_with(".new"));
    drafts.map(|(dir, name)| dir.join(name).display().to_string()).collect()
}

/// What lies in the trash since 1970; names there begin with the time in milliseconds.
fn overdue() -> Vec<String> {
    let dirs = [STATE, PRIVATE].map(|dir| Path::new(dir).join("trash"));
    let names = dirs.iter().flat_map(|dir| machine::names(dir).into_iter().map(move |name| dir.join(name)));
    let is_old = |path: &std::path::PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('-'));
        name.and_then(|(millis, _)| millis.parse().ok()).is_some_and(|millis: u64| millis < 1_000_000)
    };
    names.filter(is_old).map(|path| path.display().to_string()).collect()
}
