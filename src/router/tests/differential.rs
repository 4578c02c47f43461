//! What a service may send, in any pieces, is read here as hyper's client reads it, or refused.

use bytes::BytesMut;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use proptest::prelude::*;
use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::router::client::{AnswerHead, Piece};

/// An answer as a reader understood it.
#[derive(Debug, PartialEq, Eq)]
struct Understood {
    status: StatusCode,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

impl Understood {
    fn new(status: StatusCode, headers: &HeaderMap, body: Vec<u8>, trailers: Option<HeaderMap>) -> Self {
        let mut headers: Vec<_> =
            headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
        headers.sort();
        headers.dedup();
        // Ours drops trailers that are empty, hyper's may show them.
        Self { status, headers, body, trailers: trailers.filter(|trailers| !trailers.is_empty()) }
    }
}

/// Our reading of `pieces`, after which the connection is closed; `None` when it is refused or breaks off.
fn ours(method: &Method, pieces: &[&[u8]]) -> Option<Understood> {
    let mut pieces = pieces.iter();
    let mut buffer = BytesMut::new();
    let mut head = loop {
        match AnswerHead::take(&mut buffer, method).ok()? {
            Some(head) if head.status.is_informational() && head.status != 101 => continue,
            Some(head) => break head,
            None => buffer.extend_from_slice(pieces.next()?),
        }
    };
    let (mut body, mut trailers) = (Vec::new(), None);
    loop {
        match head.decoder.next(&mut buffer).ok()? {
            Some(Piece::Data(data)) => body.extend_from_slice(&data),
            Some(Piece::Trailers(fields)) => trailers = Some(fields),
            Some(Piece::End) => return Some(Understood::new(head.status, &head.headers, body, trailers)),
            None => match pieces.next() {
                Some(piece) => buffer.extend_from_slice(piece),
                None => head.decoder.close().ok()?,
            },
        }
    }
}

/// hyper's reading of the same.
async fn hypers(method: &Method, pieces: &[&[u8]]) -> Option<Understood> {
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_headers(200)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(near))
        .await
        .unwrap();
    let request = Request::builder().method(method).uri("/").header("host", HOST).body(Empty::new()).unwrap();
    let reading = async {
        let response = sender.send_request(request).await.ok()?;
        let (parts, body) = response.into_parts();
        let collected = body.collect().await.ok()?;
        let trailers = collected.trailers().cloned();
        Some(Understood::new(parts.status, &parts.headers, collected.to_bytes().to_vec(), trailers))
    };
    let writing = async {
        // hyper takes what comes before its request for an answer to nothing.
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            if far.read_buf(&mut request).await.unwrap_or_default() == 0 {
                return;
            }
        }
        for piece in pieces {
            if far.write_all(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        let _ = far.shutdown().await;
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = connection.await;
    });
    patiently(async { tokio::join!(reading, writing).0 }).await
}

/// How a body's end is told.
#[derive(Debug, Clone)]
enum End {
    Length,
    Chunks(Vec<usize>, bool),
    Close,
}

