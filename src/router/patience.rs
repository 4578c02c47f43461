//! How long a visitor may keep others waiting who sends or takes what he wants in small pieces.
//!
//! A limit on silence alone is kept by one byte a minute. Here a visitor may be silent for as long as the limit in all,
//! and what he sends or takes earns him time for it.

use std::time::Duration;

use super::watch::Moment;

/// The bytes per second at which a visitor never uses up his time.
const RATE: u64 = 256;

/// A visitor's time. It does not run while nobody waits for him.
#[derive(Debug)]
pub(super) struct Patience {
    limit_ms: u64,
    left_ms: u64,
    since: Option<Moment>,
}

impl Patience {
    /// All of it: as long as `limit`.
    pub(super) fn new(limit: Duration) -> Self {
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        Self { limit_ms, left_ms: limit_ms, since: None }
    }

    /// He is waited for; tells when his time will be over.
    pub(super) fn wait(&mut self, now: Moment) -> Moment {
        self.since.get_or_insert(now).after(Duration::from_millis(self.left_ms))
    }

    /// Whether he has been waited for, and has not made up for it.
    pub(super) fn is_used(&self) -> bool {
        self.since.is_some() || self.left_ms < self.limit_ms
    }

    /// He has sent or taken so many bytes, or need not; tells whether he was waited for.
    pub(super) fn end(&mut self, now: Moment, bytes: usize) -> bool {
        let since = self.since.take();
        if let Some(since) = since {
            self.left_ms = self.left_ms.saturating_sub(now.as_ms().saturating_sub(since.as_ms()));
        }
        let earned = (bytes as u64).saturating_mul(1000) / RATE;
        self.left_ms = self.left_ms.saturating_add(earned).min(self.limit_ms);
        since.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many seconds the time of a visitor is over who lets others wait for so long for each piece, if ever
    /// within a day.
    fn over_after(wait_secs: u64, bytes: usize) -> Option<u64> {
        let mut patience = Patience::new(Duration::from_secs(60));
        let mut now = 1_000_000;
        while now < 1_000_000 + 86_400_000 {
            let due = patience.wait(Moment::from_ms(now)).as_ms();
            now += wait_secs * 1000;
            if due <= now {
                return Some((due - 1_000_000) / 1000);
            }
            patience.end(Moment::from_ms(now), bytes);
        }
        None
    }

    #[test]
    fn silence_and_trickles_end_and_slow_lines_do_not() {
        assert_eq!(over_after(100_000, 0), Some(60), "silence");
        assert_eq!(over_after(59, 1), Some(60), "a byte a minute");
        assert_eq!(over_after(1, 128), Some(119), "half the rate: twice the time");
        assert_eq!(over_after(1, 256), None, "the rate");
        assert_eq!(over_after(50, 50 * 256), None, "bursts");
    }

    #[test]
    fn time_does_not_run_while_nobody_waits() {
        let mut patience = Patience::new(Duration::from_secs(60));
        assert_eq!(patience.wait(Moment::from_ms(1_000)).as_ms(), 61_000);
        patience.end(Moment::from_ms(31_000), 1);
        assert_eq!(patience.wait(Moment::from_ms(9_000_000)).as_ms(), 9_030_003);
    }
}
