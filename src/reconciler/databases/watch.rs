//! Sees that Valkey was started again: its users were in memory only, and services cannot log in until they are back.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::deployer::{Context, databases};
use crate::host::services::valkey::Valkey;
use crate::host::services::{ServerError, ServerKind};

/// How often it asks the server which run of it this is.
const EVERY: Duration = Duration::from_secs(1);

/// One connection that asks the same question again and again.
pub(super) struct ValkeyWatch {
    ctx: Context,
    tick: Interval,
    connection: Option<Valkey>,
    /// The run that was seen last.
    seen: Option<String>,
}

impl ValkeyWatch {
    pub(super) fn new(ctx: Context) -> Self {
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ctx, tick, connection: None, seen: None }
    }

    /// Returns when the server is another run than the last one seen, or the first one. Failures are not told here:
    /// whoever needs the server tells of them.
    pub(super) async fn restarted(&mut self) {
        loop {
            self.tick.tick().await;
            let Ok(Some(run)) = self.look().await else {
                self.connection = None;
                continue;
            };
            let before = self.seen.replace(run.clone());
            if before != Some(run) {
                return;
            }
        }
    }

    async fn look(&mut self) -> Result<Option<String>, ServerError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let Ok(Some(url)) = databases::server(&self.ctx, ServerKind::Valkey).await else { return Ok(None) };
                Valkey::connect(&url).await?
            }
        };
        let run = self.connection.insert(connection).run_id().await?;
        Ok(Some(run))
    }
}
