//! Certificates for tests.

use jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};

/// A self-signed certificate and its key, as PEM text.
pub(crate) struct Made {
    pub(crate) chain: String,
    pub(crate) key: String,
}

/// A certificate for these names.
pub(crate) fn certificate(names: &[&str]) -> Made {
    let now = Timestamp::now();
    let day = jiff::SignedDuration::from_hours(24);
    certificate_between(names, now - day, now + day)
}

/// A certificate for these names that is valid between the two.
pub(crate) fn certificate_between(names: &[&str], begins: Timestamp, ends: Timestamp) -> Made {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = DistinguishedName::new();
    let at = |time: Timestamp| {
        rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(time.as_second().try_into().unwrap())
    };
    (params.not_before, params.not_after) = (at(begins), at(ends));
    let key = KeyPair::generate().unwrap();
    Made { chain: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}
