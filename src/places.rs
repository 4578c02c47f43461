//! Places for connections: one address must not take all there are.
//!
//! **Invariant:** memory is held for addresses that have connections, and for no others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

/// How many connections each address has. Clones share them.
#[derive(Debug, Clone)]
pub struct Places {
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    of_one_max: usize,
}

/// A connection's place, given back when it goes.
#[derive(Debug)]
pub struct Place {
    places: Places,
    source: Option<IpAddr>,
}

impl Places {
    /// At most so many for each address.
    #[must_use]
    pub fn new(of_one_max: usize) -> Self {
        Self { taken: Arc::default(), of_one_max }
    }

    /// A place, unless the address has as many as it may. IPv6 counts by /64; who has no address always gets one.
    #[must_use]
    pub fn take(&self, address: Option<SocketAddr>) -> Option<Place> {
        let source = address.map(|address| match address.ip().to_canonical() {
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
            v4 @ IpAddr::V4(_) => v4,
        });
        if let Some(source) = source {
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

impl Drop for Place {
    fn drop(&mut self) {
        let Some(source) = self.source else { return };
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_one) = taken.get_mut(&source) {
            *of_one -= 1;
            if *of_one == 0 {
                taken.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_takes_no_more_than_its_own_and_gives_all_of_it_back() {
        let places = Places::new(2);
        let take = |address: &str| places.take(Some(address.parse().unwrap()));
        let first = (take("[2001:db8::1]:1"), take("[2001:db8::2]:2"));
        assert!(first.0.is_some() && first.1.is_some());
        assert!(take("[2001:db8::3]:3").is_none(), "one network of IPv6 is one address");
        let others = (take("[2001:db8:0:1::1]:1"), take("192.0.2.1:1"), take("[::ffff:192.0.2.1]:2"));
        assert!(others.0.is_some() && others.1.is_some() && others.2.is_some());
        assert!(take("192.0.2.1:3").is_none());
        let socket: Vec<_> = (0..5).map(|_| places.take(None)).collect();
        assert!(socket.iter().all(Option::is_some), "the Unix socket has no address");
        drop((first, others, socket));
        assert!(places.taken.lock().unwrap().is_empty());
    }
}
