//! The head of an answer: status, headers, and how the body is delimited (RFC 9112, section 6.3).

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::Malformed;
use super::decode::Decoder;

/// The most headers of an answer.
const MAX_HEADERS: usize = 200;
/// The most bytes of an answer's head.
const MAX_HEAD: usize = 256 * 1024;

/// Headers that belong to one connection and are never passed on (RFC 9110, section 7.6.1).
pub(in crate::router) static HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The head of an answer.
#[derive(Debug)]
pub(in crate::router) struct AnswerHead {
    /// The status.
    pub(in crate::router) status: StatusCode,
    /// All headers, as they came.
    pub(in crate::router) headers: HeaderMap,
    /// Whether some of them are [`HOP_BY_HOP`].
    pub(in crate::router) has_hop_by_hop: bool,
    /// What reads the body.
    pub(in crate::router) decoder: Decoder,
    /// Whether the connection may carry another exchange after this one.
    pub(in crate::router) keeps: bool,
}

impl AnswerHead {
    /// Takes a head from the front of `buffer`, if all of it is there.
    ///
    /// # Errors
    /// When what is there is no head, whatever may follow.
    pub(in crate::router) fn take(buffer: &mut BytesMut, method: &Method) -> Result<Option<Self>, Malformed> {
        let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut answer = httparse::Response::new(&mut []);
        let parsed =
            httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut answer, buffer, &mut headers);
        let length = match parsed {
            Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
            Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD => return Ok(None),
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Malformed("the head is too large")),
            Err(_) => return Err(Malformed("the head is not valid")),
        };
        let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed("no status"))?;
        let version = answer.version.ok_or(Malformed("no version"))?;
        let base = buffer.as_ptr() as usize;
        // Where each value lies, so that values can share the head's memory.
        let mut places = Vec::with_capacity(answer.headers.len());
        for field in &*answer.headers {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Malformed("a header's name"))?;
            places.push((name, field.value.as_ptr() as usize - base, field.value.len()));
        }
        let head = buffer.split_to(length).freeze();
        let mut fields = Fields::new(version, places.len());
        for (name, at, length) in places {
            fields.add(name, head.slice(at..at + length))?;
        }
        fields.finish(status, method).map(Some)
    }
}

/// The headers, while they are read, and what they say of the message.
struct Fields {
    version: u8,
    headers: HeaderMap,
    length: Option<u64>,
    chunked: bool,
    close: bool,
    hop_by_hop: bool,
}

impl Fields {
    fn new(version: u8, count: usize) -> Self {
        let headers = HeaderMap::with_capacity(count);
        Self { version, headers, length: None, chunked: false, close: version == 0, hop_by_hop: false }
    }

    fn add(&mut self, name: HeaderName, value: Bytes) -> Result<(), Malformed> {
        if name == header::CONTENT_LENGTH {
            let length = number(&value).ok_or(Malformed("a length that is no number"))?;
            match self.length.replace(length) {
                None => {}
                Some(same) if same == length => return Ok(()),
                Some(_) => return Err(Malformed("two lengths")),
            }
        } else if name == header::TRANSFER_ENCODING {
            // Another coding would have to be undone, and a second `chunked` means that somebody is confused.
            if self.version == 0 || self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed("a transfer coding other than `chunked`"));
            }
            self.chunked = true;
        } else if name == header::CONNECTION {
            let mut tokens = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            self.close |= tokens.any(|token| token.eq_ignore_ascii_case(b"close"));
        }
        self.hop_by_hop |= HOP_BY_HOP.contains(&name);
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| Malformed("a header's value"))?;
        self.headers.try_append(name, value).map_err(|_| Malformed("the head is too large"))?;
        Ok(())
    }

    fn finish(self, status: StatusCode, method: &Method) -> Result<AnswerHead, Malformed> {
        let Self { headers, length, chunked, close, hop_by_hop, .. } = self;
        let bodiless = status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED
            || method == Method::HEAD;
        let decoder = match length {
            _ if bodiless => Decoder::nothing(),
            // What counts is what the chunks add up to; what another reader may think comes after, nobody reads.
            _ if chunked => Decoder::chunked(),
            Some(length) => Decoder::length(length),
            None => Decoder::until_close(),
        };
        let both = chunked && length.is_some();
        let keeps = !close && !both && !decoder.ends_with_connection();
        Ok(AnswerHead { status, headers, has_hop_by_hop: hop_by_hop, decoder, keeps })
    }
}

/// A length: digits and nothing else, below 2⁶³.
fn number(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0, |sum: u64, byte| byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0')))
}
