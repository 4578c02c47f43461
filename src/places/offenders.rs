//! Who sent what had to be refused, such as deliveries that nobody signed: each source has an allowance of that,
//! refilled as time passes.
//!
//! Of what is over the allowance the log tells once in a while, and it may be refused more cheaply; what is good is
//! neither counted nor held up.
//!
//! **Invariant:** memory is bounded: when more sources than `SOURCES_MAX` offend at once, the rest share one entry.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Source;

/// How many offences of one source are answered in full, one after the other.
const ALLOWANCE: u32 = 20;
/// After how long one of them is forgiven.
const REFILL: Duration = Duration::from_secs(3);
/// How often the log tells of one source that has used its allowance up, until all is forgiven.
const LOG_PERIOD: Duration = Duration::from_secs(60);
/// How often entries that are over are looked for when there is no room.
const SWEEP: Duration = Duration::from_secs(1);
/// How many sources are told apart.
const SOURCES_MAX: usize = 4096;

/// What an offence leads to.
#[derive(Debug, PartialEq, Eq)]
pub struct Charge {
    /// How long the source is over its allowance now, if it is.
    pub limited: Option<Duration>,
    /// Whether the log is to tell of this one, and how many before it went untold.
    pub log: Option<u64>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Offenders(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    known: HashMap<Source, Entry>,
    /// Of those there was no room for.
    others: Option<Entry>,
    swept_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// When all is forgiven: each offence puts it off by [`REFILL`].
    clean_at: Instant,
    logged_at: Instant,
    untold: u64,
    /// Whether the allowance has been used up since the source was clean.
    is_flood: bool,
}

impl Entry {
    /// How long until there is room for one more offence, if there is none.
    fn limited(&self, now: Instant) -> Option<Duration> {
        let owed = self.clean_at.saturating_duration_since(now);
        let over = (owed + REFILL).saturating_sub(REFILL * ALLOWANCE);
        (!over.is_zero()).then_some(over)
    }

    /// Nothing is to be remembered.
    fn is_over(&self, now: Instant) -> bool {
        self.clean_at <= now && now.saturating_duration_since(self.logged_at) >= LOG_PERIOD
    }
}

impl Offenders {
    /// How long the source is over its allowance, if it is.
    #[must_use]
    pub fn limited(&self, source: Source, now: Instant) -> Option<Duration> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match state.known.get(&source) {
            Some(entry) => Some(entry),
            None if state.known.len() >= SOURCES_MAX => state.others.as_ref(),
            None => None,
        };
        entry.and_then(|entry| entry.limited(now))
    }

    /// Counts an offence. One over the allowance costs nothing more: its source is not held up for longer.
    pub fn charge(&self, source: Source, now: Instant) -> Charge {
        self.enter(source, now, REFILL)
    }

    /// Whether the log is to tell of something that is nobody's fault, and how much before it went untold.
    pub fn mention(&self, source: Source, now: Instant) -> Option<u64> {
        self.enter(source, now, Duration::ZERO).log
    }

    fn enter(&self, source: Source, now: Instant, cost: Duration) -> Charge {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        if let Some(entry) = state.known.get_mut(&source) {
            return entry.enter(now, cost);
        }
        if state.known.len() >= SOURCES_MAX
            && state.swept_at.is_none_or(|at| now.saturating_duration_since(at) >= SWEEP)
        {
            state.swept_at = Some(now);
            state.known.retain(|_, entry| !entry.is_over(now));
        }
        if state.known.len() >= SOURCES_MAX
            && let Some(entry) = &mut state.others
        {
            return entry.enter(now, cost);
        }
        let entry = Entry { clean_at: now + cost, logged_at: now, untold: 0, is_flood: false };
        if state.known.len() < SOURCES_MAX {
            state.known.insert(source, entry);
        } else {
            state.others = Some(entry);
        }
        Charge { limited: None, log: Some(0) }
    }
}

