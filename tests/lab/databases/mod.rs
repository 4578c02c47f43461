//! Preview databases on real servers: each branch has its own, and only its own, for as long as it is there.

mod ends;
mod outages;
mod walls;

use std::fs;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::harness::databases::{Postgres, Valkey, command, valkey_as};
use crate::harness::{App, Deployment, Lab, LabConfig, Service, api, machine};

/// A kennel with both servers.
async fn lab_with_servers() -> (Lab, Valkey, Postgres) {
    let (valkey, postgres) = (Valkey::start(16).await, Postgres::start().await);
    let config = LabConfig::hello().section(&valkey.section()).section(&postgres.section());
    (Lab::start(config).await, valkey, postgres)
}

/// A repository whose only service wants databases.
fn app(version: &str) -> App {
    App::default().with(Service::new("api", version).settings(&["drain_secs = 1", "preview_database = true"]))
}

/// A variable of a running deployment, as its process has it.
async fn variable(live: &Deployment, name: &str) -> String {
    let pid = machine::main_pid(&live.unit()).await;
    let environ = machine::text(&fs::read(format!("/proc/{pid}/environ")).expect("the process runs"));
    let found = environ.split('\0').find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("{name} is missing")).to_owned()
}

/// The databases of a branch.
struct Databases {
    valkey: String,
    postgres: String,
}

impl Databases {
    async fn of(live: &Deployment) -> Self {
        Self { valkey: variable(live, "VALKEY_URL").await, postgres: variable(live, "DATABASE_URL").await }
    }

    fn number(&self) -> u16 {
        self.valkey.rsplit_once('/').expect("the URL ends in a number").1.parse().expect("the URL ends in a number")
    }

    /// The name of the PostgreSQL database, and of its role.
    fn name(&self) -> &str {
        self.postgres.rsplit_once('/').expect("the URL ends in a name").1
    }

    /// What Valkey answers to a command of the branch's.
    async fn valkey(&self, words: &[&str]) -> Result<redis::Value, String> {
        let mut connection = valkey_as(&self.valkey).await.map_err(|err| err.to_string())?;
        command(words).query_async(&mut connection).await.map_err(|err| err.to_string())
    }

    /// The branch's connection to a database: its own, unless another is named.
    async fn connect(&self, database: Option<&str>) -> Result<PgConnection, sqlx::Error> {
        let (base, own) = self.postgres.rsplit_once('/').expect("the URL ends in a name");
        PgConnection::connect(&format!("{base}/{}", database.unwrap_or(own))).await
    }

    /// What PostgreSQL answers to statements of the branch's.
    async fn postgres(&self, statements: &str) -> Result<(), String> {
        let mut connection = self.connect(None).await.map_err(|err| err.to_string())?;
        let done = connection.execute(sqlx::raw_sql(AssertSqlSafe(statements.to_owned()))).await;
        done.map(|_| ()).map_err(|err| err.to_string())
    }
}

