//! Whom a connection is from when a proxy in front opens it: the PROXY protocol, version 2.
//!
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>. As it demands, nothing is guessed: where the operator
//! says that his proxies speak it, their connections begin with its header or are closed.

use std::io;
use std::net::SocketAddr;

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The part of a header that is always there, with the length of the rest in its last two bytes.
const FIXED: usize = 16;
/// The most of the rest that is read: addresses take up to 216 bytes, and a proxy may add what it knows of TLS.
const REST_MAX: usize = 2048;

/// Reads the header at the beginning of `stream`, and no byte more. `None` when the proxy speaks for itself, as when it
/// looks whether kennel is there.
///
/// # Errors
/// When the stream does not begin with such a header.
pub(super) async fn source<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<SocketAddr>> {
    let malformed = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut header = vec![0; FIXED];
    stream.read_exact(&mut header).await?;
    let rest = usize::from(u16::from_be_bytes([header[FIXED - 2], header[FIXED - 1]]));
    if rest > REST_MAX {
        return Err(malformed(format!("its header has {rest} bytes")));
    }
    let wanted = ParseConfig { include_tlvs: false, allow_v1: false, allow_v2: true };
    header.resize(FIXED + rest, 0);
    // What is no header may ask for more than will ever come.
    if let Err(proxy_header::Error::Invalid) = ProxyHeader::parse(&header[..FIXED], wanted) {
        return Err(malformed("it is not a header".to_owned()));
    }
    stream.read_exact(&mut header[FIXED..]).await?;
    let (header, _) = ProxyHeader::parse(&header, wanted).map_err(|err| malformed(err.to_string()))?;
    Ok(header.proxied_address().map(|address| address.source))
}

#[cfg(test)]
mod tests {
    use proxy_header::ProxiedAddress;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    fn header(source: &str, destination: &str) -> Vec<u8> {
        let address = ProxiedAddress::stream(source.parse().unwrap(), destination.parse().unwrap());
        let mut bytes = [0; 1024];
        let length = ProxyHeader::with_address(address).encode_to_slice_v2(&mut bytes).unwrap();
        bytes[..length].to_vec()
    }

    #[tokio::test]
    async fn a_header_names_the_visitor_and_leaves_what_follows() {
        for visitor in ["192.0.2.7:4711", "[2001:db8::7]:4711"] {
            let destination = if visitor.starts_with('[') { "[2001:db8::1]:443" } else { "198.51.100.1:443" };
            let mut bytes = header(visitor, destination);
            bytes.extend_from_slice(b"GET /");
            let mut stream = &bytes[..];
            assert_eq!(source(&mut stream).await.unwrap(), Some(visitor.parse().unwrap()));
            assert_eq!(stream, b"GET /");
        }
    }

    #[tokio::test]
    async fn a_proxy_may_speak_for_itself() {
        let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
        assert_eq!(source(&mut &local[..]).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_no_header_of_version_2_is_refused_without_waiting_for_more() {
        for wrong in [
            &b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"[..],
            b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x31\x11\x00\x0c",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaaaaaa",
        ] {
            // The other end stays open: whoever waits for more waits for ever.
            let (mut near, mut far) = tokio::io::duplex(4096);
            far.write_all(wrong).await.unwrap();
            assert_eq!(source(&mut near).await.unwrap_err().kind(), io::ErrorKind::InvalidData, "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn a_header_that_breaks_off_is_refused() {
        let whole = header("192.0.2.7:4711", "198.51.100.1:443");
        for length in 0..whole.len() {
            assert!(source(&mut &whole[..length]).await.is_err(), "{length}");
        }
    }
}
