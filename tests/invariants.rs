//! What holds of kennel whatever happened to it, once nothing is under way: written here for the tests in process and
//! for those of the lab alike.
//!
//! Each kind of test says what it sees of its machine ([`Machine`]) and which deliveries were acknowledged; the rows
//! are read here, from the database's own file and not through kennel.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{Connection as _, Row as _};

/// What lies on a machine under kennel's own names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Units of deployments and builds that run, or that systemd remembers.
    pub(crate) units: BTreeSet<String>,
    /// Units with a file.
    pub(crate) unit_files: BTreeSet<String>,
    /// Units with an environment file.
    pub(crate) env_files: BTreeSet<String>,
    /// `<build>-<name>`, and the store path it keeps.
    pub(crate) gc_roots: BTreeMap<String, String>,
    /// `<project>/<slug>/<site>`, and the store path it leads to.
    pub(crate) site_links: BTreeMap<String, String>,
    /// `<project>/<slug>/<service>`.
    pub(crate) data_dirs: BTreeSet<String>,
    /// Builds.
    pub(crate) work_dirs: BTreeSet<String>,
    /// Builds.
    pub(crate) log_dirs: BTreeSet<String>,
    /// What the database servers have; `None` where there are none.
    pub(crate) databases: Option<Databases>,
}

/// What lies on the operator's database servers under kennel's own names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Databases {
    /// Users `kennel-<number>`.
    pub(crate) valkey_users: BTreeSet<String>,
    /// Roles `kennel_…`.
    pub(crate) roles: BTreeSet<String>,
    /// Those of them that can log in.
    pub(crate) open_roles: BTreeSet<String>,
    /// Databases `kennel_…`, renamed or not.
    pub(crate) databases: BTreeSet<String>,
}

/// What the rows say, as far as somebody outside kennel can hold it to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    /// What is still to be done, in words.
    pub(crate) under_way: BTreeSet<String>,
    /// Things that only one row may have, with all that have it.
    shared: BTreeSet<String>,
    /// Live versions of services and sites.
    pub(crate) live: Vec<Live>,
    /// `<project>/<slug>/<name>` of every target that is there.
    places: BTreeSet<String>,
    /// Ports and the deployments they are for.
    ports: BTreeMap<i64, i64>,
    /// Hostnames and the deployments they lead to.
    routes: BTreeMap<String, Option<i64>>,
    /// `<build>-<name>` and store path of every artifact that a root is said to keep.
    rooted: BTreeMap<String, String>,
    /// Of those, the ones whose target is gone.
    rooted_for_nobody: BTreeSet<String>,
    /// Branches that nobody wants and that are not gone.
    unwanted: BTreeSet<String>,
    /// Valkey numbers, as `kennel-<number>`.
    valkey_numbers: BTreeSet<String>,
    /// PostgreSQL databases of branches.
    databases: BTreeSet<String>,
    /// Those whose branch has ended, by the name they had.
    renamed: BTreeSet<String>,
    /// Numbers and databases of branches of which nothing is there.
    idle: BTreeSet<String>,
    /// Every build's state.
    builds: BTreeMap<i64, String>,
    /// `<project>/<delivery>` and its build.
    pub(crate) deliveries: BTreeMap<String, Option<i64>>,
}

/// A version that is live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) id: i64,
    /// `service` or `site`.
    pub(crate) kind: String,
    pub(crate) unit: String,
    pub(crate) host: String,
    pub(crate) commit: String,
    pub(crate) store_path: String,
    /// `<project>/<slug>/<name>`.
    pub(crate) place: String,
    /// `<build>-<name>`.
    pub(crate) artifact: String,
    pub(crate) port: Option<u16>,
}

/// A delivery that was answered with 2xx, and the build it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    pub(crate) project: String,
    pub(crate) delivery: String,
    pub(crate) build: Option<i64>,
}

