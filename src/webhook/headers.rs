//! What a delivery's headers say: which event it is, which delivery, and how the body is encoded.
//!
//! **Invariant:** none of this is signed. An event's name only chooses how the signed body is read, and a delivery's
//! id only tells whether it came before.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::CONTENT_TYPE;

use crate::config::RepoType;
use crate::model::DeliveryId;

/// Which event, and which delivery of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The forge's word for what happened, such as `push`.
    pub event: String,
    /// The forge's name for this delivery; a redelivery bears the same.
    pub id: DeliveryId,
}

/// Headers that do not make a delivery.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    /// A header that must be there is not.
    #[error("header `{0}` is missing")]
    Missing(&'static str),
    /// A header that may be there once is there more often.
    #[error("header `{0}` is there more than once")]
    Repeated(&'static str),
    /// A header says nothing of use.
    #[error("header `{header}` {problem}")]
    Invalid {
        /// The header.
        header: &'static str,
        /// What is wrong with it, as the rest of a sentence.
        problem: String,
    },
}

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`.
    Json,
    /// `application/x-www-form-urlencoded`, with the JSON in the field `payload`: GitHub's default.
    Form,
}

/// Reads the event and the delivery's id. Forgejo's own names win over Gitea's, and those over GitHub's, since
/// Forgejo and Gitea send all they know.
///
/// # Errors
/// When either is missing, there twice, or not a plain word.
pub fn delivery(repo_type: RepoType, headers: &HeaderMap) -> Result<Delivery, HeaderFault> {
    let (events, ids): (&[_], &[_]) = match repo_type {
        RepoType::Github => (&["X-GitHub-Event"], &["X-GitHub-Delivery"]),
        RepoType::Forgejo => (
            &["X-Forgejo-Event", "X-Gitea-Event", "X-GitHub-Event"],
            &["X-Forgejo-Delivery", "X-Gitea-Delivery", "X-GitHub-Delivery"],
        ),
    };
    let (header, event) = first(headers, events)?;
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if event.is_empty() || event.len() > 64 || !event.bytes().all(word) {
        return Err(HeaderFault::Invalid { header, problem: "is not the name of an event".to_owned() });
    }
    let (header, id) = first(headers, ids)?;
    let id = id.parse().map_err(|err| HeaderFault::Invalid { header, problem: format!("is wrong: {err}") })?;
    Ok(Delivery { event: event.to_owned(), id })
}

/// The first of `names` that is there.
fn first<'h>(headers: &'h HeaderMap, names: &[&'static str]) -> Result<(&'static str, &'h str), HeaderFault> {
    for name in names {
        if let Some(value) = once(headers, name)? {
            let problem = || "holds more than plain text".to_owned();
            let value = value.to_str().map_err(|_| HeaderFault::Invalid { header: name, problem: problem() })?;
            return Ok((name, value));
        }
    }
    Err(HeaderFault::Missing(names.first().copied().unwrap_or_default()))
}

/// A header that may be there at most once.
pub(super) fn once<'h>(
    headers: &'h HeaderMap,
    name: &'static str,
) -> Result<Option<&'h http::HeaderValue>, HeaderFault> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(HeaderFault::Repeated(name)),
    }
}

impl Encoding {
    /// How the body is encoded, or `None` when it is neither (415). No content type at all is taken for JSON.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let Some(value) = headers.get(CONTENT_TYPE) else { return Some(Self::Json) };
        let essence = value.to_str().ok()?.split(';').next()?.trim();
        if essence.eq_ignore_ascii_case("application/json") {
            Some(Self::Json)
        } else if essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            Some(Self::Form)
        } else {
            None
        }
    }

    /// The JSON within the raw body, whose signature has been checked.
    ///
    /// # Errors
    /// When a form has no field `payload`, or two, or one that is not percent-encoded.
    pub fn json(self, raw: &[u8]) -> Result<Cow<'_, [u8]>, super::payload::PayloadFault> {
        match self {
            Self::Json => Ok(Cow::Borrowed(raw)),
            Self::Form => form_field(raw, b"payload").map(Cow::Owned).map_err(|problem| super::payload::PayloadFault {
                field: "payload".to_owned(),
                problem: problem.to_owned(),
            }),
        }
    }
}

/// The one field called `name` (`application/x-www-form-urlencoded`, WHATWG URL, section 5.1).
fn form_field(raw: &[u8], name: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut found = None;
    for pair in raw.split(|b| *b == b'&') {
        let at = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
        if percent_decoded(&pair[..at])? != name {
            continue;
        }
        if found.is_some() {
            return Err("is there more than once in the form");
        }
        found = Some(percent_decoded(pair.get(at + 1..).unwrap_or_default())?);
    }
    found.ok_or("is missing in the form")
}

fn percent_decoded(text: &[u8]) -> Result<Vec<u8>, &'static str> {
    let digit = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16)).and_then(|n| u8::try_from(n).ok());
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => match (digit(rest.next()), digit(rest.next())) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err("is not percent-encoded"),
            },
            other => *other,
        });
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn read(repo_type: RepoType, pairs: &[(&'static str, &str)]) -> Result<(String, String), String> {
        delivery(repo_type, &headers(pairs))
            .map(|delivery| (delivery.event, delivery.id.to_string()))
            .map_err(|fault| fault.to_string())
    }

    #[rstest]
    #[case(RepoType::Github, &[("x-github-event", "push"), ("x-github-delivery", "72d3-1")])]
    #[case(RepoType::Forgejo, &[("x-forgejo-event", "push"), ("x-forgejo-delivery", "72d3-1")])]
    #[case(RepoType::Forgejo, &[("x-gitea-event", "push"), ("x-gitea-delivery", "72d3-1")])]
    #[case(RepoType::Forgejo, &[("x-github-event", "ping"), ("x-gitea-event", "ping"), ("x-forgejo-event", "push"),
        ("x-github-delivery", "1"), ("x-forgejo-delivery", "72d3-1")])]
    fn each_forge_names_its_deliveries(#[case] repo_type: RepoType, #[case] pairs: &[(&'static str, &str)]) {
        assert_eq!(read(repo_type, pairs), Ok(("push".to_owned(), "72d3-1".to_owned())));
    }

    #[rstest]
    #[case(RepoType::Github, &[("x-github-delivery", "1")], "header `X-GitHub-Event` is missing")]
    #[case(RepoType::Github, &[("x-gitea-event", "push"), ("x-gitea-delivery", "1")], "header `X-GitHub-Event` is missing")]
    #[case(RepoType::Forgejo, &[("x-gitea-event", "push")], "header `X-Forgejo-Delivery` is missing")]
    #[case(RepoType::Github, &[("x-github-event", "push"), ("x-github-event", "ping")], "header `X-GitHub-Event` is there more than once")]
    #[case(RepoType::Github, &[("x-github-event", "Pu sh"), ("x-github-delivery", "1")], "header `X-GitHub-Event` is not the name of an event")]
    #[case(RepoType::Github, &[("x-github-event", "push"), ("x-github-delivery", "a b")], "may hold only letters")]
    fn a_delivery_without_its_names_is_refused(
        #[case] repo_type: RepoType,
        #[case] pairs: &[(&'static str, &str)],
        #[case] says: &str,
    ) {
        let problem = read(repo_type, pairs).unwrap_err();
        assert!(problem.contains(says), "{problem}");
    }

    #[rstest]
    #[case("application/json", Some(Encoding::Json))]
    #[case("Application/JSON; charset=utf-8", Some(Encoding::Json))]
    #[case("application/x-www-form-urlencoded", Some(Encoding::Form))]
    #[case("text/plain", None)]
    #[case("application/jsonp", None)]
    fn two_encodings_are_understood(#[case] content_type: &str, #[case] encoding: Option<Encoding>) {
        assert_eq!(Encoding::of(&headers(&[("content-type", content_type)])), encoding);
    }

    #[rstest]
    #[case("payload=%7B%22a%22%3A+1%7D", Ok("{\"a\": 1}"))]
    #[case("x=1&payload={}&y", Ok("{}"))]
    #[case("%70ayload=%C3%A4", Ok("ä"))]
    #[case("payload", Ok(""))]
    #[case("", Err("`payload`: is missing in the form"))]
    #[case("payloads={}", Err("`payload`: is missing in the form"))]
    #[case("payload={}&payload={}", Err("`payload`: is there more than once in the form"))]
    #[case("payload=%7", Err("`payload`: is not percent-encoded"))]
    #[case("payload=%zz", Err("`payload`: is not percent-encoded"))]
    fn a_form_holds_one_payload(#[case] form: &str, #[case] json: Result<&str, &str>) {
        let read = Encoding::Form.json(form.as_bytes());
        let read = read.map(|json| String::from_utf8(json.into_owned()).unwrap()).map_err(|fault| fault.to_string());
        assert_eq!(read.as_deref().map_err(String::as_str), json);
    }
}
