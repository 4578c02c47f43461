//! Certificates with their keys, and which of them is shown for which host.
//!
//! **Invariant:** a [`Certificate`] that exists can be served: its key is the one its first certificate is for.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

/// A certificate that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The text is not PEM (RFC 7468).
    #[error("it is not PEM text")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// There is none in it.
    #[error("it holds no certificate")]
    Empty,
    /// It is not a certificate.
    #[error("it holds something that is not a certificate (X.509)")]
    Malformed,
    /// No host is named in it; the common name counts for nothing (RFC 9110, section 4.3.4).
    #[error("the certificate names no host as subject alternative name")]
    Nameless,
    /// There is no key.
    #[error("it holds no private key")]
    NoKey(#[source] rustls::pki_types::pem::Error),
    /// The key is of a kind that is not known, or another's.
    #[error("the private key cannot be used with this certificate")]
    Key(#[source] rustls::Error),
}

/// A certificate with its chain and key, and what is known of it.
pub struct Certificate {
    key: Arc<CertifiedKey>,
    names: Vec<Box<str>>,
    begins: Timestamp,
    ends: Timestamp,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({:?} until {})", self.names, self.ends)
    }
}

impl Certificate {
    /// Reads a chain, the host's own certificate first, and its key; both as PEM text.
    ///
    /// # Errors
    /// When it could not be served.
    pub fn read(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(CertificateError::Pem)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(CertificateError::NoKey)?;
        let first = chain.first().ok_or(CertificateError::Empty)?;
        let (_, parsed) = X509Certificate::from_der(first).map_err(|_| CertificateError::Malformed)?;
        let names = names(&parsed)?;
        let validity = parsed.validity();
        let at = |time: x509_parser::time::ASN1Time| {
            Timestamp::from_second(time.timestamp()).map_err(|_| CertificateError::Malformed)
        };
        let (begins, ends) = (at(validity.not_before)?, at(validity.not_after)?);
        let key = CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(CertificateError::Key)?;
        Ok(Self { key: Arc::new(key), names, begins, ends })
    }

    /// What it is for: hosts in lower case, or `*.` and a domain.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    /// Whether it is for `host`. A wildcard stands for one label (RFC 9525, section 6.3).
    #[must_use]
    pub fn covers(&self, host: &str) -> bool {
        let parent = parent(host);
        self.names().any(|name| name == host || name.strip_prefix("*.").is_some_and(|domain| Some(domain) == parent))
    }

    /// From when on it is valid.
    #[must_use]
    pub fn begins(&self) -> Timestamp {
        self.begins
    }

    /// Until when it is valid.
    #[must_use]
    pub fn ends(&self) -> Timestamp {
        self.ends
    }

    /// The chain, the host's own certificate first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    pub(super) fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }
}

/// Where a host stands, less its first label.
fn parent(host: &str) -> Option<&str> {
    host.split_once('.').map(|(_, parent)| parent)
}

fn names(certificate: &X509Certificate<'_>) -> Result<Vec<Box<str>>, CertificateError> {
    let alternatives = certificate.subject_alternative_name().map_err(|_| CertificateError::Malformed)?;
    let alternatives = alternatives.ok_or(CertificateError::Nameless)?;
    let names: Vec<Box<str>> = alternatives
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase().into()),
            _ => None,
        })
        .collect();
    if names.is_empty() { Err(CertificateError::Nameless) } else { Ok(names) }
}

/// Which certificate is shown for which host: immutable, and replaced whole.
#[derive(Debug, Default)]
pub struct Certificates {
    /// Wildcards by what follows the asterisk, which begins with a dot.
    by_name: HashMap<Box<str>, Arc<Certificate>>,
}

impl Certificates {
    /// Of certificates for the same name the first one counts that is valid at `now`, else the first.
    pub fn new(certificates: impl IntoIterator<Item = Arc<Certificate>>, now: Timestamp) -> Self {
        let mut by_name: HashMap<Box<str>, Arc<Certificate>> = HashMap::new();
        let is_valid = |certificate: &Certificate| certificate.begins <= now && now < certificate.ends;
        for certificate in certificates {
            for name in &certificate.names {
                let key = name.strip_prefix('*').unwrap_or(name);
                let known = by_name.entry(key.into()).or_insert_with(|| Arc::clone(&certificate));
                if !is_valid(known) && is_valid(&certificate) {
                    *known = Arc::clone(&certificate);
                }
            }
        }
        // A name of its own comes first, but not over a wildcard that is still valid.
        let is_over = |name: &str, known: &Certificate| {
            let wildcard = name.find('.').filter(|dot| *dot > 0).and_then(|dot| by_name.get(&name[dot..]));
            !is_valid(known) && wildcard.is_some_and(|wildcard| is_valid(wildcard))
        };
        let over = by_name.iter().filter(|(name, known)| is_over(name, known)).map(|(name, _)| name.clone());
        let over: Vec<Box<str>> = over.collect();
        over.iter().for_each(|name| drop(by_name.remove(name)));
        Self { by_name }
    }