const LIVE: &str =
    "select d.id, a.kind, t.tag, t.host, b.commit_sha, a.store_path, p.port, d.build_id || '-' || t.name,
    br.project || '/' || br.slug || '/' || t.name
    from deployments d join targets t on t.id = d.target_id join builds b on b.id = d.build_id
    join branches br on br.id = t.branch_id join artifacts a on a.build_id = d.build_id and a.name = t.name
    left join ports p on p.deployment_id = d.id where d.state = 'live' order by d.id";

/// Each gives one sentence for each thing that is not at rest.
const UNDER_WAY: [&str; 6] = [
    "select 'build ' || id || ' is ' || state from builds where state in ('queued', 'building')",
    "select 'deployment ' || id || ' is ' || state || ', its next step ' || coalesce(step, 'none') from deployments
     where state in ('pending', 'starting', 'draining') or step is not null",
    "select 'target ' || target_id || ' is to be torn down' from teardowns",
    "select 'Valkey number ' || number || ' is to be given back' from valkey_numbers where ended_at is not null",
    "select 'PostgreSQL database ' || name || ' is to be renamed' from postgres_databases where state = 'ended'",
    "select 'PostgreSQL database ' || name || ' is to be dropped' from postgres_databases
     where state = 'renamed' and ended_at <= (unixepoch() - 7 * 86400) * 1000",
];

/// Each gives the things that more than one row has.
const SHARED: [&str; 5] = [
    "select 'host ' || host from targets where gone_at is null group by host having count(*) > 1",
    "select 'tag ' || tag from targets where gone_at is null group by tag having count(*) > 1",
    "select 'user ' || user_name from targets where gone_at is null group by user_name having count(*) > 1",
    "select 'slug ' || project || '/' || slug from branches where gone_at is null
     group by project, slug having count(*) > 1",
    "select 'live version of target ' || target_id from deployments where state = 'live'
     group by target_id having count(*) > 1",
];

