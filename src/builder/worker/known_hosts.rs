//! The host keys an operator trusts, in the format of `sshd(8)`, "SSH_KNOWN_HOSTS FILE FORMAT".
//!
//! libgit2 leaves the decision to its caller: a host that is not in the file is refused, as is another key.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;

/// A known_hosts file. Lines that cannot be understood trust nobody.
#[derive(Debug, Default)]
pub(super) struct KnownHosts(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    is_revoked: bool,
    hosts: Hosts,
    key_type: String,
    key: Vec<u8>,
}

#[derive(Debug)]
enum Hosts {
    Patterns(Vec<String>),
    Hashed { salt: Vec<u8>, hash: Vec<u8> },
}

/// What the file says of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is this host's.
    Trusted,
    /// It was taken back.
    Revoked,
    /// The host is known by other keys, of these types.
    OtherKey(Vec<String>),
    /// The host is not in the file.
    UnknownHost,
}

impl KnownHosts {
    pub(super) fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(Entry::parse).collect())
    }

    /// What is known of `key`, in SSH's own encoding, as the key of `host` at `port`.
    pub(super) fn check(&self, host: &str, port: u16, key: &[u8]) -> Verdict {
        let name = file_name_of(host, port);
        let of_host: Vec<_> = self.0.iter().filter(|entry| entry.hosts.matches(&name)).collect();
        if of_host.iter().any(|entry| entry.is_revoked && entry.key == key) {
            return Verdict::Revoked;
        }
        let trusted: Vec<_> = of_host.into_iter().filter(|entry| !entry.is_revoked).collect();
        if trusted.is_empty() {
            Verdict::UnknownHost
        } else if trusted.iter().any(|entry| entry.key == key) {
            Verdict::Trusted
        } else {
            Verdict::OtherKey(trusted.into_iter().map(|entry| entry.key_type.clone()).collect())
        }
    }
}

/// What a host is called in the file.
pub(super) fn file_name_of(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == 22 { host } else { format!("[{host}]:{port}") }
}

impl Entry {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace().peekable();
        let is_revoked = match fields.peek()? {
            first if first.starts_with('#') => return None,
            &"@revoked" => fields.next().is_some(),
            // A certificate authority's key is not a host's.
            first if first.starts_with('@') => return None,
            _ => false,
        };
        let hosts = Hosts::parse(fields.next()?)?;
        let key_type = fields.next()?.to_owned();
        let key = BASE64_STANDARD.decode(fields.next()?).ok()?;
        Some(Self { is_revoked, hosts, key_type, key })
    }
}

impl Hosts {
    fn parse(field: &str) -> Option<Self> {
        let Some(hashed) = field.strip_prefix("|1|") else {
            return Some(Self::Patterns(field.split(',').map(str::to_ascii_lowercase).collect()));
        };
        let (salt, hash) = hashed.split_once('|')?;
        Some(Self::Hashed { salt: BASE64_STANDARD.decode(salt).ok()?, hash: BASE64_STANDARD.decode(hash).ok()? })
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Patterns(patterns) => {
                let (not, plain): (Vec<_>, Vec<_>) = patterns.iter().partition(|pattern| pattern.starts_with('!'));
                plain.iter().any(|pattern| glob(pattern.as_bytes(), name.as_bytes()))
                    && !not.iter().any(|pattern| glob(&pattern.as_bytes()[1..], name.as_bytes()))
            }
            Self::Hashed { salt, hash } => {
                let mut mac = Hmac::<Sha1>::new_from_slice(salt).expect("HMAC takes keys of any length");
                mac.update(name.as_bytes());
                mac.verify_slice(hash).is_ok()
            }
        }
    }
}

/// `*` for any text and `?` for any character, in linear space and without recursion.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    n = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIHKLfEmMTVZDJz2Rn0uHgBmHOHBRHHYvGYMcPGRMy0Hn";

    fn key() -> Vec<u8> {
        BASE64_STANDARD.decode(KEY).unwrap()
    }

    #[test]
    fn a_key_is_trusted_for_the_host_it_is_pinned_to() {
        for (hosts, host, port, is_known) in [
            ("forge.example.com", "forge.example.com", 22, true),
            ("forge.example.com", "FORGE.example.com", 22, true),
            ("forge.example.com", "evil.example.com", 22, false),
            ("forge.example.com", "forge.example.com.evil", 22, false),
            ("forge.example.com", "forge.example.com", 2222, false),
            ("[forge.example.com]:2222", "forge.example.com", 2222, true),
            ("a,forge.example.com,10.0.0.1", "forge.example.com", 22, true),
            ("*.example.com", "forge.example.com", 22, true),
            ("*.example.com,!forge.example.com", "forge.example.com", 22, false),
            ("f?rge.example.com", "forge.example.com", 22, true),
            // ssh-keygen -H of `forge.example.com`
            ("|1|71AdsaGXfi2wkmugyTLAzDbAMNI=|L/kqM84uGzm62vqJMc8KkkwefAY=", "forge.example.com", 22, true),
            ("|1|71AdsaGXfi2wkmugyTLAzDbAMNI=|L/kqM84uGzm62vqJMc8KkkwefAY=", "evil.example.com", 22, false),
            ("|1|AAAA", "forge.example.com", 22, false),
            ("#forge.example.com", "forge.example.com", 22, false),
            ("@cert-authority forge.example.com", "forge.example.com", 22, false),
        ] {
            let known = KnownHosts::parse(&format!("# ours\n\n{hosts} ssh-ed25519 {KEY} comment\n"));
            let expected = if is_known { Verdict::Trusted } else { Verdict::UnknownHost };
            assert_eq!(known.check(host, port, &key()), expected, "{hosts} for {host}:{port}");
        }
    }

    #[test]
    fn another_key_of_a_known_host_is_told_apart() {
        let known = KnownHosts::parse(&format!("h ssh-ed25519 {KEY}\n@revoked * ssh-ed25519 AAAA\n"));
        assert_eq!(known.check("h", 22, b"other"), Verdict::OtherKey(vec!["ssh-ed25519".into()]));
        assert_eq!(known.check("h", 22, &[0, 0, 0]), Verdict::Revoked);
        assert_eq!(known.check("i", 22, b"other"), Verdict::UnknownHost);
    }
}
