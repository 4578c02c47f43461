//! Who is charged for what comes: one source must not take all places for connections, nor fill the log.
//!
//! **Invariant:** memory of places is held for sources that have connections, and for no others.

pub mod offenders;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Where something came from: an IPv4 address, or the /64 an IPv6 address is in, which is what one host is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// An IPv4 address, written as IPv6 or not.
    V4(Ipv4Addr),
    /// The upper 64 bits of an IPv6 address.
    V6(u64),
    /// A client of the Unix socket: root or an operator.
    Socket,
    /// A proxy that the operator trusts.
    Proxy,
}

impl Source {
    /// The source of what came from this address; who has none came by the Unix socket.
    #[must_use]
    pub fn of(address: Option<IpAddr>) -> Self {
        match address.map(|ip| ip.to_canonical()) {
            None => Self::Socket,
            Some(IpAddr::V4(ip)) => Self::V4(ip),
            Some(IpAddr::V6(ip)) => Self::V6(u64::try_from(ip.to_bits() >> 64).expect("64 bits are left")),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(ip) => write!(f, "{ip}"),
            Self::V6(net) => write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(*net) << 64)),
            Self::Socket => f.write_str("the Unix socket"),
            Self::Proxy => f.write_str("a trusted proxy"),
        }
    }
}

/// How many connections each source has. Clones share them.
#[derive(Debug, Clone)]
pub struct Places {
    taken: Arc<Mutex<HashMap<Source, usize>>>,
    of_one_max: usize,
}

/// A connection's place, given back when it goes.
#[derive(Debug)]
pub struct Place {
    places: Places,
    source: Source,
}

impl Places {
    /// At most so many for each source.
    #[must_use]
    pub fn new(of_one_max: usize) -> Self {
        Self { taken: Arc::default(), of_one_max }
    }

    /// A place, unless the source has as many as it may. Clients of the Unix socket and proxies always get one.
    #[must_use]
    pub fn take(&self, source: Source) -> Option<Place> {
        if !matches!(source, Source::Socket | Source::Proxy) {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            let of_one = taken.entry(source).or_default();
            if *of_one >= self.of_one_max {
                return None;
            }
            *of_one += 1;
        }
        Some(Place { places: self.clone(), source })
    }
}

impl Place {
    /// Who it is charged to.
    #[must_use]
    pub fn source(&self) -> Source {
        self.source
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_one) = taken.get_mut(&self.source) {
            *of_one -= 1;
            if *of_one == 0 {
                taken.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn source(text: &str) -> Source {
        Source::of(Some(text.parse().unwrap()))
    }

    #[rstest]
    #[case::one_host("2001:db8::1", "2001:db8::ffff:1", true)]
    #[case::two_networks("2001:db8::1", "2001:db8:0:1::1", false)]
    #[case::written_as_v6("192.0.2.1", "::ffff:192.0.2.1", true)]
    #[case::two_addresses("192.0.2.1", "192.0.2.2", false)]
    fn a_source_is_an_ipv4_address_or_a_network_of_ipv6(#[case] a: &str, #[case] b: &str, #[case] same: bool) {
        assert_eq!(source(a) == source(b), same);
    }

    #[test]
    fn a_source_shows_as_operators_write_it() {
        assert_eq!(source("192.0.2.1").to_string(), "192.0.2.1");
        assert_eq!(source("2001:db8:0:7::42").to_string(), "2001:db8:0:7::/64");
        assert_eq!(Source::of(None).to_string(), "the Unix socket");
    }

    #[test]
    fn one_source_takes_no_more_than_its_own_and_gives_all_of_it_back() {
        let places = Places::new(2);
        let take = |address: &str| places.take(source(address));
        let first = (take("2001:db8::1"), take("2001:db8::2"));
        assert!(first.0.is_some() && first.1.is_some());
        assert!(take("2001:db8::3").is_none(), "one network of IPv6 is one source");
        let others = (take("2001:db8:0:1::1"), take("192.0.2.1"), take("::ffff:192.0.2.1"));
        assert!(others.0.is_some() && others.1.is_some() && others.2.is_some());
        assert!(take("192.0.2.1").is_none());
        let socket: Vec<_> = (0..5).map(|_| places.take(Source::Socket)).collect();
        assert!(socket.iter().all(Option::is_some), "the Unix socket has no address");
        drop((first, others, socket));
        assert!(places.taken.lock().unwrap().is_empty());
    }
}
