//! The operator's database servers: the machine's Valkey and PostgreSQL, each with an administrator for kennel.

use std::fs;
use std::path::Path;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use super::{CONFIG_DIR, machine, until, write_own_secret, write_secret};
use crate::invariants::Databases;

/// Where the servers' files lie.
const DIR: &str = "/srv/databases";
/// How long a server may take to come up.
const UP_MAX: Duration = Duration::from_secs(20);
const VALKEY_UNIT: &str = "lab-valkey.service";
/// The password of kennel at Valkey, and at PostgreSQL.
pub(crate) const ADMIN_PASSWORDS: [&str; 2] = ["valkey-hush-0815", "postgres-hush-4711"];
/// The test's own superuser of PostgreSQL.
const SUPERUSER: &str = "postgres://lab:lab@127.0.0.1:5432/postgres";

/// A Valkey that keeps nothing over a restart: users least of all.
pub(crate) struct Valkey;

impl Valkey {
    /// An empty server with that many databases.
    pub(crate) async fn start(databases: u16) -> Self {
        fs::create_dir_all(DIR).unwrap();
        let [password, _] = ADMIN_PASSWORDS;
        let settings = format!(
            "bind 127.0.0.1\nport 6379\ndatabases {databases}\nsave \"\"\ndir /tmp\nenable-debug-command local\n\
             user default off\nuser kennel on >{password} ~* &* +@all\n"
        );
        write_secret(format!("{DIR}/valkey.conf").as_ref(), &settings);
        write_own_secret(format!("{DIR}/valkey-url").as_ref(), &format!("redis://kennel:{password}@127.0.0.1:6379\n"));
        let valkey = Self;
        stop_kennel().await;
        valkey.stop().await;
        valkey.start_again().await;
        valkey
    }

    /// The lines of the daemon's file that name it.
    pub(crate) fn section(&self) -> String {
        format!("[valkey]\nurl_file = \"{DIR}/valkey-url\"\n")
    }

    pub(crate) async fn stop(&self) {
        let _ = machine::run("systemctl", &["stop", VALKEY_UNIT]).await;
    }

    pub(crate) async fn start_again(&self) {
        let conf = format!("{DIR}/valkey.conf");
        let unit = format!("--unit={VALKEY_UNIT}");
        machine::ok("systemd-run", &["--quiet", "--collect", &unit, "valkey-server", &conf]).await;
        until("Valkey is up", UP_MAX, async || self.try_admin().await.ok()).await;
    }

    /// A connection as the administrator.
    pub(crate) async fn admin(&self) -> MultiplexedConnection {
        self.try_admin().await.expect("Valkey runs")
    }

    async fn try_admin(&self) -> redis::RedisResult<MultiplexedConnection> {
        valkey_as(fs::read_to_string(format!("{DIR}/valkey-url")).unwrap().trim()).await
    }

    /// What the administrator is told.
    pub(crate) async fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let said = command(words).query_async(&mut self.admin().await).await;
        said.unwrap_or_else(|err| panic!("{words:?}: {err}"))
    }

    /// The users there are.
    pub(crate) async fn users(&self) -> Vec<String> {
        let mut users: Vec<String> = self.ask(&["ACL", "USERS"]).await;
        users.retain(|user| user != "default" && user != "kennel");
        users
    }

    /// Dies without a word, and is started again.
    pub(crate) async fn kill9(&self) {
        let _ = machine::run("systemctl", &["kill", "--signal=KILL", VALKEY_UNIT]).await;
        self.stop().await;
        self.start_again().await;
    }

    /// What each number that is not empty holds, as `INFO` tells it.
    pub(crate) async fn keyspace(&self) -> Vec<String> {
        let info: String = self.ask(&["INFO", "keyspace"]).await;
        info.lines().filter(|line| line.starts_with("db")).map(str::to_owned).collect()
    }

    /// Puts a key into a number, as the administrator.
    pub(crate) async fn fill(&self, number: u16) {
        let mut admin = self.admin().await;
        let set = redis::pipe().cmd("SELECT").arg(number).cmd("SET").arg("a").arg("b").query_async(&mut admin).await;
        let () = set.expect("the administrator may write");
    }

    /// How many keys a number holds.
    pub(crate) async fn size(&self, number: u16) -> i64 {
        let mut admin = self.admin().await;
        let size = redis::pipe().cmd("SELECT").arg(number).ignore().cmd("DBSIZE").query_async(&mut admin).await;
        let (size,): (i64,) = size.expect("the administrator may look");
        size
    }
}