/// What the branch's own service is told by Valkey.
async fn service_asks(lab: &Lab, live: &Deployment, words: &str) -> String {
    lab.visit(&live.host, &format!("/valkey?{words}")).await.expect(200).json()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_has_databases_of_its_branch_from_version_to_version() {
    let (lab, valkey, postgres) = lab_with_servers().await;
    let jobs = Service::new("jobs", "one").settings(&["drain_secs = 1", "preview_database = true"]);
    let mut both = lab.deploy("hello", "main", &app("one").with(jobs)).await;
    let (one, jobs) = (both.remove("api").unwrap(), both.remove("jobs").unwrap());
    let first = Databases::of(&one).await;
    let events = api::deployment(one.id).await.events;
    println!(
        "allocate took {:?} ms",
        events.iter().find(|event| event.step == "allocate").map(|event| event.duration_ms)
    );
    assert_eq!(variable(&jobs, "VALKEY_URL").await, first.valkey, "a branch has one, whatever its services");
    assert_eq!(variable(&jobs, "DATABASE_URL").await, first.postgres);
    assert_eq!(first.number(), 1, "0 is nobody's");
    assert!(first.valkey.starts_with("redis://kennel-1:") && first.valkey.ends_with("@127.0.0.1:6379/1"));
    assert!(first.name().starts_with("kennel_hello_main_"), "{}", first.name());
    assert_eq!(service_asks(&lab, &one, "SET,dog,rex").await, "+OK");
    first.postgres("create table dogs (name text); insert into dogs values ('rex')").await.unwrap();

    let two = lab.deploy_api("hello", "main", &app("two")).await;
    let second = Databases::of(&two).await;
    assert_eq!((&second.valkey, &second.postgres), (&first.valkey, &first.postgres));
    assert_eq!(service_asks(&lab, &two, "GET,dog").await, "rex");
    second.postgres("insert into dogs select name from dogs; create schema kennels").await.unwrap();

    let plain = lab.deploy_api("hello", "main", &App::api("three")).await;
    let pid = machine::main_pid(&plain.unit()).await;
    assert!(!machine::text(&fs::read(format!("/proc/{pid}/environ")).unwrap()).contains("_URL=redis"));
    assert_eq!(valkey.users().await, ["kennel-1"], "they are the branch's, not the version's");
    assert_eq!(postgres.databases().await, [first.name()]);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_numbers_are_taken_a_deployment_says_so() {
    let valkey = Valkey::start(3).await;
    valkey.ask::<()>(&["SELECT", "1"]).await;
    let mut admin = valkey.admin().await;
    let foreign = redis::pipe().cmd("SELECT").arg(1).cmd("SET").arg("orders").arg(7).query_async(&mut admin).await;
    let () = foreign.unwrap();
    let lab = Lab::start(LabConfig::hello().section(&valkey.section())).await;

    let one = lab.deploy_api("hello", "one", &app("one")).await;
    assert!(variable(&one, "VALKEY_URL").await.ends_with("/2"), "what others have put into 1 is theirs");
    assert_eq!(service_asks(&lab, &one, "SET,dog,rex").await, "+OK");
    let pushed = lab.push("hello", "two", &app("two")).await;
    let failed = lab.settled(pushed.build, "api").await;
    assert_eq!(failed.state, "failed");
    for word in ["all database numbers of Valkey at 127.0.0.1:6379 are taken", "`databases` in valkey.conf"] {
        assert!(failed.reason().contains(word), "{}", failed.reason());
    }

    lab.delete_branch("hello", "one").await.expect(202);
    crate::harness::until("the number is free", Duration::from_secs(15), async || {
        valkey.users().await.is_empty().then_some(())
    })
    .await;
    let two = lab.deploy_api("hello", "two", &app("three")).await;
    assert!(variable(&two, "VALKEY_URL").await.ends_with("/2"));
    assert_eq!(service_asks(&lab, &two, "GET,dog").await, "$-1", "it is empty");
    assert_eq!(valkey.size(1).await, 1);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_server_or_a_wrong_url_is_told_by_name_and_without_the_password() {
    let lab = Lab::hello().await;
    let pushed = lab.push("hello", "main", &app("one")).await;
    let failed = lab.settled(pushed.build, "api").await;
    assert_eq!(failed.state, "failed");
    assert!(failed.reason().contains("`[valkey] url_file`"), "{}", failed.reason());
    lab.finish().await;

    let valkey = Valkey::start(16).await;
    let lab = Lab::start(LabConfig::hello().section(&valkey.section())).await;
    let file = "/srv/databases/valkey-url";
    for (url, says) in [
        ("redis://kennel:geheim@127.0.0.1:6379", "refuses to let kennel in"),
        ("kennel:geheim@127.0.0.1:6379", "does not begin with `redis://`"),
        ("redis://kennel:ge/heim@127.0.0.1:6379", "is not a URL"),
    ] {
        fs::write(file, url).unwrap();
        let pushed = lab.push("hello", "main", &app(says)).await;
        let failed = lab.settled(pushed.build, "api").await;
        println!("{}", failed.reason());
        assert!(failed.reason().contains(says), "{}", failed.reason());
        assert!(failed.reason().contains("Valkey") && !failed.reason().contains("heim"), "{}", failed.reason());
    }
    assert!(!lab.journal().await.contains("heim"));
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_tells_whether_the_servers_have_what_branches_need() {
    let (lab, valkey, postgres) = lab_with_servers().await;
    let doctor = async || machine::text(&machine::run("kennel", &["doctor"]).await.stdout);
    let said = doctor().await;
    println!("{said}");
    assert!(said.contains("room for 15 branches") && said.contains("version 17"), "{said}");

    valkey.ask::<()>(&["SET", "orders", "7"]).await;
    postgres.run("create database shop").await;
    let said = doctor().await;
    println!("{said}");
    assert!(said.contains("database 0 holds keys") && said.contains("every branch may connect to `shop`"), "{said}");

    valkey.stop().await;
    postgres.run("alter role kennel nocreaterole").await;
    let said = doctor().await;
    println!("{said}");
    assert!(said.contains("Valkey at 127.0.0.1:6379 cannot be reached") && said.contains("CREATEROLE"), "{said}");
    lab.finish().await;
}
