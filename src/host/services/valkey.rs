//! Valkey: a database number and an ACL user for each branch.
//!
//! A number isolates nothing, an ACL does. What is the server's as a whole and not a number's (channels, functions,
//! the watch for changed keys, other numbers) is out of a branch's reach; number 0 is not, and is nobody's.
//!
//! **Invariant:** only users that [`ValkeyDb::user`] names, and their numbers, are ever changed.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo as _,
    RedisConnectionInfo, RedisError, ServerErrorKind, cmd,
};
use sha2::{Digest as _, Sha256};

use super::server::{CONNECT_MAX, ServerError, ServerUrl};
use crate::crash::{self, Point};
use crate::model::ValkeyDb;

/// How long the server may take for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A connection as the administrator.
pub struct Valkey {
    url: ServerUrl,
    connection: MultiplexedConnection,
}

/// What a server has for branches, for `kennel doctor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// How many numbers it has; one less than that many branches can have one.
    pub databases: u16,
    /// Whether number 0, which everybody can reach, holds something.
    pub open_keys: bool,
}

impl Valkey {
    /// Connects and logs in.
    ///
    /// # Errors
    /// When the server is away or does not know the administrator.
    pub async fn connect(url: &ServerUrl) -> Result<Self, ServerError> {
        let connection = connect(url, 0).await?;
        Ok(Self { url: url.clone(), connection })
    }

    /// How many numbers the server has, 0 included: `databases` of valkey.conf.
    ///
    /// # Errors
    /// When the server is away or refuses.
    pub async fn database_count(&mut self) -> Result<u16, ServerError> {
        let action = "tell how many databases it has";
        let (_, count): (String, String) = self.ask(cmd("CONFIG").arg("GET").arg("databases"), action).await?;
        count.parse().map_err(|err: std::num::ParseIntError| self.url.refused(action, err))
    }

    /// Which run of the server this is: another after every start.
    ///
    /// # Errors
    /// When the server is away or refuses.
    pub async fn run_id(&mut self) -> Result<String, ServerError> {
        let info: String = self.ask(cmd("INFO").arg("server"), "tell which run of it this is").await?;
        Ok(info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap_or_default().trim().to_owned())
    }

    /// The numbers that hold something, 0 left out.
    ///
    /// # Errors
    /// When the server is away or refuses.
    pub async fn filled(&mut self) -> Result<Vec<ValkeyDb>, ServerError> {
        Ok(self.keyspace().await?.into_iter().filter_map(|number| number.try_into().ok()).collect())
    }

    async fn keyspace(&mut self) -> Result<Vec<u16>, ServerError> {
        let info: String = self.ask(cmd("INFO").arg("keyspace"), "tell which databases hold something").await?;
        Ok(filled(&info))
    }

    /// The numbers that have a user of kennel's.
    ///
    /// # Errors
    /// When the server is away or refuses.
    pub async fn own_users(&mut self) -> Result<BTreeSet<ValkeyDb>, ServerError> {
        let users: Vec<String> = self.ask(cmd("ACL").arg("USERS"), "list its users").await?;
        Ok(users.iter().filter_map(|user| ValkeyDb::of_user(user)).collect())
    }

    /// Has the number's user, with this password and no more rights than it should have. Connections stay.
    ///
    /// # Errors
    /// When the server is away or refuses.
    pub async fn ensure_user(&mut self, db: ValkeyDb, password: &str) -> Result<(), ServerError> {
        let action = format!("make the user `{}`", db.user());
        let mut command = cmd("ACL");
        command.arg("SETUSER").arg(db.user()).arg(rules(db, password));
        self.ask(&command, &action).await
    }

    /// Removes the number's user with all its connections, and then everything in the number.
    ///
    /// # Errors
    /// When the server is away or refuses.
    pub async fn remove(&mut self, db: ValkeyDb) -> Result<(), ServerError> {
        let _removed: i64 =
            self.ask(cmd("ACL").arg("DELUSER").arg(db.user()), &format!("remove the user `{}`", db.user())).await?;
        crash::point(Point::ValkeyUserRemoved);
        if db.get() >= self.database_count().await? {
            return Ok(());
        }
        let mut number = connect(&self.url, db.get()).await?;
        let flush = cmd("FLUSHDB").arg("ASYNC").to_owned();
        ask(&self.url, &mut number, &flush, &format!("empty its database {db}")).await
    }