/// The machine's PostgreSQL, with a role `kennel` of CREATEDB and CREATEROLE, and nothing of kennel's in it.
pub(crate) struct Postgres {
    unit: String,
}

impl Postgres {
    pub(crate) async fn start() -> Self {
        fs::create_dir_all(DIR).unwrap();
        let [_, password] = ADMIN_PASSWORDS;
        let url = format!("postgres://kennel:{password}@127.0.0.1:5432/postgres\n");
        write_own_secret(format!("{DIR}/postgres-url").as_ref(), &url);
        let version = machine::names("/etc/postgresql".as_ref()).pop().expect("PostgreSQL is installed");
        let postgres = Self { unit: format!("postgresql@{version}-main.service") };
        stop_kennel().await;
        postgres.start_again().await;
        let superuser = "do $$ begin create role lab superuser login password 'lab'; \
                         exception when duplicate_object then null; end $$";
        machine::ok("runuser", &["-u", "postgres", "--", "psql", "--quiet", "-c", superuser]).await;
        postgres.wipe().await;
        let mut admin = postgres.admin().await;
        let role = format!("create role kennel login createdb createrole password '{password}'");
        admin.execute(sqlx::raw_sql(AssertSqlSafe(role))).await.unwrap();
        postgres
    }

    async fn wipe(&self) {
        for name in self.names("select datname::text from pg_database where datname ~ '^(kennel|shop)'").await {
            self.run(&format!("drop database \"{name}\" with (force)")).await;
        }
        // The administrator last: it is a member of the others.
        for name in self.names("select rolname::text from pg_roles where rolname like 'kennel%' order by 1 desc").await
        {
            self.run(&format!("drop owned by \"{name}\"; drop role \"{name}\"")).await;
        }
    }

    /// The lines of the daemon's file that name it.
    pub(crate) fn section(&self) -> String {
        format!("[postgres]\nurl_file = \"{DIR}/postgres-url\"\n")
    }

    pub(crate) async fn stop(&self) {
        machine::ok("systemctl", &["stop", &self.unit]).await;
    }

    pub(crate) async fn start_again(&self) {
        machine::ok("systemctl", &["start", &self.unit]).await;
    }

    pub(crate) async fn restart(&self) {
        let _ = machine::run("systemctl", &["reset-failed", &self.unit]).await;
        machine::ok("systemctl", &["restart", &self.unit]).await;
    }

    /// Dies without a word, and is started again.
    pub(crate) async fn kill9(&self) {
        let _ = machine::run("systemctl", &["kill", "--signal=KILL", &self.unit]).await;
        let _ = machine::run("systemctl", &["stop", &self.unit]).await;
        let _ = machine::run("systemctl", &["reset-failed", &self.unit]).await;
        self.start_again().await;
    }

    /// A connection as a superuser of the test's own.
    pub(crate) async fn admin(&self) -> PgConnection {
        PgConnection::connect(SUPERUSER).await.expect("PostgreSQL runs")
    }