fn valid() -> impl Strategy<Value = (Method, Vec<u8>)> {
    let end = prop_oneof![
        Just(End::Length),
        (proptest::collection::vec(1..40usize, 0..4), any::<bool>()).prop_map(|(sizes, more)| End::Chunks(sizes, more)),
        Just(End::Close),
    ];
    let method = prop_oneof![3 => Just(Method::GET), 1 => Just(Method::HEAD), 1 => Just(Method::POST)];
    let status = prop_oneof![4 => Just(200u16), 1 => Just(204), 1 => Just(304), 1 => Just(404), 1 => Just(503)];
    let body = proptest::collection::vec(any::<u8>(), 0..120);
    let fields = proptest::sample::subsequence(
        vec![
            "Server: x",
            "X-Empty:",
            "Set-Cookie: a=1",
            "Set-Cookie: b=2; Path=/",
            "Connection: close",
            "ETag:\t\"x\" ",
        ],
        0..6,
    );
    (method, status, body, end, fields, 0..3usize).prop_map(|(method, status, body, end, fields, interim)| {
        let mut bytes = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(interim).into_bytes();
        bytes.extend(format!("HTTP/1.1 {status} Some Reason\r\n").bytes());
        fields.iter().for_each(|field| bytes.extend(format!("{field}\r\n").bytes()));
        let bodiless = method == Method::HEAD || matches!(status, 204 | 304);
        match end {
            End::Close if !bodiless => bytes.extend([b"\r\n", &body[..]].concat()),
            End::Close => bytes.extend(b"\r\n"),
            End::Length => {
                if status != 204 {
                    bytes.extend(format!("Content-Length: {}\r\n", body.len()).bytes());
                }
                bytes.extend(b"\r\n");
                bytes.extend(if bodiless { &[] } else { &body[..] });
            }
            End::Chunks(sizes, more) => {
                if status != 204 {
                    bytes.extend(b"Transfer-Encoding: chunked\r\n");
                }
                bytes.extend(b"\r\n");
                if !bodiless {
                    let mut rest = &body[..];
                    for size in sizes {
                        let (chunk, left) = rest.split_at(size.min(rest.len()));
                        if !chunk.is_empty() {
                            bytes.extend(format!("{:x}{}\r\n", chunk.len(), if more { ";a=b" } else { "" }).bytes());
                            bytes.extend(chunk);
                            bytes.extend(b"\r\n");
                        }
                        rest = left;
                    }
                    bytes.extend(if more { &b"0\r\nX-Sum: 7\r\n\r\n"[..] } else { b"0\r\n\r\n" });
                }
            }
        }
        (method, bytes)
    })
}

/// Bytes that mean something to some reader.
fn meaningful() -> impl Strategy<Value = Vec<u8>> {
    let parts: Vec<&[u8]> = vec![
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"0",
        b"5",
        b"ff",
        b":",
        b";",
        b",",
        b"\0",
        b"\x80",
        b"Content-Length: 3\r\n",
        b"Content-Length: 4, 4\r\n",
        b"Content-Length: +1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"0\r\n\r\n",
    ];
    prop_oneof![proptest::sample::select(parts).prop_map(<[u8]>::to_vec), proptest::collection::vec(any::<u8>(), 1..3)]
}

fn damaged() -> impl Strategy<Value = (Method, Vec<u8>)> {
    let damage = (any::<proptest::sample::Index>(), 0..4usize, meaningful());
    (valid(), proptest::collection::vec(damage, 1..3), any::<proptest::sample::Index>(), any::<bool>()).prop_map(
        |((method, mut bytes), damages, cut, cuts)| {
            for (at, removed, added) in damages {
                let at = at.index(bytes.len() + 1);
                let end = (at + removed).min(bytes.len());
                bytes.splice(at..end, added);
            }
            if cuts {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            (method, bytes)
        },
    )
}

/// Cuts `bytes` up at these places.
fn split<'a>(bytes: &'a [u8], cuts: &[proptest::sample::Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places.windows(2).map(|two| &bytes[two[0]..two[1]]).filter(|piece| !piece.is_empty()).collect()
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn a_valid_answer_is_understood_as_hyper_does((method, bytes) in valid(), cuts in any::<[proptest::sample::Index; 4]>()) {
        let pieces = split(&bytes, &cuts);
        let understood = ours(&method, &pieces);
        prop_assert!(understood.is_some(), "{:?}", String::from_utf8_lossy(&bytes));
        prop_assert_eq!(understood, block_on(hypers(&method, &pieces)), "{:?}", String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn a_damaged_answer_is_refused_or_understood_as_hyper_does((method, bytes) in damaged(), cuts in any::<[proptest::sample::Index; 4]>()) {
        let pieces = split(&bytes, &cuts);
        if let Some(understood) = ours(&method, &pieces) {
            prop_assert_eq!(Some(understood), block_on(hypers(&method, &pieces)), "{:?}", String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn the_pieces_an_answer_comes_in_change_nothing((method, bytes) in damaged(), cuts in any::<[proptest::sample::Index; 6]>()) {
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(ours(&method, &split(&bytes, &cuts)), ours(&method, &single));
    }
}
