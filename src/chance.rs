//! Numbers that nobody foresees, so that not all who wait come back at once, and how long they wait after failures.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::time::Duration;

/// A number from 0 up to 1, another one each time.
#[must_use]
pub fn chance() -> f64 {
    // Each of these hashes by a key of its own.
    part_of_one(RandomState::new().hash_one(()))
}

/// A hash as a number from 0 up to 1.
#[must_use]
pub fn part_of_one(hash: u64) -> f64 {
    f64::from(u32::try_from(hash >> 32).expect("32 bits are left")) / 2.0_f64.powi(32)
}

/// How long to wait after failures in a row: twice as long each time, up to a limit.
#[derive(Debug, Clone, Copy)]
pub struct BackOff {
    /// After the first.
    pub first: Duration,
    /// At most.
    pub most: Duration,
}

impl BackOff {
    /// Counted in seconds.
    #[must_use]
    pub const fn of_secs(first: u64, most: u64) -> Self {
        Self { first: Duration::from_secs(first), most: Duration::from_secs(most) }
    }

    /// The wait itself; `before` counts the failures before this one, and below 0 it counts as 0.
    #[must_use]
    pub fn doubled(self, before: impl Into<i64>) -> Duration {
        let doublings = u32::try_from(before.into().max(0)).unwrap_or(u32::MAX);
        self.first.saturating_mul(2_u32.saturating_pow(doublings)).min(self.most)
    }

    /// The same give or take a quarter, for what many wait for; `chance` is between 0 and 1.
    #[must_use]
    pub fn spread(self, before: impl Into<i64>, chance: f64) -> Duration {
        self.doubled(before).mul_f64(0.75 + chance / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: BackOff = BackOff::of_secs(300, 3_600);

    #[test]
    fn each_failure_doubles_the_wait_up_to_its_limit() {
        let secs = [0, 1, 2, 3, 4, 20].map(|before| HOUR.doubled(before).as_secs());
        assert_eq!(secs, [300, 600, 1_200, 2_400, 3_600, 3_600]);
        assert_eq!(HOUR.doubled(u32::MAX), HOUR.most);
        assert_eq!(HOUR.doubled(i64::MAX), HOUR.most);
        assert_eq!(HOUR.doubled(i64::MIN), HOUR.first);
        let endless = BackOff { first: Duration::MAX, most: Duration::MAX };
        assert_eq!(endless.doubled(1), Duration::MAX);
        let cut = BackOff::of_secs(10, 5);
        assert_eq!(cut.doubled(0), cut.most, "the limit holds for the first as well");
    }

    #[test]
    fn a_wait_is_spread_by_a_quarter_to_both_sides() {
        let secs = [0.0, 0.5, 1.0].map(|chance| HOUR.spread(0, chance).as_secs());
        assert_eq!(secs, [225, 300, 375]);
        assert_eq!(HOUR.spread(i64::MAX, 1.0).as_secs(), 4_500, "at its limit, too");
    }

    #[test]
    fn hashes_become_numbers_from_0_up_to_1() {
        assert_eq!([0, 1 << 63, u64::MAX].map(part_of_one), [0.0, 0.5, 1.0 - 0.5_f64.powi(32)]);
        let drawn: Vec<f64> = (0..100).map(|_| chance()).collect();
        assert!(drawn.iter().all(|number| (0.0..1.0).contains(number)), "{drawn:?}");
        assert!(drawn.windows(2).any(|two| two[0] < two[1]) && drawn.windows(2).any(|two| two[0] > two[1]));
    }
}