    /// Runs statements as the superuser.
    pub(crate) async fn run(&self, statements: &str) {
        // Each by itself: some cannot be in a transaction with others.
        for statement in statements.split("; ") {
            let done = self.admin().await.execute(sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))).await;
            done.unwrap_or_else(|err| panic!("{statement}: {err}"));
        }
    }

    /// The first column of what the superuser is told.
    pub(crate) async fn names(&self, query: &str) -> Vec<String> {
        let rows = sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_all(&mut self.admin().await).await;
        rows.unwrap_or_else(|err| panic!("{query}: {err}"))
    }

    /// The databases whose name begins with kennel's.
    pub(crate) async fn databases(&self) -> Vec<String> {
        self.names("select datname::text from pg_database where datname like 'kennel%' order by 1").await
    }

    /// The roles whose name begins with kennel's, the administrator left out.
    pub(crate) async fn roles(&self) -> Vec<String> {
        self.names("select rolname::text from pg_roles where rolname like 'kennel\\_%' order by 1").await
    }
}

/// After a failed test it still runs, and would make again what is removed here.
async fn stop_kennel() {
    machine::ok("systemctl", &["stop", "kennel.service"]).await;
}

/// A connection to Valkey with a URL.
pub(crate) async fn valkey_as(url: &str) -> redis::RedisResult<MultiplexedConnection> {
    redis::Client::open(url)?.get_multiplexed_async_connection().await
}

/// A command of Valkey's.
pub(crate) fn command(words: &[&str]) -> redis::Cmd {
    let mut command = redis::cmd(words[0]);
    words[1..].iter().for_each(|word| {
        command.arg(word);
    });
    command
}

/// What the servers have of kennel's, if both are configured and answer.
pub(super) async fn seen() -> Option<Databases> {
    let config = fs::read_to_string(Path::new(CONFIG_DIR).join("config.toml")).ok()?;
    if !config.contains("[valkey]") || !config.contains("[postgres]") {
        return None;
    }
    let mut valkey = Valkey.try_admin().await.ok()?;
    let users: Vec<String> = command(&["ACL", "USERS"]).query_async(&mut valkey).await.ok()?;
    let mut postgres = PgConnection::connect(SUPERUSER).await.ok()?;
    let query = "select rolname::text, rolcanlogin, true from pg_roles where rolname ~ '^kennel_.*_[0-9a-f]{12}$'
                 union all select datname::text, false, false from pg_database
                 where datname ~ '^kennel_.*_[0-9a-f]{12}(_trash)?$'";
    let rows: Vec<(String, bool, bool)> = sqlx::query_as(query).fetch_all(&mut postgres).await.ok()?;
    let names = |wanted: &dyn Fn(bool, bool) -> bool| {
        let found = rows.iter().filter(|(_, open, role)| wanted(*open, *role));
        found.map(|(name, ..)| name.clone()).collect()
    };
    Some(Databases {
        valkey_users: users.into_iter().filter(|user| is_own(user)).collect(),
        roles: names(&|_, is_role| is_role),
        open_roles: names(&|is_open, is_role| is_role && is_open),
        databases: names(&|_, is_role| !is_role),
    })
}

/// Whether a user of Valkey's is one that kennel makes, and not one that is only called similarly.
fn is_own(user: &str) -> bool {
    let number = user.strip_prefix("kennel-").and_then(|number| number.parse::<u16>().ok());
    number.is_some_and(|number| format!("kennel-{number}") == user)
}

/// Does with the databases of a running unit what its service would do; tells what does not work.
pub(super) async fn try_out(unit: &str) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(url) = variable(unit, "VALKEY_URL")
        && let Err(err) = ping(&url).await
    {
        found.push(format!("`{unit}` cannot use its Valkey number: {err}"));
    }
    if let Some(url) = variable(unit, "DATABASE_URL")
        && let Err(err) = PgConnection::connect(&url).await
    {
        found.push(format!("`{unit}` cannot use its PostgreSQL database: {err}"));
    }
    found
}

async fn ping(url: &str) -> redis::RedisResult<()> {
    // A connection selects its number by itself, and so may.
    command(&["PING"]).query_async(&mut valkey_as(url).await?).await
}

/// A variable of the environment file of a unit.
pub(crate) fn variable(unit: &str, name: &str) -> Option<String> {
    let file = unit.trim_start_matches("kennel-").replace(".service", ".env");
    let text = fs::read_to_string(Path::new("/run/kennel/secrets").join(file)).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}