    /// Each name, with the end of the certificate that is shown for it.
    pub(super) fn ends(&self) -> impl Iterator<Item = (String, Timestamp)> {
        let name = |key: &str| if key.starts_with('.') { format!("*{key}") } else { key.to_owned() };
        self.by_name.iter().map(move |(key, certificate)| (name(key), certificate.ends))
    }

    /// The certificate for `host`, a name in lower case. One that names the host comes before a wildcard.
    #[must_use]
    pub fn find(&self, host: &str) -> Option<&Arc<Certificate>> {
        let wildcard = || self.by_name.get(&host[host.find('.')?..]);
        self.by_name.get(host).or_else(wildcard)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Made};
    use super::*;

    fn read(made: &Made) -> Result<Certificate, CertificateError> {
        Certificate::read(made.chain.as_bytes(), made.key.as_bytes())
    }

    fn names_for(certificates: &Certificates, host: &str) -> Option<Vec<String>> {
        certificates.find(host).map(|found| found.names().map(str::to_owned).collect())
    }

    #[test]
    fn a_wildcard_stands_for_one_label_and_a_name_for_itself() {
        let certificate = read(&testing::certificate(&["*.shop.example", "other.example"])).unwrap();
        for (host, covered) in [
            ("web.shop.example", true),
            ("other.example", true),
            ("shop.example", false),
            ("a.web.shop.example", false),
            ("x.other.example", false),
            ("*.shop.example", true),
            ("example", false),
            ("", false),
        ] {
            assert_eq!(certificate.covers(host), covered, "{host}");
        }
    }

    #[test]
    fn a_certificate_that_names_the_host_comes_before_a_wildcard() {
        let made = [testing::certificate(&["*.shop.example"]), testing::certificate(&["Web.shop.example"])];
        let read = made.iter().map(|made| Arc::new(read(made).unwrap()));
        let certificates = Certificates::new(read, Timestamp::now());
        assert_eq!(names_for(&certificates, "web.shop.example").unwrap(), ["web.shop.example"]);
        assert_eq!(names_for(&certificates, "api.shop.example").unwrap(), ["*.shop.example"]);
        assert_eq!(names_for(&certificates, "shop.example"), None);
    }

    #[test]
    fn of_two_for_one_name_the_first_counts_unless_it_is_over() {
        let now = Timestamp::now();
        let day = jiff::SignedDuration::from_hours(24);
        let over = testing::certificate_between(&["a.example"], now - day * 2, now - day);
        let first = testing::certificate_between(&["a.example"], now - day, now + day);
        let second = testing::certificate_between(&["a.example"], now - day, now + day * 2);
        let all: Vec<_> = [&over, &first, &second].map(|made| Arc::new(read(made).unwrap())).to_vec();
        let certificates = Certificates::new(all.clone(), now);
        assert!(Arc::ptr_eq(certificates.find("a.example").unwrap(), &all[1]));
        let mut only = all[..1].to_vec();
        let certificates = Certificates::new(only.clone(), now);
        assert!(certificates.find("a.example").is_some(), "one that is over is better than none");
        only.push(Arc::new(read(&testing::certificate_between(&["*.example"], now - day, now + day)).unwrap()));
        let certificates = Certificates::new(only, now);
        assert_eq!(names_for(&certificates, "a.example").unwrap(), ["*.example"], "a wildcard is better than that");
    }

    #[test]
    fn what_could_not_be_served_is_refused() {
        let (one, two) = (testing::certificate(&["a.example"]), testing::certificate(&["b.example"]));
        let said = |chain: &str, key: &str| match Certificate::read(chain.as_bytes(), key.as_bytes()) {
            Ok(certificate) => panic!("{certificate:?} was taken"),
            Err(err) => err.to_string(),
        };
        assert_eq!(said(&one.chain, &two.key), "the private key cannot be used with this certificate");
        assert_eq!(said("", &one.key), "it holds no certificate");
        assert_eq!(said(&one.chain, ""), "it holds no private key");
        assert_eq!(said(&one.key, &one.key), "it holds no certificate");
        let torn = one.chain.replace("-----END", "");
        assert_eq!(said(&torn, &one.key), "it is not PEM text");
        let nameless = testing::certificate(&[]);
        assert!(said(&nameless.chain, &nameless.key).contains("names no host"));
        let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(said(junk, &one.key).contains("not a certificate"));
    }
}
