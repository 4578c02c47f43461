//! Numbers that nobody foresees, so that not all who wait come back at once.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_become_numbers_from_0_up_to_1() {
        assert_eq!([0, 1 << 63, u64::MAX].map(part_of_one), [0.0, 0.5, 1.0 - 0.5_f64.powi(32)]);
        let drawn: Vec<f64> = (0..100).map(|_| chance()).collect();
        assert!(drawn.iter().all(|number| (0.0..1.0).contains(number)), "{drawn:?}");
        assert!(drawn.windows(2).any(|two| two[0] < two[1]) && drawn.windows(2).any(|two| two[0] > two[1]));
    }
}