impl Rows {
    /// Reads them all, as they are at one instant.
    pub(crate) async fn read(database: &Path) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::new().filename(database).read_only(true);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        let mut tx = connection.begin().await?;
        let mut rows = Self::default();
        for query in UNDER_WAY {
            rows.under_way.extend(sqlx::query_scalar::<_, String>(query).fetch_all(&mut *tx).await?);
        }
        for query in SHARED {
            rows.shared.extend(sqlx::query_scalar::<_, String>(query).fetch_all(&mut *tx).await?);
        }
        let live = sqlx::query(LIVE).fetch_all(&mut *tx).await?;
        rows.live = live.iter().map(read_live).collect::<Result<_, _>>()?;
        let places = "select br.project || '/' || br.slug || '/' || t.name from targets t
                      join branches br on br.id = t.branch_id where t.gone_at is null";
        rows.places = sqlx::query_scalar(places).fetch_all(&mut *tx).await?.into_iter().collect();
        let ports = "select port, deployment_id from ports";
        rows.ports = sqlx::query_as(ports).fetch_all(&mut *tx).await?.into_iter().collect();
        let routes = "select host, deployment_id from routes";
        rows.routes = sqlx::query_as(routes).fetch_all(&mut *tx).await?.into_iter().collect();
        let rooted = "select build_id || '-' || name, coalesce(store_path, '') from artifacts where rooted = 1";
        rows.rooted = sqlx::query_as(rooted).fetch_all(&mut *tx).await?.into_iter().collect();
        let nobody = "select a.build_id || '-' || a.name from artifacts a join builds b on b.id = a.build_id
                      where a.rooted = 1 and not exists (select 1 from targets t
                      where t.branch_id = b.branch_id and t.name = a.name and t.gone_at is null)";
        rows.rooted_for_nobody = sqlx::query_scalar(nobody).fetch_all(&mut *tx).await?.into_iter().collect();
        let unwanted = "select project || ' ' || ref from branches where wanted = 0 and gone_at is null";
        rows.unwanted = sqlx::query_scalar(unwanted).fetch_all(&mut *tx).await?.into_iter().collect();
        let numbers = "select 'kennel-' || number from valkey_numbers";
        rows.valkey_numbers = sqlx::query_scalar(numbers).fetch_all(&mut *tx).await?.into_iter().collect();
        let databases = "select name from postgres_databases where state <> 'renamed'";
        rows.databases = sqlx::query_scalar(databases).fetch_all(&mut *tx).await?.into_iter().collect();
        let renamed = "select name from postgres_databases where state = 'renamed'";
        rows.renamed = sqlx::query_scalar(renamed).fetch_all(&mut *tx).await?.into_iter().collect();
        let idle = "select what || ' belongs to branch ' || branch_id from (
                        select 'Valkey number ' || number as what, branch_id from valkey_numbers
                        union all select 'PostgreSQL database ' || name, branch_id from postgres_databases) d
                    where branch_id is not null and not exists (
                        select 1 from targets t where t.branch_id = d.branch_id and t.gone_at is null)";
        rows.idle = sqlx::query_scalar(idle).fetch_all(&mut *tx).await?.into_iter().collect();
        let builds = "select id, state from builds";
        rows.builds = sqlx::query_as(builds).fetch_all(&mut *tx).await?.into_iter().collect();
        let deliveries = "select project || '/' || id, build_id from deliveries";
        rows.deliveries = sqlx::query_as(deliveries).fetch_all(&mut *tx).await?.into_iter().collect();
        Ok(rows)
    }

    /// The state of a build.
    pub(crate) fn build(&self, id: i64) -> Option<&str> {
        self.builds.get(&id).map(String::as_str)
    }

    /// What is wrong with the rows alone.
    fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> = self.under_way.iter().cloned().collect();
        faults.extend(self.shared.iter().map(|thing| format!("more than one row has the {thing}")));
        faults.extend(self.unwanted.iter().map(|branch| format!("nobody wants {branch}, and it is not gone")));
        faults.extend(self.rooted_for_nobody.iter().map(|root| format!("root {root} is kept for nobody")));
        faults.extend(self.idle.iter().map(|what| format!("{what}, of which nothing is there")));
        let live: BTreeSet<i64> = self.live.iter().map(|live| live.id).collect();
        for (host, deployment) in &self.routes {
            if deployment.is_some_and(|id| !live.contains(&id)) {
                faults.push(format!("{host} leads to deployment {deployment:?}, which is not live"));
            }
        }
        for version in &self.live {
            if self.routes.get(&version.host) != Some(&Some(version.id)) {
                let Live { id, host, commit, .. } = version;
                faults.push(format!("{host} does not lead to deployment {id} of {commit}, which is live"));
            }
            if !self.places.contains(&version.place) {
                faults.push(format!("deployment {} is live and its target is gone", version.id));
            }
            if version.port.is_some() != (version.kind == "service") {
                faults.push(format!("deployment {}, a {}, has port {:?}", version.id, version.kind, version.port));
            }
            if self.rooted.get(&version.artifact) != Some(&version.store_path) {
                faults.push(format!("nothing keeps {}, which is live", version.store_path));
            }
        }
        let strays = self.ports.iter().filter(|(_, deployment)| !live.contains(deployment));
        faults.extend(strays.map(|(port, id)| format!("port {port} belongs to deployment {id}, which is not live")));
        faults
    }

    /// The live services' units.
    fn units(&self) -> BTreeSet<String> {
        self.live.iter().filter(|live| live.kind == "service").map(|live| live.unit.clone()).collect()
    }
}

fn read_live(row: &SqliteRow) -> Result<Live, sqlx::Error> {
    let (id, tag): (i64, String) = (row.try_get(0)?, row.try_get(2)?);
    Ok(Live {
        id,
        kind: row.try_get(1)?,
        unit: format!("{tag}@{id}.service"),
        host: row.try_get(3)?,
        commit: row.try_get(4)?,
        store_path: row.try_get(5)?,
        port: row.try_get::<Option<i64>, _>(6)?.and_then(|port| u16::try_from(port).ok()),
        artifact: row.try_get(7)?,
        place: row.try_get(8)?,
    })
}

