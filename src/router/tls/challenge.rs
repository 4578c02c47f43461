//! What a certificate authority asks for to see that a host is ours (RFC 8555, section 8; RFC 8737).
//!
//! **Invariant:** a challenge is answered while its [`Offer`] is held, and only for its own host.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// The protocol by which a connection asks for the answer of tls-alpn-01 (RFC 8737, section 6.2).
pub(super) const ALPN: &[u8] = b"acme-tls/1";
/// Below which path the answers of http-01 lie (RFC 8555, section 8.3).
const PATH: &str = "/.well-known/acme-challenge/";

/// What proves that a host is ours.
#[derive(Debug, Clone)]
pub enum Challenge {
    /// http-01: the answer to a GET on port 80.
    Http {
        /// The last part of the path.
        token: String,
        /// The body.
        answer: String,
    },
    /// tls-alpn-01: the certificate to be shown on port 443.
    Alpn(Arc<CertifiedKey>),
}

/// The challenges that are being answered, one for each host. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Challenges(Arc<Mutex<HashMap<Box<str>, Offered>>>);

#[derive(Debug)]
struct Offered {
    /// Tells it from the one before.
    number: u64,
    challenge: Challenge,
}

/// A challenge that is answered until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Offer {
    challenges: Challenges,
    host: Box<str>,
    number: u64,
}

impl Challenges {
    /// Answers a challenge for `host` from now on, instead of an earlier one.
    pub(crate) fn offer(&self, host: &str, challenge: Challenge) -> Offer {
        let mut challenges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = challenges.get(host).map_or(0, |offered| offered.number + 1);
        challenges.insert(host.into(), Offered { number, challenge });
        Offer { challenges: self.clone(), host: host.into(), number }
    }

    /// The answer to http-01 that lies at this path of this host, if there is one.
    pub(crate) fn answer_at(&self, host: &str, path: &str) -> Option<String> {
        let asked = path.strip_prefix(PATH)?;
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).get(host) {
            Some(Offered { challenge: Challenge::Http { token, answer }, .. }) if token == asked => {
                Some(answer.clone())
            }
            _ => None,
        }
    }

    fn certificate_for(&self, host: &str) -> Option<Arc<CertifiedKey>> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).get(host) {
            Some(Offered { challenge: Challenge::Alpn(certificate), .. }) => Some(Arc::clone(certificate)),
            _ => None,
        }
    }

    /// Whether a path is one that certificate authorities ask for.
    pub(crate) fn is_asked_for(path: &str) -> bool {
        path.starts_with(PATH)
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        let mut challenges = self.challenges.0.lock().unwrap_or_else(PoisonError::into_inner);
        if challenges.get(&self.host).is_some_and(|offered| offered.number == self.number) {
            challenges.remove(&self.host);
        }
    }
}

impl ResolvesServerCert for Challenges {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certificate_for(&hello.server_name()?.to_ascii_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(token: &str) -> Challenge {
        Challenge::Http { token: token.to_owned(), answer: format!("{token}.thumb") }
    }

    #[test]
    fn a_challenge_is_answered_while_it_is_offered_and_for_its_host_alone() {
        let challenges = Challenges::default();
        let offer = challenges.offer("a.example", http("t1"));
        let at = |host: &str, path: &str| challenges.answer_at(host, path);
        assert_eq!(at("a.example", "/.well-known/acme-challenge/t1").as_deref(), Some("t1.thumb"));
        for (host, path) in [
            ("b.example", "/.well-known/acme-challenge/t1"),
            ("a.example", "/.well-known/acme-challenge/t2"),
            ("a.example", "/.well-known/acme-challenge/"),
            ("a.example", "/t1"),
        ] {
            assert_eq!(at(host, path), None, "{host}{path}");
        }
        drop(offer);
        assert_eq!(at("a.example", "/.well-known/acme-challenge/t1"), None);
    }

    #[test]
    fn the_end_of_an_earlier_offer_leaves_the_later_one() {
        let challenges = Challenges::default();
        let first = challenges.offer("a.example", http("t1"));
        let second = challenges.offer("a.example", http("t2"));
        drop(first);
        assert!(challenges.answer_at("a.example", "/.well-known/acme-challenge/t2").is_some());
        drop(second);
        assert!(challenges.0.lock().unwrap().is_empty());
    }
}
