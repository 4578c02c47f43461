//! PostgreSQL: a role and a database for each branch.
//!
//! A branch's role owns its database and may enter no other branch's; kennel's own role, with CREATEDB and
//! CREATEROLE, is a member of it. Every verb says *ensure*, since none of it can be one transaction.
//!
//! **Invariant:** only what a [`DatabaseName`] names is ever changed.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, Connection as _, Error};
use tokio::time::timeout;

use super::server::{CONNECT_MAX, ServerError, ServerUrl};
use crate::crash::{self, Point};
use crate::model::DatabaseName;

/// How long the server may take for one verb: dropping a database waits for a checkpoint.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// How many connections a branch may have at a time, all its services and versions together.
const CONNECTIONS_MAX: u32 = 20;
/// The rounds of PBKDF2 that PostgreSQL itself makes (`scram_iterations`).
const SCRAM_ROUNDS: u32 = 4096;
/// Under this lock kennel's sessions take turns: two that change one role at a time fail.
const TURN: i64 = 0x6b65_6e6e_656c;

/// A connection as the administrator.
pub struct Postgres {
    url: ServerUrl,
    connection: PgConnection,
}

/// What the administrator may do, for `kennel doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    /// The server's version, such as `17.6`.
    pub version: String,
    /// Whether it may make databases.
    pub create_db: bool,
    /// Whether it may make roles.
    pub create_role: bool,
    /// Whether it may do anything, which kennel does not need.
    pub superuser: bool,
    /// Databases that are not kennel's and that every role may connect to, those of branches included.
    pub open_databases: Vec<String>,
}

impl Postgres {
    /// Connects, logs in, and waits until no other session of kennel's is at work.
    ///
    /// # Errors
    /// When the server is away or does not know the administrator.
    pub async fn connect(url: &ServerUrl) -> Result<Self, ServerError> {
        let options = PgConnectOptions::new_without_pgpass()
            .host(url.host())
            .port(url.port())
            .username(url.user())
            .password(url.password())
            .database(url.database().unwrap_or("postgres"))
            .application_name("kennel")
            // "Is already a member" and the like is no news.
            .options([("client_min_messages", "error")])
            .ssl_mode(PgSslMode::Disable)
            .statement_cache_capacity(0);
        let options = sqlx::ConnectOptions::disable_statement_logging(options);
        let connection = match timeout(CONNECT_MAX, PgConnection::connect_with(&options)).await {
            Ok(connection) => connection.map_err(|err| failure(url, "let kennel in", err))?,
            Err(elapsed) => return Err(url.away(elapsed)),
        };
        let mut postgres = Self { url: url.clone(), connection };
        postgres.run(&format!("select pg_advisory_lock({TURN})"), "wait for its turn").await?;
        Ok(postgres)
    }

    /// The databases and roles of kennel's that are there, renamed or not.
    ///
    /// # Errors
    /// When the server is away or refuses.
    pub async fn own(&mut self) -> Result<BTreeSet<DatabaseName>, ServerError> {
        let query = sqlx::query_scalar::<_, String>(
            "select datname::text from pg_database union select rolname::text from pg_roles",
        );
        let names = timeout(ANSWER_MAX, query.fetch_all(&mut self.connection)).await;
        let names = self.answer(names, "list its databases and roles")?;
        Ok(names.iter().filter_map(|name| DatabaseName::of_database(name)).collect())
    }

    /// Has the role with this password, and its database, which nobody else may enter.
    ///
    /// # Errors
    /// When the server is away or refuses.
    pub async fn ensure(&mut self, name: &DatabaseName, password: &str) -> Result<(), ServerError> {
        let verifier = verifier(name, password);
        if !self.exists("select exists (select 1 from pg_roles where rolname = $1)", name.as_str()).await? {
            self.run(&format!("create role \"{name}\" nologin"), &format!("make the role `{name}`")).await?;
            crash::point(Point::RoleMade);
        }
        let role = format!("alter role \"{name}\" login connection limit {CONNECTIONS_MAX} password '{verifier}'");
        self.run(&role, &format!("set the role `{name}` up")).await?;
        // To give the role a database, and to end its connections one day, one must be a member of it.
        self.run(&format!("grant \"{name}\" to current_user"), &format!("make kennel a member of `{name}`")).await?;
        if !self.has_database(name.as_str()).await? {
            // Nobody enters until the next statement has closed the door that PUBLIC finds open.
            let create = format!("create database \"{name}\" owner \"{name}\" allow_connections false");
            self.run(&create, &format!("make the database `{name}`")).await?;
            crash::point(Point::DatabaseMade);
        }
        let close = format!("revoke all on database \"{name}\" from public");
        self.run(&close, &format!("close the database `{name}` to others")).await?;
        let open = format!("alter database \"{name}\" allow_connections true");
        self.run(&open, &format!("open the database `{name}`")).await
    }

    /// Locks the role out, ends its connections and renames the database.
    ///
    /// # Errors
    /// When the server is away or refuses.
    pub async fn rename(&mut self, name: &DatabaseName) -> Result<(), ServerError> {
        let action = format!("rename the database `{name}`");
        if self.exists("select exists (select 1 from pg_roles where rolname = $1)", name.as_str()).await? {
            self.run(&format!("alter role \"{name}\" nologin"), &format!("lock the role `{name}` out")).await?;
            crash::point(Point::RoleLocked);
        }
        if !self.has_database(name.as_str()).await? {
            return Ok(());
        }
        self.run(&format!("alter database \"{name}\" allow_connections false"), &action).await?;
        let end = format!("select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = '{name}'");
        self.run(&end, &format!("end the connections to `{name}`")).await?;
        self.run(&format!("alter database \"{name}\" rename to \"{}\"", name.renamed()), &action).await
    }

