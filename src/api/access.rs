//! Who may ask: root and the group `kennel` on this machine, and whoever holds the token.
//!
//! A request without a token is trusted for where it comes from, and so must not come from a web page: its Host must
//! be this machine (a page could have its own name lead here) and it may not bear an Origin when it changes something.
//!
//! **Invariant:** a request nobody vouches for (no [`Caller`]) counts as coming from outside.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tracing::warn;

use super::operator;
use super::problem::{Advice, ApiError};
use crate::host::tcp;
use crate::model::HostName;
use crate::places::Source;
use crate::places::offenders::{self, Offenders};
use crate::telemetry::chain;

/// The group whose members may do what root may.
pub const GROUP: &str = "kennel";
/// How much of a path the log tells, in characters.
const PATH_MAX: usize = 64;

/// Where a request came from; whoever serves puts it into the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Over the Unix socket, from a process of this user and group.
    Unix {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// Over a TCP listener on a loopback address.
    Local {
        /// The client's end.
        peer: SocketAddr,
        /// Our end.
        local: SocketAddr,
        /// Whose socket the client's end was when the connection was accepted.
        owner: Option<u32>,
    },
    /// Through the control domain, or over a listener that others can reach.
    Outside,
}

/// The rules of one daemon.
#[derive(Debug, Clone)]
pub struct Access {
    /// The content of `token_file`.
    pub token: Option<SecretString>,
    /// The group whose members may do what root may: [`GROUP`], except in tests.
    pub group: String,
    /// Where kennel is served to the outside.
    pub control_domain: Option<HostName>,
}

/// Who may ask, and who was told that he may not.
#[derive(Debug)]
pub(super) struct Door {
    access: Arc<Access>,
    offenders: Offenders,
}

impl Door {
    pub(super) fn new(access: Arc<Access>) -> Self {
        Self { access, offenders: Offenders::default() }
    }
}

/// Lets a request pass, or answers why not. `/healthz` is for everybody.
///
/// Whoever asks in vain over and over does not fill the log by it.
pub(super) async fn guard(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    if request.uri().path() == "/healthz" {
        return next.run(request).await;
    }
    let caller = request.extensions().get().copied().unwrap_or(Caller::Outside);
    match door.access.admit(caller, request.method(), request.headers()).await {
        Ok(()) => next.run(request).await,
        Err(err) => {
            let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
            let source = Source::of(peer);
            if let Some(untold) = door.offenders.charge(source, Instant::now()).log {
                let before = offenders::before(untold);
                let path: String = request.uri().path().chars().take(PATH_MAX).collect();
                warn!(
                    caller = ?caller, source = %source, request.path = path, untold,
                    "Refused an operator's request from {source}: {err}{before}"
                );
            }
            err.into_response()
        }
    }
}

impl Access {
    async fn admit(&self, caller: Caller, method: &Method, headers: &HeaderMap) -> Result<(), ApiError> {
        let (peer, local, owner) = match caller {
            Caller::Unix { uid, gid } => return self.admit_user(uid, Some(gid)).await,
            _ if headers.contains_key(header::AUTHORIZATION) => return self.check_token(headers),
            Caller::Outside if self.token.is_none() => {
                let advice = Advice::new("kennel has no token, so nothing can be asked of it from outside");
                return Err(ApiError::Refused(advice.hint("name one in the daemon's file: `[api] token_file`")));
            }
            Caller::Outside => return Err(ApiError::TokenNeeded),
            Caller::Local { peer, local, owner } => (peer, local, owner),
        };
        self.check_host(headers)?;
        if !method.is_safe() && headers.contains_key(header::ORIGIN) {
            return Err(ApiError::Refused(Advice::new("a web page may not ask for this")));
        }
        // Asked again, since the socket may have changed hands or closed since it was accepted.
        let now = owner_of(peer, local).await;
        match (owner, now) {
            (Some(before), Some(now)) if before == now => self.admit_user(now, None).await,
            _ => Err(self.not_an_operator("kennel cannot tell whose connection this is")),
        }
    }

    async fn admit_user(&self, uid: u32, gid: Option<u32>) -> Result<(), ApiError> {
        if uid == 0 {
            return Ok(());
        }
        let group = self.group.clone();
        // A user database may be on the network. A lookup that panicked is a no.
        let member =
            tokio::task::spawn_blocking(move || operator::is_operator(uid, gid, &group)).await.unwrap_or(false);
        if member { Ok(()) } else { Err(self.not_an_operator(&format!("user {uid} may not ask kennel for this"))) }
    }

    fn not_an_operator(&self, detail: &str) -> ApiError {
        let hint = format!("only root and members of the group `{}` may", self.group);
        ApiError::Refused(Advice::new(detail).hint(hint))
    }