    async fn ask<T: FromRedisValue>(&mut self, command: &Cmd, action: &str) -> Result<T, ServerError> {
        ask(&self.url, &mut self.connection, command, action).await
    }
}

/// What the server has for branches.
///
/// # Errors
/// When the server is away or refuses.
pub async fn offer(url: &ServerUrl) -> Result<Offer, ServerError> {
    let mut valkey = Valkey::connect(url).await?;
    let databases = valkey.database_count().await?;
    let open_keys = valkey.keyspace().await?.contains(&0);
    Ok(Offer { databases, open_keys })
}

async fn connect(url: &ServerUrl, number: u16) -> Result<MultiplexedConnection, ServerError> {
    let host = url.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let mut who = RedisConnectionInfo::default().set_password(url.password()).set_db(number.into());
    if !url.user().is_empty() {
        who = who.set_username(url.user());
    }
    let limits =
        AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_MAX)).set_response_timeout(Some(ANSWER_MAX));
    let connection = async {
        let info = ConnectionAddr::Tcp(host, url.port()).into_connection_info()?.set_redis_settings(who);
        Client::open(info)?.get_multiplexed_async_connection_with_config(&limits).await
    };
    connection.await.map_err(|err| failure(url, "let kennel in", err))
}

async fn ask<T: FromRedisValue>(
    url: &ServerUrl,
    connection: &mut MultiplexedConnection,
    command: &Cmd,
    action: &str,
) -> Result<T, ServerError> {
    command.query_async(connection).await.map_err(|err| failure(url, action, err))
}

fn failure(url: &ServerUrl, action: &str, err: RedisError) -> ServerError {
    let loading = matches!(
        err.kind(),
        ErrorKind::Server(ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown | ServerErrorKind::TryAgain)
    );
    if err.is_io_error() || loading { url.away(err) } else { url.refused(action, err) }
}

/// What a branch's user may do: everything with the keys of its own number, and nothing that reaches beyond.
fn rules(db: ValkeyDb, password: &str) -> Vec<String> {
    let hash = hex::encode(Sha256::digest(password));
    // The hash, so that neither MONITOR nor an error shows the password.
    let mut rules = vec!["reset".to_owned(), "on".to_owned(), format!("#{hash}"), "~*".to_owned()];
    // Channels are the server's, not a number's: those that begin with its own name, and news of its own keys.
    for channels in [format!("{}:*", db.user()), format!("__keyspace@{db}__:*"), format!("__keyevent@{db}__:*")] {
        rules.push(format!("&{channels}"));
    }
    for rule in ["+@all", "-@dangerous", "-@admin"] {
        rules.push(rule.to_owned());
    }
    // Dangerous for being slow or for emptying a number, which is its own; libraries ask for the version by INFO.
    rules.extend(["keys", "flushdb", "sort", "sort_ro", "info"].map(|command| format!("+{command}")));
    // What leads into other numbers; the names of others' keys (`client|tracking`) and channels (`pubsub`); code that
    // others would run with their rights (`function`), and their scripts.
    let beyond =
        ["swapdb", "move", "copy", "client|tracking", "pubsub", "function", "script|flush", "script|kill", "select"];
    rules.extend(beyond.map(|command| format!("-{command}")));
    rules.push(format!("+select|{db}"));
    rules
}

/// Reads the lines `db3:keys=1,expires=0,…` of `INFO keyspace`.
fn filled(info: &str) -> Vec<u16> {
    let number = |line: &str| line.strip_prefix("db")?.split_once(':')?.0.parse().ok();
    info.lines().filter_map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_may_do_everything_within_its_number() {
        let rules = rules(ValkeyDb::try_from(3).unwrap(), "geheim").join(" ");
        insta::assert_snapshot!(rules, @"reset on #addb0f5e7826c857d7376d1bd9bc33c0c544790a2eac96144a8af22b1298c940 ~* &kennel-3:* &__keyspace@3__:* &__keyevent@3__:* +@all -@dangerous -@admin +keys +flushdb +sort +sort_ro +info -swapdb -move -copy -client|tracking -pubsub -function -script|flush -script|kill -select +select|3");
    }

    #[test]
    fn numbers_that_hold_something_are_read() {
        let info = "# Keyspace\r\ndb0:keys=1,expires=0,avg_ttl=0\r\ndb3:keys=2,expires=0,avg_ttl=0\r\ndb12:keys=1\r\n";
        assert_eq!(filled(info), [0, 3, 12]);
        assert_eq!(filled("# Keyspace\r\n"), [0; 0]);
    }
}
