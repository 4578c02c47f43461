//! Waits for what is to become true, by looking at it, and never for a time.

use std::time::{Duration, Instant};

/// How often it looks.
const EVERY: Duration = Duration::from_millis(15);

/// Looks until there is something; tells what.
pub(crate) async fn until<T>(what: &str, within: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(begun.elapsed() < within, "it did not come to pass within {} s: {what}", within.as_secs_f32());
        tokio::time::sleep(EVERY).await;
    }
}
