//! The body of an answer: bytes of the connection turned into pieces, by length, in chunks, or until it is closed.

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::Malformed;

/// The most bytes of the line that begins a chunk; extensions are ignored.
const MAX_LINE: usize = 4096;
/// The most bytes, and the most fields, after the last chunk.
const MAX_TRAILERS: usize = 16 * 1024;
const MAX_TRAILER_FIELDS: usize = 64;

/// Part of a body.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::router) enum Piece {
    /// Some of its bytes, never none.
    Data(Bytes),
    /// The fields after its last chunk.
    Trailers(HeaderMap),
    /// It is over.
    End,
}

/// Reads one body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::router) struct Decoder(State);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes are left.
    Length(u64),
    UntilClose,
    /// The line that begins a chunk comes next.
    Size,
    /// So many bytes of a chunk are left.
    Chunk(u64),
    /// The line break after a chunk comes next.
    ChunkEnd,
    /// The fields after the last chunk come next.
    Trailers,
    Over,
}

impl Decoder {
    /// There is no body.
    pub(super) fn nothing() -> Self {
        Self(State::Over)
    }

    /// The body is so long.
    pub(super) fn length(length: u64) -> Self {
        Self(if length == 0 { State::Over } else { State::Length(length) })
    }

    /// The body comes in chunks.
    pub(super) fn chunked() -> Self {
        Self(State::Size)
    }

    /// The body is all there is until the connection is closed.
    pub(super) fn until_close() -> Self {
        Self(State::UntilClose)
    }

    /// Whether the body is over.
    pub(in crate::router) fn is_over(&self) -> bool {
        self.0 == State::Over
    }

    /// Whether only the end of the connection ends the body.
    pub(super) fn ends_with_connection(&self) -> bool {
        self.0 == State::UntilClose
    }

    /// How many bytes are still to come, if that is known.
    pub(in crate::router) fn remaining(&self) -> Option<u64> {
        match self.0 {
            State::Length(left) => Some(left),
            State::Over => Some(0),
            _ => None,
        }
    }

    /// Takes the next piece from the front of `buffer`; `None` when more has to be read first.
    ///
    /// # Errors
    /// When what is there cannot be part of a body.
    pub(in crate::router) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Piece>, Malformed> {
        loop {
            match self.0 {
                State::Over => return Ok(Some(Piece::End)),
                _ if buffer.is_empty() => return Ok(None),
                State::UntilClose => return Ok(Some(Piece::Data(buffer.split().freeze()))),
                State::Length(left) => {
                    let data = part(buffer, left);
                    let left = left - data.len() as u64;
                    self.0 = if left == 0 { State::Over } else { State::Length(left) };
                    return Ok(Some(Piece::Data(data)));
                }
                State::Size => {
                    let Some(line) = line(buffer, MAX_LINE)? else { return Ok(None) };
                    self.0 = match size(&line)? {
                        0 => State::Trailers,
                        size => State::Chunk(size),
                    };
                }
                State::Chunk(left) => {
                    let data = part(buffer, left);
                    let left = left - data.len() as u64;
                    self.0 = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
                    return Ok(Some(Piece::Data(data)));
                }
                State::ChunkEnd => {
                    if !b"\r\n".starts_with(&buffer[..buffer.len().min(2)]) {
                        return Err(Malformed("a chunk that is longer than it says"));
                    }
                    if buffer.len() < 2 {
                        return Ok(None);
                    }
                    buffer.advance(2);
                    self.0 = State::Size;
                }
                State::Trailers => {
                    let Some(trailers) = trailers(buffer)? else { return Ok(None) };
                    self.0 = State::Over;
                    if !trailers.is_empty() {
                        return Ok(Some(Piece::Trailers(trailers)));
                    }
                }
            }
        }
    }

    /// Takes note that the connection has been closed; all it brought has been taken.
    ///
    /// # Errors
    /// When the body is not over.
    pub(in crate::router) fn close(&mut self) -> Result<(), Malformed> {
        if !matches!(self.0, State::UntilClose | State::Over) {
            return Err(Malformed("the body broke off"));
        }
        self.0 = State::Over;
        Ok(())
    }
}

fn part(buffer: &mut BytesMut, most: u64) -> Bytes {
    let length = usize::try_from(most).map_or(buffer.len(), |most| most.min(buffer.len()));
    buffer.split_to(length).freeze()
}