impl Entry {
    fn enter(&mut self, now: Instant, cost: Duration) -> Charge {
        let limited = self.limited(now);
        self.is_flood = limited.is_some() || (self.is_flood && self.clean_at > now);
        if limited.is_none() {
            self.clean_at = self.clean_at.max(now) + cost;
        }
        let is_told = !self.is_flood && !cost.is_zero();
        if is_told || now.saturating_duration_since(self.logged_at) >= LOG_PERIOD {
            self.logged_at = now;
            return Charge { limited, log: Some(std::mem::take(&mut self.untold)) };
        }
        self.untold += 1;
        Charge { limited, log: None }
    }
}

/// What a line of the log says at its end of those before it that went untold.
#[must_use]
pub fn before(untold: u64) -> String {
    if untold == 0 { String::new() } else { format!(" ({untold} more since the last of these lines)") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::of(Some(text.parse().unwrap()))
    }

    #[test]
    fn over_its_allowance_a_source_is_limited_until_one_offence_is_forgiven() {
        let (offenders, now) = (Offenders::default(), Instant::now());
        let (bad, other) = (source("192.0.2.1"), source("192.0.2.2"));
        for _ in 0..ALLOWANCE {
            assert_eq!(offenders.charge(bad, now).limited, None);
        }
        assert_eq!(offenders.limited(bad, now), Some(REFILL));
        for _ in 0..1000 {
            assert_eq!(offenders.charge(bad, now).limited, Some(REFILL), "it is not held up for longer");
        }
        assert_eq!(offenders.limited(other, now), None);
        assert_eq!(offenders.charge(other, now).limited, None);
        let later = now + REFILL;
        assert_eq!(offenders.limited(bad, later), None);
        assert_eq!(offenders.charge(bad, later).limited, None);
        assert_eq!(offenders.limited(bad, later), Some(REFILL));
    }

    #[test]
    fn the_log_tells_of_each_offence_within_the_allowance_and_of_a_flood_once_a_period() {
        let (offenders, now) = (Offenders::default(), Instant::now());
        let bad = source("192.0.2.1");
        let ten_a_second = (0..1200).map(|n| now + Duration::from_millis(100) * n);
        let told: Vec<_> = ten_a_second.filter_map(|at| offenders.charge(bad, at).log).collect();
        let (first, later) = told.split_at(20);
        assert!(first.iter().all(|&untold| untold == 0), "{told:?}");
        assert_eq!(later, [599], "those of a minute");
        assert_eq!(offenders.mention(bad, now + Duration::from_secs(120)), None);
        assert_eq!(offenders.charge(source("192.0.2.2"), now).log, Some(0));
        let forgiven = now + Duration::from_secs(300);
        assert!(offenders.charge(bad, forgiven).log.is_some() && offenders.charge(bad, forgiven).log == Some(0));
    }

    #[test]
    fn many_sources_share_what_is_left_and_do_not_grow_it() {
        let (offenders, now) = (Offenders::default(), Instant::now());
        let nth = |n: u32| Source::of(Some(std::net::Ipv4Addr::from_bits(n).into()));
        let first = u32::try_from(SOURCES_MAX).unwrap();
        let mut lines = 0;
        for n in 0..10 * first {
            lines += u32::from(offenders.charge(nth(n), now).log.is_some());
        }
        assert_eq!(lines, first + ALLOWANCE, "all the others are told of as one");
        assert!(offenders.limited(nth(u32::MAX), now).is_some(), "the others share one allowance");
        assert_eq!(offenders.limited(nth(0), now), None, "who has an entry keeps it");
        assert_eq!(offenders.0.lock().unwrap().known.len(), SOURCES_MAX);
        let later = now + LOG_PERIOD + REFILL;
        assert_eq!(offenders.charge(nth(u32::MAX), later).limited, None);
        assert_eq!(offenders.0.lock().unwrap().known.len(), 1, "what is forgiven is forgotten");
    }
}
