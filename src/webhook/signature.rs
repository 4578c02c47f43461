//! Checks that a body was signed with the project's secret: HMAC-SHA256 over the raw bytes, in constant time.

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::HeaderMap;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;

use super::headers::once;
use crate::config::RepoType;

/// A body that cannot be trusted. Every one of them is answered with 401 and no more than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// No header of this forge's holds a signature.
    #[error("no signature: header `{0}` is missing")]
    Missing(&'static str),
    /// A header is there more than once, so that it is unclear which holds.
    #[error("header `{0}` is there more than once")]
    Repeated(&'static str),
    /// A header does not hold 64 hexadecimal digits behind the prefix it needs.
    #[error("header `{0}` holds no HMAC-SHA256")]
    Malformed(&'static str),
    /// A header holds the signature of another body, or by another secret.
    #[error("header `{0}` does not sign this body with the project's secret")]
    Wrong(&'static str),
    /// There is no secret to check with. A daemon does not start like this.
    #[error("the project's webhook secret is empty")]
    NoSecret,
}

/// A header that holds a signature, and what stands before the digits.
type Signed = (&'static str, &'static str);

const GITHUB: Signed = ("X-Hub-Signature-256", "sha256=");
const FORGEJO: Signed = ("X-Forgejo-Signature", "");
const GITEA: Signed = ("X-Gitea-Signature", "");

/// The signatures a delivery bears, by header, checked for their form alone: what costs nothing.
///
/// GitHub signs in `X-Hub-Signature-256` only. Forgejo and Gitea sign in up to three headers with one secret, and at
/// least one must be there. SHA-1 signatures are not looked at.
///
/// # Errors
/// When no body could be signed with these.
pub fn read(repo_type: RepoType, headers: &HeaderMap) -> Result<Vec<(&'static str, [u8; 32])>, SignatureError> {
    let accepted: &[Signed] = match repo_type {
        RepoType::Github => &[GITHUB],
        RepoType::Forgejo => &[FORGEJO, GITEA, GITHUB],
    };
    let mut signatures = Vec::with_capacity(accepted.len());
    for &(header, prefix) in accepted {
        let Some(value) = once(headers, header).map_err(|_| SignatureError::Repeated(header))? else { continue };
        let signature = value.as_bytes().strip_prefix(prefix.as_bytes()).and_then(digits);
        signatures.push((header, signature.ok_or(SignatureError::Malformed(header))?));
    }
    if signatures.is_empty() { Err(SignatureError::Missing(accepted[0].0)) } else { Ok(signatures) }
}

/// Checks the signature of `body`: every one that is there must be right.
///
/// # Errors
/// When the body cannot be trusted, and why, for the log.
pub fn verify(
    repo_type: RepoType,
    headers: &HeaderMap,
    secret: &SecretString,
    body: &[u8],
) -> Result<(), SignatureError> {
    let secret = secret.expose_secret().as_bytes();
    if secret.is_empty() {
        return Err(SignatureError::NoSecret);
    }
    for (header, signature) in read(repo_type, headers)? {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
        mac.update(body);
        mac.verify_slice(&signature).map_err(|_| SignatureError::Wrong(header))?;
    }
    Ok(())
}

/// Exactly 64 hexadecimal digits.
fn digits(hex: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(hex, &mut bytes).ok().map(|()| bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::SignatureError as E;
    use super::*;

    // GitHub's own example, "Validating webhook deliveries".
    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    const HEX: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    const OTHER: &str = "857107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    fn check(repo_type: RepoType, pairs: &[(&'static str, String)]) -> Result<(), E> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        verify(repo_type, &headers, &SecretString::from(SECRET), BODY)
    }

    #[test]
    fn each_forge_signs_in_its_own_header() {
        use RepoType::{Forgejo, Github};
        let prefixed = format!("sha256={HEX}");
        assert_eq!(check(Github, &[("x-hub-signature-256", prefixed.clone())]), Ok(()));
        assert_eq!(check(Forgejo, &[("x-forgejo-signature", HEX.to_owned())]), Ok(()));
        assert_eq!(check(Forgejo, &[("x-gitea-signature", HEX.to_owned())]), Ok(()));
        assert_eq!(check(Forgejo, &[("x-gitea-signature", HEX.to_uppercase())]), Ok(()));
        assert_eq!(check(Forgejo, &[("x-hub-signature-256", prefixed.clone())]), Ok(()));
        assert_eq!(check(Github, &[("x-forgejo-signature", HEX.to_owned())]), Err(E::Missing("X-Hub-Signature-256")));
        // The SHA-1 header proves nothing.
        assert_eq!(check(Forgejo, &[("x-hub-signature", prefixed)]), Err(E::Missing("X-Forgejo-Signature")));
    }

    #[test]
    fn every_signature_that_is_there_must_be_right() {
        let all = |forgejo: &str, gitea: &str, hub: &str| {
            check(
                RepoType::Forgejo,
                &[
                    ("x-forgejo-signature", forgejo.to_owned()),
                    ("x-gitea-signature", gitea.to_owned()),
                    ("x-hub-signature-256", format!("sha256={hub}")),
                ],
            )
        };
        assert_eq!(all(HEX, HEX, HEX), Ok(()));
        assert_eq!(all(OTHER, HEX, HEX), Err(E::Wrong("X-Forgejo-Signature")));
        assert_eq!(all(HEX, OTHER, HEX), Err(E::Wrong("X-Gitea-Signature")));
        assert_eq!(all(HEX, HEX, OTHER), Err(E::Wrong("X-Hub-Signature-256")));
    }

    #[rstest]
    #[case("", E::Malformed("X-Hub-Signature-256"))]
    #[case("sha256=", E::Malformed("X-Hub-Signature-256"))]
    #[case(HEX, E::Malformed("X-Hub-Signature-256"))]
    #[case(&format!("sha1={HEX}"), E::Malformed("X-Hub-Signature-256"))]
    #[case(&format!("sha256={}", &HEX[..62]), E::Malformed("X-Hub-Signature-256"))]
    #[case(&format!("sha256={HEX}00"), E::Malformed("X-Hub-Signature-256"))]
    #[case(&format!("sha256=+{}", &HEX[1..]), E::Malformed("X-Hub-Signature-256"))]
    #[case(&format!("sha256=zz{}", &HEX[2..]), E::Malformed("X-Hub-Signature-256"))]
    #[case(&format!("sha256={OTHER}"), E::Wrong("X-Hub-Signature-256"))]
    fn what_is_not_the_signature_is_refused(#[case] value: &str, #[case] error: E) {
        assert_eq!(check(RepoType::Github, &[("x-hub-signature-256", value.to_owned())]), Err(error));
    }

    #[test]
    fn two_values_of_one_header_are_refused() {
        let pair = ("x-gitea-signature", HEX.to_owned());
        assert_eq!(check(RepoType::Forgejo, &[pair.clone(), pair]), Err(E::Repeated("X-Gitea-Signature")));
    }

    #[test]
    fn another_secret_another_body_and_no_secret_are_refused() {
        let headers = HeaderMap::from_iter([("x-gitea-signature".parse().unwrap(), HEX.parse().unwrap())]);
        let check = |secret: &str, body: &[u8]| verify(RepoType::Forgejo, &headers, &SecretString::from(secret), body);
        assert_eq!(check(SECRET, BODY), Ok(()));
        assert_eq!(check("it's a secret to everybody", BODY), Err(E::Wrong("X-Gitea-Signature")));
        assert_eq!(check(SECRET, b"Hello, World!\n"), Err(E::Wrong("X-Gitea-Signature")));
        assert_eq!(check("", BODY), Err(E::NoSecret));
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic_or_pass(value in proptest::collection::vec(any::<u8>(), 0..80)) {
            let Ok(value) = http::HeaderValue::from_bytes(&value) else { return Ok(()) };
            let headers = HeaderMap::from_iter([("x-gitea-signature".parse().unwrap(), value)]);
            prop_assert!(verify(RepoType::Forgejo, &headers, &SecretString::from(SECRET), BODY).is_err());
        }
    }
}