    /// A wrong token is refused even where none is needed: whoever sends one means it to count.
    fn check_token(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return Err(ApiError::WrongToken) };
        let Some((scheme, sent)) = value.as_bytes().split_at_checked(7) else { return Err(ApiError::TokenNeeded) };
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return Err(ApiError::TokenNeeded);
        }
        let Some(token) = &self.token else { return Err(ApiError::WrongToken) };
        // Digests have one length, so not even the token's can be measured.
        let (sent, token) = (Sha256::digest(sent.trim_ascii()), Sha256::digest(token.expose_secret()));
        if bool::from(sent.as_slice().ct_eq(token.as_slice())) { Ok(()) } else { Err(ApiError::WrongToken) }
    }

    fn check_host(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let mut values = headers.get_all(header::HOST).iter();
        let host = match (values.next().map(|value| value.to_str()), values.next()) {
            (Some(Ok(host)), None) => without_port(host),
            _ => "",
        };
        let ours = host.eq_ignore_ascii_case("localhost")
            || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
            || self.control_domain.as_ref().is_some_and(|domain| host.eq_ignore_ascii_case(domain.as_str()));
        if ours {
            return Ok(());
        }
        let advice = Advice::new("the Host of this request is not this machine");
        Err(ApiError::Refused(advice.hint("ask for 127.0.0.1 or localhost")))
    }
}

/// The host of a Host header, without brackets.
fn without_port(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(address, _)| address),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}

/// Whose socket a local client's is, if that can be told.
pub(super) async fn owner_of(peer: SocketAddr, local: SocketAddr) -> Option<u32> {
    match tokio::task::spawn_blocking(move || tcp::owner(peer, local)).await {
        Ok(Ok(owner)) => owner,
        Ok(Err(err)) => {
            warn!(error = %chain(&err), "Could not look up whose a connection is");
            None
        }
        Err(_panicked) => None,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use rstest::rstest;

    use super::*;

    const PEER: &str = "127.0.0.1:1";

    fn access(token: Option<&str>) -> Access {
        Access {
            token: token.map(SecretString::from),
            group: "no-such-group".to_owned(),
            control_domain: Some("kennel.example.com".parse().unwrap()),
        }
    }

    async fn status(access: &Access, caller: Caller, method: Method, headers: &[(&str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<header::HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        access.admit(caller, &method, &map).await.map_or_else(|err| err.problem().status, |()| 200)
    }

    #[rstest]
    #[case::right(Some("s3cret"), "Bearer s3cret", 200)]
    #[case::scheme_in_any_case(Some("s3cret"), "bearer s3cret", 200)]
    #[case::wrong(Some("s3cret"), "Bearer s3cre", 401)]
    #[case::longer(Some("s3cret"), "Bearer s3crets", 401)]
    #[case::empty(Some("s3cret"), "Bearer ", 401)]
    #[case::basic(Some("s3cret"), "Basic s3cret", 401)]
    #[case::none_configured(None, "Bearer ", 401)]
    #[tokio::test]
    async fn from_outside_only_the_token_counts(#[case] token: Option<&str>, #[case] sent: &str, #[case] want: u16) {
        assert_eq!(status(&access(token), Caller::Outside, Method::GET, &[("authorization", sent)]).await, want);
    }

    #[tokio::test]
    async fn from_outside_without_a_token_nothing_passes() {
        assert_eq!(status(&access(Some("x")), Caller::Outside, Method::GET, &[("host", "127.0.0.1")]).await, 401);
        assert_eq!(status(&access(None), Caller::Outside, Method::GET, &[("host", "127.0.0.1")]).await, 403);
        let two = [("authorization", "Bearer x"), ("authorization", "Bearer x")];
        assert_eq!(status(&access(Some("x")), Caller::Outside, Method::GET, &two).await, 401);
    }

    #[tokio::test]
    async fn a_local_peer_nobody_owns_is_refused_even_if_it_was_roots() {
        for owner in [Some(0), None] {
            let caller = Caller::Local { peer: PEER.parse().unwrap(), local: PEER.parse().unwrap(), owner };
            assert_eq!(status(&access(None), caller, Method::GET, &[("host", "localhost")]).await, 403);
        }
    }

    #[tokio::test]
    async fn over_the_unix_socket_only_operators_pass() {
        assert_eq!(status(&access(None), Caller::Unix { uid: 0, gid: 0 }, Method::POST, &[]).await, 200);
        assert_eq!(status(&access(None), Caller::Unix { uid: 4_000_000, gid: 0 }, Method::GET, &[]).await, 403);
        let bearer = [("authorization", "Bearer x")];
        let caller = Caller::Unix { uid: 4_000_000, gid: 4_000_000 };
        assert_eq!(status(&access(Some("x")), caller, Method::GET, &bearer).await, 403, "the file says no");
    }

    #[rstest]
    #[case("localhost", true)]
    #[case("LOCALHOST:3000", true)]
    #[case("127.0.0.1:3000", true)]
    #[case("127.1.2.3", true)]
    #[case("[::1]:3000", true)]
    #[case("[::ffff:127.0.0.1]:3000", true)]
    #[case("kennel.example.com", true)]
    #[case("evil.example.com:3000", false)]
    #[case("localhost.evil.example.com", false)]
    #[case("api-main.hello.localhost", false)]
    #[case("10.0.0.1:3000", false)]
    #[case("a@127.0.0.1", false)]
    #[case("[::1", false)]
    #[case("", false)]
    fn only_this_machines_names_are_hosts(#[case] host: &str, #[case] ours: bool) {
        let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_str(host).unwrap())]);
        assert_eq!(access(None).check_host(&headers).is_ok(), ours);
    }
}