/// What is wrong: empty when nothing is under way, wanted equals actual, each thing belongs to one row, and every
/// delivery that was acknowledged is in one build that has ended.
pub(crate) fn faults(rows: &Rows, machine: &Machine, acknowledged: &[Acknowledged]) -> Vec<String> {
    let mut faults = rows.faults();
    let units = rows.units();
    differ(&mut faults, "unit", &units, &machine.units);
    differ(&mut faults, "unit file", &units, &machine.unit_files);
    differ(&mut faults, "environment file", &units, &machine.env_files);
    differ(&mut faults, "GC root", &pairs(&rows.rooted), &pairs(&machine.gc_roots));
    let sites = rows.live.iter().filter(|live| live.kind == "site");
    let links = sites.map(|site| (site.place.clone(), site.store_path.clone())).collect();
    differ(&mut faults, "site link", &pairs(&links), &pairs(&machine.site_links));
    differ(&mut faults, "work directory", &BTreeSet::new(), &machine.work_dirs);
    let strays = machine.data_dirs.difference(&rows.places);
    faults.extend(strays.map(|place| format!("there is data of {place}, which is gone")));
    let builds = rows.builds.keys().map(ToString::to_string).collect();
    let strays = machine.log_dirs.difference(&builds);
    faults.extend(strays.map(|build| format!("there are logs of build {build}, of which there is no row")));
    if let Some(databases) = &machine.databases {
        databases_differ(&mut faults, rows, databases);
    }
    for Acknowledged { project, delivery, build } in acknowledged {
        match rows.deliveries.get(&format!("{project}/{delivery}")) {
            None => faults.push(format!("delivery {delivery} was acknowledged and is not recorded")),
            Some(made) if made != build => {
                faults.push(format!("delivery {delivery} was told build {build:?} and made {made:?}"));
            }
            Some(_) => {}
        }
        if build.is_some_and(|build| rows.build(build).is_none()) {
            faults.push(format!("delivery {delivery} was told build {build:?}, of which there is no row"));
        }
    }
    faults
}

/// Each number's user, each role and each database has its row, and each row of a branch has them.
fn databases_differ(faults: &mut Vec<String>, rows: &Rows, actual: &Databases) {
    differ(faults, "Valkey user", &rows.valkey_numbers, &actual.valkey_users);
    differ(faults, "role that can log in", &rows.databases, &actual.open_roles);
    // One that ended before it was made is renamed in its row alone.
    let owned = rows.databases.union(&rows.renamed).cloned().collect();
    let strays = actual.roles.difference(&owned);
    faults.extend(strays.map(|name| format!("role {name} belongs to nothing")));
    let trash = |name: &String| format!("{name}_trash");
    let missing = rows.databases.difference(&actual.databases);
    faults.extend(missing.map(|name| format!("PostgreSQL database {name} is missing")));
    let owned = rows.databases.iter().cloned().chain(rows.renamed.iter().map(trash)).collect();
    let strays = actual.databases.difference(&owned);
    faults.extend(strays.map(|name| format!("PostgreSQL database {name} belongs to nothing")));
}

fn pairs(map: &BTreeMap<String, String>) -> BTreeSet<String> {
    map.iter().map(|(from, to)| format!("{from} → {to}")).collect()
}

fn differ(faults: &mut Vec<String>, what: &str, wanted: &BTreeSet<String>, actual: &BTreeSet<String>) {
    faults.extend(wanted.difference(actual).map(|name| format!("{what} {name} is missing")));
    faults.extend(actual.difference(wanted).map(|name| format!("{what} {name} belongs to nothing")));
}
