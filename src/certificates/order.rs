//! One certificate from its order to its file, by ACME (RFC 8555).
//!
//! The key is written down before the order is made, and the order before anything is proven: a restart goes on with
//! both, or, when the authority does not know the order any more, begins anew.

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeStatus, ChallengeType, Error as AcmeError,
    Identifier, KeyAuthorization, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use super::drawer::{Drawer, DrawerError};
use super::proof::Proofs;
use crate::config::AcmeChallenge;
use crate::dns::DnsError;
use crate::model::{CertificateName, HostName};
use crate::router::{self, Certificate, CertificateError, Challenge, Offer};
use crate::store::{CertificateRow, Store, StoreError};
use crate::telemetry::chain;

/// How long the authority may take to look at a proof, or to issue.
const PATIENCE: Duration = Duration::from_secs(90);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The authority cannot be used at the moment, by nobody here.
    #[error("the certificate authority cannot be used")]
    Authority(#[source] AcmeError),
    /// It does not know the account.
    #[error("the certificate authority does not know kennel's account")]
    NoAccount(#[source] AcmeError),
    /// It has had too many orders, of this host or altogether.
    #[error("the certificate authority has had too many orders")]
    Limited(#[source] AcmeError),
    /// It refused this order.
    #[error("the certificate authority refuses")]
    Refused(#[source] AcmeError),
    /// It did not find the proof.
    #[error("the certificate authority could not see that `{name}` is served here: {problem}")]
    Unproven {
        /// Of what.
        name: CertificateName,
        /// What it said.
        problem: String,
    },
    /// The DNS provider did not do its part.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// There is none.
    #[error("a wildcard takes `[dns]` in the daemon's file")]
    NoProvider,
    /// It does not take the configured kind of proof.
    #[error("the certificate authority does not offer `{0}`")]
    NoSuchChallenge(&'static str),
    /// What it issued cannot be served.
    #[error("the certificate authority issued what cannot be served")]
    Unusable(#[source] CertificateError),
    /// What it issued is for another host.
    #[error("the certificate authority issued a certificate that is not for the host")]
    Mistaken,
    /// The certificate that is the proof cannot be shown.
    #[error("cannot show the proof")]
    Proof(#[source] rustls::Error),
    /// No key or request could be made.
    #[error("cannot make a key")]
    Key(#[source] rcgen::Error),
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DrawerError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something here broke off.
    #[error("was interrupted")]
    Interrupted(#[from] tokio::task::JoinError),
}

impl From<AcmeError> for Failure {
    fn from(err: AcmeError) -> Self {
        let AcmeError::Api(problem) = &err else {
            return if matches!(err, AcmeError::Timeout(_)) { Self::Refused(err) } else { Self::Authority(err) };
        };
        match problem.r#type.as_deref().and_then(|kind| kind.strip_prefix("urn:ietf:params:acme:error:")) {
            Some("badNonce" | "serverInternal") | None => Self::Authority(err),
            Some("accountDoesNotExist") => Self::NoAccount(err),
            Some("rateLimited") => Self::Limited(err),
            Some(_) => Self::Refused(err),
        }
    }
}

/// What an order is carried out with.
pub(super) struct Desk {
    pub(super) account: Account,
    pub(super) directory: String,
    pub(super) challenge: AcmeChallenge,
    pub(super) drawer: Drawer,
    pub(super) store: Store,
    pub(super) router: router::Handle,
    /// Where proofs of wildcards are shown.
    pub(super) proofs: Option<Proofs>,
}

impl Desk {
    /// Gets a certificate for the row's name, and leaves it in the drawer. `held` is the one it replaces.
    pub(super) async fn obtain(
        &self,
        row: &CertificateRow,
        held: Option<&Certificate>,
    ) -> Result<Certificate, Failure> {
        if let Some((order, key)) = self.resume(row).await? {
            match self.carry_out(&row.name, order, key).await {
                // It may have looked while nobody was there to answer.
                Err(Failure::Unproven { .. }) => {}
                done => return done,
            }
        }
        let (order, key) = self.begin(&row.name, held).await?;
        self.carry_out(&row.name, order, key).await
    }

    /// Removes what an order has left in the DNS zone. Gives what is wrong when it may still be there.
    pub(super) async fn clear(&self, name: &CertificateName) -> Option<DnsError> {
        let (proofs, domain) = self.proofs.as_ref().zip(name.domain())?;
        proofs.clear(domain).await.err()
    }

    async fn carry_out(&self, name: &CertificateName, mut order: Order, key: KeyPair) -> Result<Certificate, Failure> {
        let policy = RetryPolicy::new().timeout(PATIENCE);
        if order.state().status == OrderStatus::Pending {
            let offers = self.prove(&mut order, name).await?;
            if !is_proven(&mut order, &policy).await? {
                let problem = problem_of(&mut order).await.unwrap_or_else(|| "it does not say why".to_owned());
                self.store.drop_order(name).await?;
                return Err(Failure::Unproven { name: name.clone(), problem });
            }
            drop(offers);
        }
        if order.state().status == OrderStatus::Ready {
            order.finalize_csr(&request(name, &key)?).await?;
        }
        let text = order.poll_certificate(&policy).await?;
        self.keep(name, text, key.serialize_pem()).await
    }

    /// The order that was under way, if the authority still knows it and its key is there.
    async fn resume(&self, row: &CertificateRow) -> Result<Option<(Order, KeyPair)>, Failure> {
        let same = row.order_directory.as_deref() == Some(&*self.directory);
        let Some(url) = row.order_url.clone().filter(|_| same) else { return Ok(None) };
        let (drawer, name) = (self.drawer.clone(), row.name.clone());
        let key = tokio::task::spawn_blocking(move || drawer.next_key(&name)).await??;
        let Some(key) = key.and_then(|key| KeyPair::from_pem(&key).ok()) else { return Ok(None) };
        match self.account.order(url).await.map_err(Failure::from) {
            Ok(mut order) => {
                if order.state().status != OrderStatus::Invalid {
                    return Ok(Some((order, key)));
                }
            }
            Err(Failure::Refused(_)) => {}
            Err(other) => return Err(other),
        }
        self.store.drop_order(&row.name).await?;
        Ok(None)
    }

    async fn begin(&self, name: &CertificateName, held: Option<&Certificate>) -> Result<(Order, KeyPair), Failure> {
        let key = KeyPair::generate().map_err(Failure::Key)?;
        let (drawer, own, text) = (self.drawer.clone(), name.clone(), key.serialize_pem());
        tokio::task::spawn_blocking(move || drawer.put_next_key(&own, &text)).await??;
        let names = [Identifier::Dns(name.to_string())];
        // Renewals count less against limits (RFC 9773, section 5), but not every authority knows or takes that.
        let replaced = held.and_then(|held| CertificateIdentifier::try_from(held.chain().first()?).ok());
        let order = match replaced {
            Some(replaced) => match self.account.new_order(&NewOrder::new(&names).replaces(replaced)).await {
                Err(AcmeError::Api(_) | AcmeError::Unsupported(_) | AcmeError::Other(_)) => None,
                order => Some(order?),
            },
            None => None,
        };
        let order = match order {
            Some(order) => order,
            None => self.account.new_order(&NewOrder::new(&names)).await?,
        };
        self.store.note_order(name, &self.directory, order.url()).await?;
        Ok((order, key))
    }

    /// Shows the authority that what the certificate is for is ours, and has it look.
    async fn prove(&self, order: &mut Order, name: &CertificateName) -> Result<Vec<Offer>, Failure> {
        let mut offers = Vec::new();
        let host = name.host();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let (kind, word) = match (&host, self.challenge) {
                // Nothing else will do for a wildcard (RFC 8555, section 8.3; RFC 8737, section 3).
                (None, _) => (ChallengeType::Dns01, "dns-01"),
                (Some(_), AcmeChallenge::Http01) => (ChallengeType::Http01, "http-01"),
                (Some(_), AcmeChallenge::TlsAlpn01) => (ChallengeType::TlsAlpn01, "tls-alpn-01"),
            };
            let mut challenge = authorization.challenge(kind).ok_or(Failure::NoSuchChallenge(word))?;
            let authorization = challenge.key_authorization();
            match (&host, self.challenge) {
                (None, _) => {
                    let (proofs, domain) = self.proofs.as_ref().zip(name.domain()).ok_or(Failure::NoProvider)?;
                    proofs.show(domain, &authorization.dns_value()).await?;
                }
                (Some(host), AcmeChallenge::Http01) => {
                    let (token, answer) = (challenge.token.clone(), authorization.as_str().to_owned());
                    offers.push(self.router.offer(host, Challenge::Http { token, answer }));
                }
                (Some(host), AcmeChallenge::TlsAlpn01) => {
                    offers.push(self.router.offer(host, alpn_proof(host, &authorization)?));
                }
            }
            // After a restart the authority may be looking already.
            if challenge.status == ChallengeStatus::Pending {
                challenge.set_ready().await?;
            }
        }
        Ok(offers)
    }

    async fn keep(&self, name: &CertificateName, chain: String, key: String) -> Result<Certificate, Failure> {
        let certificate = Certificate::read(chain.as_bytes(), key.as_bytes()).map_err(Failure::Unusable)?;
        if !certificate.covers(name.as_str()) {
            return Err(Failure::Mistaken);
        }
        let (drawer, name) = (self.drawer.clone(), name.clone());
        tokio::task::spawn_blocking(move || drawer.put_certificate(&name, &chain, &key)).await??;
        Ok(certificate)
    }
}

/// Waits until the authority has looked; whether it has found the proof.
async fn is_proven(order: &mut Order, policy: &RetryPolicy) -> Result<bool, Failure> {
    match order.poll_ready(policy).await.map_err(Failure::from) {
        Ok(status) => Ok(status != OrderStatus::Invalid),
        // What is wrong with the order, and not with the question.
        Err(Failure::Refused(AcmeError::Api(_))) => Ok(false),
        Err(err) => Err(err),
    }
}

/// What the authority says of a proof it did not find.
async fn problem_of(order: &mut Order) -> Option<String> {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let state = authorization.refresh().await.ok()?;
        if let Some(problem) = state.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
            return Some(problem.detail.clone().unwrap_or_else(|| chain(problem)));
        }
    }
    None
}

/// The certificate of tls-alpn-01: it names the host, and holds the proof (RFC 8737, section 3).
fn alpn_proof(host: &HostName, authorization: &KeyAuthorization) -> Result<Challenge, Failure> {
    let mut params = CertificateParams::new(vec![host.to_string()]).map_err(Failure::Key)?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(authorization.digest().as_ref())];
    let key = KeyPair::generate().map_err(Failure::Key)?;
    let made = params.self_signed(&key).map_err(Failure::Key)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = any_supported_type(&key).map_err(Failure::Proof)?;
    // Nobody looks whether key and certificate fit: the proof is a critical extension, which no reader knows.
    Ok(Challenge::Alpn(Arc::new(CertifiedKey::new(vec![made.into()], key))))
}

/// The request for a certificate, for that host alone (RFC 2986).
fn request(name: &CertificateName, key: &KeyPair) -> Result<Vec<u8>, Failure> {
    let mut params = CertificateParams::new(vec![name.to_string()]).map_err(Failure::Key)?;
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(key).map_err(Failure::Key)?;
    Ok(request.der().to_vec())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use http::{Request, Response, StatusCode};
    use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
    use rstest::rstest;

    use super::*;

    /// An authority that has one order, of which it says the second thing from the second question on.
    struct Fake {
        later: (StatusCode, &'static str),
        asked: AtomicBool,
    }

    impl HttpClient for Fake {
        fn request(
            &self,
            asked: Request<BodyWrapper<bytes::Bytes>>,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<BytesResponse, AcmeError>> + Send>> {
            let said = match asked.uri().path() {
                "/order" if self.asked.swap(true, Ordering::Relaxed) => self.later,
                "/order" => (StatusCode::OK, r#"{"status": "pending", "authorizations": [], "finalize": ""}"#),
                _ => (StatusCode::OK, r#"{"newNonce": "https://ca/nonce", "newAccount": "", "newOrder": ""}"#),
            };
            let (status, text) = said;
            let body = http_body_util::Full::new(bytes::Bytes::from(text));
            let response = Response::builder().status(status).header("replay-nonce", "n").body(body);
            Box::pin(async move { Ok(response.unwrap().into()) })
        }
    }

    #[rstest]
    #[case::found(200, r#"{"status": "ready", "authorizations": [], "finalize": ""}"#, "Ok(true)")]
    #[case::not_found(200, r#"{"status": "invalid", "authorizations": [], "finalize": ""}"#, "Ok(false)")]
    #[case::told(
        200,
        r#"{"status": "invalid", "authorizations": [], "finalize": "",
            "error": {"type": "urn:ietf:params:acme:error:unauthorized", "detail": "because"}}"#,
        "Ok(false)"
    )]
    #[case::turned_away(400, r#"{"type": "urn:ietf:params:acme:error:badNonce"}"#, "Err(Authority(")]
    #[case::too_often(429, r#"{"type": "urn:ietf:params:acme:error:rateLimited"}"#, "Err(Limited(")]
    #[case::forgotten(400, r#"{"type": "urn:ietf:params:acme:error:accountDoesNotExist"}"#, "Err(NoAccount(")]
    #[tokio::test]
    async fn only_what_is_said_of_the_order_itself_is_a_missing_proof(
        #[case] status: u16,
        #[case] text: &'static str,
        #[case] expected: &str,
    ) {
        let fake = Fake { later: (status.try_into().unwrap(), text), asked: AtomicBool::new(false) };
        let key = PrivatePkcs8KeyDer::from(KeyPair::generate().unwrap().serialize_der());
        let builder = Account::builder_with_http(Box::new(fake));
        let account = builder.from_parts("https://ca/me".to_owned(), key, "https://ca/dir".to_owned()).await.unwrap();
        let mut order = account.order("https://ca/order".to_owned()).await.unwrap();
        let proven = is_proven(&mut order, &RetryPolicy::new()).await;
        assert!(format!("{proven:?}").starts_with(expected), "{proven:?}");
    }

    fn problem(kind: &str) -> AcmeError {
        let text = format!(r#"{{"type": "urn:ietf:params:acme:error:{kind}", "detail": "because"}}"#);
        AcmeError::Api(serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn what_is_the_authoritys_fault_is_told_from_what_is_the_hosts() {
        assert!(matches!(Failure::from(problem("badNonce")), Failure::Authority(_)));
        assert!(matches!(Failure::from(problem("serverInternal")), Failure::Authority(_)));
        assert!(matches!(Failure::from(AcmeError::Str("no nonce")), Failure::Authority(_)));
        assert!(matches!(Failure::from(problem("rateLimited")), Failure::Limited(_)));
        assert!(matches!(Failure::from(problem("rejectedIdentifier")), Failure::Refused(_)));
        assert!(matches!(Failure::from(AcmeError::Timeout(None)), Failure::Refused(_)));
        assert!(matches!(Failure::from(problem("accountDoesNotExist")), Failure::NoAccount(_)));
        let said = chain(&Failure::from(problem("rejectedIdentifier")));
        assert_eq!(
            said,
            "the certificate authority refuses: API error: because (urn:ietf:params:acme:error:rejectedIdentifier)"
        );
    }

    #[tokio::test]
    async fn the_key_is_written_down_before_the_order_and_read_again_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (drawer, host) = (Drawer::of(dir.path()), "a.example".parse().unwrap());
        let key = KeyPair::generate().unwrap();
        drawer.put_next_key(&host, &key.serialize_pem()).unwrap();
        let again = KeyPair::from_pem(&drawer.next_key(&host).unwrap().unwrap()).unwrap();
        assert_eq!(again.serialize_der(), key.serialize_der());
        assert!(!request(&host, &again).unwrap().is_empty());
    }
}
