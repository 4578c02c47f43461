//! Where a request comes from, as services are told: from the visitor himself, or from whom a trusted proxy names.
//!
//! **Invariant:** what a request says of its origin counts only if the operator trusts who sent it, and of a chain of
//! addresses only the part that trusted proxies wrote.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use ipnet::IpNet;

use super::headers::tokens;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// What services are told of who asks. For a visitor it is written once for all requests of his connection.
#[derive(Debug)]
pub(super) struct Origin {
    address: IpAddr,
    /// The address, and the proxies between him and kennel, as `X-Forwarded-For` has them.
    chain: Box<str>,
    port: u16,
    scheme: &'static str,
    /// `X-Forwarded-For` and so on as lines, up to the host's place in `Forwarded`.
    lines: Box<str>,
}

impl Origin {
    /// A visitor from `address`, who came in by this port and scheme.
    pub(super) fn new(address: IpAddr, port: u16, scheme: &'static str) -> Self {
        Self::behind(address.to_canonical(), &[], port, scheme)
    }

    /// Whom the proxy that this describes names in a request's head: the last address that is not a proxy of
    /// `trusted`, and how he came to the first of them.
    pub(super) fn named(&self, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        let named: Vec<&str> = tokens(headers, &FORWARDED_FOR).collect();
        let (mut address, mut proxies) = (self.address, Vec::new());
        for name in named.iter().rev() {
            // What stands further left was written by somebody nobody vouches for.
            let Some(next) = is_trusted(address, trusted).then(|| parse(name)).flatten() else { break };
            proxies.push(address);
            address = next;
        }
        proxies.reverse();
        let proto = tokens(headers, &FORWARDED_PROTO).last().unwrap_or_default();
        let (scheme, port) = match proto {
            _ if proto.eq_ignore_ascii_case("https") => ("https", 443),
            _ if proto.eq_ignore_ascii_case("http") => ("http", 80),
            _ => (self.scheme, self.port),
        };
        let said = tokens(headers, &FORWARDED_PORT).last().and_then(|port| port.parse().ok());
        Self::behind(address, &proxies, said.unwrap_or(port), scheme)
    }

    fn behind(address: IpAddr, proxies: &[IpAddr], port: u16, scheme: &'static str) -> Self {
        let node = match address {
            IpAddr::V4(_) => address.to_string(),
            IpAddr::V6(_) => format!("\"[{address}]\""),
        };
        let mut chain = address.to_string();
        for proxy in proxies {
            let _ = write!(chain, ", {proxy}");
        }
        let lines = format!(
            "x-forwarded-for: {chain}\r\nx-real-ip: {address}\r\nx-forwarded-proto: {scheme}\r\n\
             x-forwarded-port: {port}\r\nforwarded: for={node};host="
        );
        Self { address, chain: chain.into(), port, scheme, lines: lines.into() }
    }

    /// Whether the visitor came by TLS, to kennel or to the proxy.
    pub(super) fn is_secure(&self) -> bool {
        self.scheme == "https"
    }

    /// The visitor's address.
    pub(super) fn address(&self) -> IpAddr {
        self.address
    }

    /// The lines that tell of him, for a request to `host`.
    pub(super) fn write(&self, head: &mut Vec<u8>, host: &str) {
        let quote = if host.starts_with('[') { "\"" } else { "" };
        for part in [&*self.lines, quote, host, quote, ";proto=", self.scheme, "\r\nx-forwarded-host: ", host, "\r\n"] {
            head.extend_from_slice(part.as_bytes());
        }
    }

    /// The same as headers, but for the host.
    pub(super) fn insert_into(&self, headers: &mut HeaderMap) {
        let chain = HeaderValue::from_str(&self.chain).expect("addresses are ASCII");
        headers.insert(FORWARDED_FOR, chain);
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(self.scheme));
        headers.insert(FORWARDED_PORT, HeaderValue::from(self.port));
    }

    /// As headers what [`Self::insert_into`] leaves out.
    pub(super) fn insert_rest(&self, headers: &mut HeaderMap, host: &str) {
        let mut lines = Vec::new();
        self.write(&mut lines, host);
        let lines = lines.split(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\r"));
        for (name, value) in lines.filter_map(|line| Some(line.split_at(line.windows(2).position(|at| at == b": ")?))) {
            let name = HeaderName::from_bytes(name).expect("they are written here");
            let value = HeaderValue::from_bytes(&value[2..]).expect("addresses and hosts are ASCII");
            headers.insert(name, value);
        }
    }
}

/// Whether the operator trusts what comes from this address.
pub(super) fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    let address = address.to_canonical();
    trusted.iter().any(|net| net.contains(&address))
}

/// An address as proxies write them: some add the port.
fn parse(name: &str) -> Option<IpAddr> {
    let address = name.parse().or_else(|_| name.parse().map(|end: SocketAddr| end.ip()));
    let address = address.or_else(|_| name.trim_start_matches('[').trim_end_matches(']').parse());
    address.ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn trusted() -> [IpNet; 2] {
        ["10.0.0.0/8", "2001:db8::/32"].map(|net| net.parse().unwrap())
    }

    fn named(lines: &[(&'static str, &'static str)]) -> Origin {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        Origin::new("10.0.0.1".parse().unwrap(), 8080, "http").named(&headers, &trusted())
    }

    #[rstest]
    #[case::one("192.0.2.7", "192.0.2.7, 10.0.0.1")]
    #[case::with_a_port("192.0.2.7:5555", "192.0.2.7, 10.0.0.1")]
    #[case::of_ipv6("[2001:470::7]:5555", "2001:470::7, 10.0.0.1")]
    #[case::of_ipv6_without_port("[2001:470::7]", "2001:470::7, 10.0.0.1")]
    #[case::through_two_proxies("192.0.2.7, 10.9.9.9", "192.0.2.7, 10.9.9.9, 10.0.0.1")]
    #[case::what_the_visitor_said_himself("203.0.113.5, 192.0.2.7, 10.9.9.9", "192.0.2.7, 10.9.9.9, 10.0.0.1")]
    #[case::only_proxies("10.1.1.1, 10.2.2.2", "10.1.1.1, 10.2.2.2, 10.0.0.1")]
    #[case::nonsense_before("dog, 192.0.2.7", "192.0.2.7, 10.0.0.1")]
    #[case::nonsense("192.0.2.7, dog", "10.0.0.1")]
    #[case::nobody("", "10.0.0.1")]
    fn the_last_address_that_no_trusted_proxy_has_is_the_visitors(#[case] said: &'static str, #[case] chain: &str) {
        let origin = named(&[("x-forwarded-for", said)]);
        assert_eq!(&*origin.chain, chain);
        assert_eq!(origin.address.to_string(), chain.split(',').next().unwrap());
    }

    #[rstest]
    #[case(&[("x-forwarded-proto", "https")], "https", 443)]
    #[case(&[("x-forwarded-proto", "HTTPS"), ("x-forwarded-port", "8443")], "https", 8443)]
    #[case(&[("x-forwarded-proto", "http")], "http", 80)]
    #[case(&[("x-forwarded-proto", "gopher"), ("x-forwarded-port", "none")], "http", 8080)]
    #[case(&[], "http", 8080)]
    fn a_trusted_proxy_says_how_the_visitor_came_to_it(
        #[case] said: &[(&'static str, &'static str)],
        #[case] scheme: &str,
        #[case] port: u16,
    ) {
        let origin = named(said);
        assert_eq!((origin.scheme, origin.port), (scheme, port));
    }
}