/// Takes a line, without its end; `None` until there is one.
fn line(buffer: &mut BytesMut, most: usize) -> Result<Option<BytesMut>, Malformed> {
    let Some(end) = buffer.iter().take(most).position(|byte| *byte == b'\n') else {
        return if buffer.len() < most { Ok(None) } else { Err(Malformed("a line that is too long")) };
    };
    let line = buffer.split_to(end + 1);
    let Some(text) = line.strip_suffix(b"\r\n") else { return Err(Malformed("a line break without CR")) };
    let length = text.len();
    let mut line = line;
    line.truncate(length);
    Ok(Some(line))
}

/// The size a chunk begins with: hexadecimal digits, then nothing or an extension.
fn size(line: &[u8]) -> Result<u64, Malformed> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, rest) = line.split_at(digits);
    let ends_well = matches!(rest.trim_ascii_start().first(), None | Some(b';'));
    let clean = rest.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f));
    if digits.is_empty() || digits.len() > 15 || !ends_well || !clean {
        return Err(Malformed("a chunk without size"));
    }
    let text = std::str::from_utf8(digits).expect("digits are ASCII");
    Ok(u64::from_str_radix(text, 16).expect("at most 15 hexadecimal digits"))
}

/// Takes the fields after the last chunk, and the empty line; `None` until they are all there.
fn trailers(buffer: &mut BytesMut) -> Result<Option<HeaderMap>, Malformed> {
    const BAD: Malformed = Malformed("the trailers are not valid");
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
    let (length, fields) = match httparse::parse_headers(buffer, &mut fields) {
        Ok(httparse::Status::Complete(parsed)) => parsed,
        Ok(httparse::Status::Partial) if buffer.len() < MAX_TRAILERS => return Ok(None),
        _ => return Err(BAD),
    };
    // A line feed alone ends a line for some readers and not for others (RFC 9112, section 2.2).
    if (0..length).any(|at| buffer[at] == b'\n' && (at == 0 || buffer[at - 1] != b'\r')) {
        return Err(BAD);
    }
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| BAD)?;
        trailers.append(name, HeaderValue::from_bytes(field.value).map_err(|_| BAD)?);
    }
    buffer.advance(length);
    Ok(Some(trailers))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body that `bytes` are, if they are one and the connection is closed after them.
    fn chunked(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
        let (mut decoder, mut buffer, mut body) = (Decoder::chunked(), BytesMut::from(bytes), Vec::new());
        loop {
            match decoder.next(&mut buffer)? {
                Some(Piece::Data(data)) => body.extend_from_slice(&data),
                Some(Piece::Trailers(_)) => {}
                Some(Piece::End) => return Ok(body),
                None => decoder.close()?,
            }
        }
    }

    #[test]
    fn trailers_end_by_whole_line_ends() {
        assert!(chunked(b"0\r\nx-sum: 1\r\n\r\n").is_ok());
        for cut in [&b"0\r\nx-sum: 1\n\r\n"[..], b"0\r\nx-sum: 1\r\n\n\r\n", b"0\r\n\n"] {
            assert!(chunked(cut).is_err(), "{:?}", String::from_utf8_lossy(cut));
        }
    }

    #[test]
    fn chunks_add_up() {
        for text in ["3\r\nabc\r\n0\r\n\r\n", "01;x=y\r\na\r\n2 \r\nbc\r\n0\r\nA: b\r\n\r\n"] {
            assert_eq!(chunked(text.as_bytes()).as_deref(), Ok(&b"abc"[..]), "{text}");
        }
    }

    #[test]
    fn what_could_be_read_as_other_chunks_is_refused() {
        for text in [
            "3\r\nabcXX0\r\n\r\n",
            "3\r\nabc\n\n0\r\n\r\n",
            "3\r\nabcd\r\n0\r\n\r\n",
            "3\nabc\r\n0\r\n\r\n",
            "+3\r\nabc\r\n0\r\n\r\n",
            "0x3\r\nabc\r\n0\r\n\r\n",
            "-3\r\nabc\r\n0\r\n\r\n",
            "\r\n3\r\nabc\r\n0\r\n\r\n",
            "3 4\r\nabc\r\n0\r\n\r\n",
            "3;\0\r\nabc\r\n0\r\n\r\n",
            "10000000000000003\r\nabc\r\n0\r\n\r\n",
            "3\r\nabc\r\n0\r\nA : b\r\n\r\n",
            "3\r\nabc\r\n0\r\n",
            "3\r\nabc\r\n",
            "3\r\nab",
        ] {
            assert!(chunked(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
