//! Whether there is disk for another build. While there is not, builds stay queued, and one line says so.

use tracing::{info, warn};

use super::Context;
use crate::host::disk::shortage;

/// Lets builds in.
#[derive(Debug, Default)]
pub(super) struct Admission {
    short: bool,
}

impl Admission {
    /// Whether builds wait, as far as is known: nobody tells when there is room again.
    pub(super) fn is_short(&self) -> bool {
        self.short
    }

    /// Whether a build may start now.
    pub(super) async fn admits(&mut self, ctx: &Context) -> anyhow::Result<bool> {
        let spaces = ctx.machine.disk_space().await?;
        match shortage(&spaces, ctx.config.load().builder.min_free) {
            None => {
                if std::mem::take(&mut self.short) {
                    info!("There is room on disk again: builds go on");
                }
                Ok(true)
            }
            Some(shortage) => {
                if !self.short && ctx.store.has_queued_builds().await? {
                    self.short = true;
                    warn!("Builds wait for room on disk: {shortage}");
                }
                Ok(false)
            }
        }
    }
}