    /// Drops a renamed database and its role for good.
    ///
    /// # Errors
    /// When the server is away or refuses.
    pub async fn drop(&mut self, name: &DatabaseName) -> Result<(), ServerError> {
        let drop = format!("drop database if exists \"{}\" with (force)", name.renamed());
        self.run(&drop, &format!("drop the database `{}`", name.renamed())).await?;
        crash::point(Point::DatabaseDropped);
        if self.exists("select exists (select 1 from pg_roles where rolname = $1)", name.as_str()).await? {
            let action = format!("drop the role `{name}`");
            self.run(&format!("drop owned by \"{name}\""), &action).await?;
            self.run(&format!("drop role \"{name}\""), &action).await?;
        }
        Ok(())
    }

    async fn has_database(&mut self, name: &str) -> Result<bool, ServerError> {
        self.exists("select exists (select 1 from pg_database where datname = $1)", name).await
    }

    async fn exists(&mut self, query: &'static str, name: &str) -> Result<bool, ServerError> {
        let query = sqlx::query_scalar::<_, bool>(query).bind(name);
        let found = timeout(ANSWER_MAX, query.fetch_one(&mut self.connection)).await;
        self.answer(found, "look for a database or role")
    }

    /// Runs one statement. Names come from a [`DatabaseName`], whose letters need no quoting; a parameter cannot
    /// stand where they do.
    async fn run(&mut self, statement: &str, action: &str) -> Result<(), ServerError> {
        let query = sqlx::raw_sql(AssertSqlSafe(statement));
        let done = timeout(ANSWER_MAX, query.execute(&mut self.connection)).await;
        self.answer(done, action).map(|_| ())
    }

    fn answer<T>(
        &self,
        answer: Result<Result<T, Error>, tokio::time::error::Elapsed>,
        action: &str,
    ) -> Result<T, ServerError> {
        match answer {
            Ok(answer) => answer.map_err(|err| failure(&self.url, action, err)),
            Err(elapsed) => Err(self.url.away(elapsed)),
        }
    }
}

/// What the administrator may do.
///
/// # Errors
/// When the server is away or refuses.
pub async fn rights(url: &ServerUrl) -> Result<Rights, ServerError> {
    let mut postgres = Postgres::connect(url).await?;
    let query = sqlx::query_as::<_, (String, bool, bool, bool)>(
        "select current_setting('server_version'), rolcreatedb, rolcreaterole, rolsuper
         from pg_roles where rolname = current_user",
    );
    let answer = timeout(ANSWER_MAX, query.fetch_one(&mut postgres.connection)).await;
    let (version, create_db, create_role, superuser) = postgres.answer(answer, "tell what kennel may do")?;
    // OID 0 in an access list is PUBLIC; no list at all is the default, which lets PUBLIC in.
    let query = sqlx::query_scalar::<_, String>(
        "select datname::text from pg_database
         where datallowconn and exists (
             select 1 from aclexplode(coalesce(datacl, acldefault('d', datdba)))
             where grantee = 0 and privilege_type = 'CONNECT')
         order by datname",
    );
    let answer = timeout(ANSWER_MAX, query.fetch_all(&mut postgres.connection)).await;
    let mut open_databases = postgres.answer(answer, "list its databases")?;
    open_databases.retain(|name| DatabaseName::of_database(name).is_none());
    Ok(Rights { version, create_db, create_role, superuser, open_databases })
}

fn failure(url: &ServerUrl, action: &str, err: Error) -> ServerError {
    // Class 08 is a lost connection; the others: too many connections, and shut down or not yet up.
    let is_passing = |code: &str| code.starts_with("08") || ["53300", "57P01", "57P02", "57P03"].contains(&code);
    match err {
        Error::Io(err) => url.away(err),
        Error::Protocol(_) => url.away(err),
        Error::Database(ref said) if said.code().is_some_and(|code| is_passing(&code)) => url.away(err),
        _ => url.refused(action, err),
    }
}

/// What PostgreSQL keeps of a password (RFC 5803): made here, so that the password itself is in no statement and so
/// in no log of the server's.
fn verifier(name: &DatabaseName, password: &str) -> String {
    let mac = |key: &[u8], parts: &[&[u8]]| -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    };
    // Always the same for a role, so that applying it again changes nothing.
    let salt = &Sha256::digest(name.as_str())[..16];
    let mut round = mac(password.as_bytes(), &[salt, &1u32.to_be_bytes()]);
    let mut salted = round;
    for _ in 1..SCRAM_ROUNDS {
        round = mac(password.as_bytes(), &[&round]);
        salted.iter_mut().zip(round).for_each(|(byte, other)| *byte ^= other);
    }
    let stored = Sha256::digest(mac(&salted, &[b"Client Key"]));
    let server = mac(&salted, &[b"Server Key"]);
    let [salt, stored, server] = [salt, &stored[..], &server[..]].map(|bytes| STANDARD.encode(bytes));
    format!("SCRAM-SHA-256${SCRAM_ROUNDS}:{salt}${stored}:{server}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_given_what_it_would_have_made_of_the_password() {
        // Made by Python's `hashlib.pbkdf2_hmac` and `hmac`; in the lab PostgreSQL itself accepts the password.
        let name = "kennel_hello_main_0123456789ab".parse().unwrap();
        assert_eq!(
            verifier(&name, "geheim"),
            "SCRAM-SHA-256$4096:Mqjo2Hk5pI9k2+KzV12QIw==$WHDcwtdoPO1gAaKgy7xb+A5fHoC7exP3OVUajlNA4bw=:thhIdNsu+FEBfRD9SW2CrPCxjiNkbpu5UCAWJULkrc4="
        );
    }
}
