//! Tells a loop "look again", carrying nothing.
//!
//! **Invariant:** no data travels with a ring, so one that is lost or doubled is harmless.

use std::sync::Arc;

use tokio::sync::Notify;

/// A bell between two stages. Clones ring the same bell.
#[derive(Debug, Clone, Default)]
pub struct Bell(Arc<Notify>);

impl Bell {
    /// Asks whoever listens to look at the database again. Ring after commit, never before.
    pub fn ring(&self) {
        self.0.notify_one();
    }

    /// Returns once the bell has been rung since the last return.
    pub async fn rung(&self) {
        self.0.notified().await;
    }
}
