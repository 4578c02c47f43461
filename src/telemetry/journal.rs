//! Sends records to systemd's journal by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL), with fields under
//! the names the contract gives them.
//!
//! `tracing-journald` names a field after its whole path; `project.name` is `KENNEL_PROJECT` here, not
//! `KENNEL_PROJECT_NAME`.
//!
//! **Invariant:** a record that cannot be sent is dropped; the daemon does not wait for its log.

use std::fmt::{Debug, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

const SOCKET: &str = "/run/systemd/journal/socket";

/// The most bytes kept of one value, so that a record fits a datagram (`net.core.wmem_default` is 208 KiB).
const VALUE_MAX: usize = 16 * 1024;
/// The most bytes of one record.
const RECORD_MAX: usize = 128 * 1024;

/// A layer that writes to the journal.
pub(super) struct Journal {
    socket: UnixDatagram,
}

/// A span's fields, encoded.
struct SpanFields(Vec<u8>);

/// Encodes fields one after the other.
struct Encoder<'b> {
    into: &'b mut Vec<u8>,
    message: String,
}

impl Journal {
    /// Connects to this machine's journal.
    pub(super) fn connect() -> io::Result<Self> {
        Self::connect_to(Path::new(SOCKET))
    }

    fn connect_to(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }
}

impl<S: Subscriber + for<'s> LookupSpan<'s>> Layer<S> for Journal {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(id) else { return };
        let mut fields = Vec::new();
        attributes.record(&mut Encoder::new(&mut fields));
        span.extensions_mut().insert(SpanFields(fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(id) else { return };
        if let Some(SpanFields(fields)) = span.extensions_mut().get_mut() {
            values.record(&mut Encoder::new(fields));
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let metadata = event.metadata();
        let mut record = Vec::with_capacity(512);
        put(&mut record, "SYSLOG_IDENTIFIER", "kennel");
        put(&mut record, "PRIORITY", priority(*metadata.level()));
        put(&mut record, "KENNEL_MODULE", metadata.target());
        for span in ctx.event_scope(event).into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
            if let Some(SpanFields(fields)) = span.extensions().get() {
                record.extend_from_slice(fields);
            }
        }
        let mut encoder = Encoder::new(&mut record);
        event.record(&mut encoder);
        let message = encoder.message;
        // The message comes first, so that it is whole even when there are too many fields.
        let mut whole = Vec::with_capacity(record.len() + message.len() + 16);
        put(&mut whole, "MESSAGE", &message);
        whole.extend_from_slice(&record);
        if whole.len() > RECORD_MAX {
            whole.clear();
            put(&mut whole, "MESSAGE", &message);
            put(&mut whole, "SYSLOG_IDENTIFIER", "kennel");
            put(&mut whole, "PRIORITY", priority(*metadata.level()));
        }
        let _ = self.socket.send(&whole);
    }
}

impl<'b> Encoder<'b> {
    fn new(into: &'b mut Vec<u8>) -> Self {
        Self { into, message: String::new() }
    }
}

impl Visit for Encoder<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            put(self.into, &journal_name(field.name()), value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        self.record_str(field, &text);
    }
}

/// `project.name` is `KENNEL_PROJECT`, `deployment.id` is `KENNEL_DEPLOYMENT`, `duration_ms` is `KENNEL_DURATION_MS`.
fn journal_name(name: &str) -> String {
    let thing = name.strip_suffix(".name").or_else(|| name.strip_suffix(".id")).unwrap_or(name);
    let mut journal_name = String::from("KENNEL_");
    journal_name.extend(thing.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }));
    // The journal refuses names that are longer.
    journal_name.truncate(64);
    journal_name
}

/// One field, with its length before it, so that a value may hold line breaks.
fn put(record: &mut Vec<u8>, name: &str, value: &str) {
    let mut end = value.len().min(VALUE_MAX);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    let value = &value.as_bytes()[..end];
    record.extend_from_slice(name.as_bytes());
    record.push(b'\n');
    record.extend_from_slice(&(value.len() as u64).to_le_bytes());
    record.extend_from_slice(value);
    record.push(b'\n');
}

/// Syslog's numbers: err, warning, info, debug.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[rstest]
    #[case("project.name", "KENNEL_PROJECT")]
    #[case("branch.name", "KENNEL_BRANCH")]
    #[case("build.id", "KENNEL_BUILD")]
    #[case("deployment.step", "KENNEL_DEPLOYMENT_STEP")]
    #[case("duration_ms", "KENNEL_DURATION_MS")]
    #[case("error", "KENNEL_ERROR")]
    fn a_field_bears_its_things_name(#[case] field: &str, #[case] name: &str) {
        assert_eq!(journal_name(field), name);
    }

    /// Takes a record apart as the journal does.
    fn fields(mut record: &[u8]) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        while let Some(at) = record.iter().position(|b| *b == b'\n') {
            let name = String::from_utf8(record[..at].to_vec()).unwrap();
            let (length, rest) = record[at + 1..].split_at(8);
            let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
            fields.insert(name, String::from_utf8(rest[..length].to_vec()).unwrap());
            assert_eq!(rest[length], b'\n');
            record = &rest[length + 1..];
        }
        assert!(record.is_empty());
        fields
    }

    #[test]
    fn a_record_carries_its_own_fields_and_those_of_its_spans() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        let subscriber = tracing_subscriber::registry().with(Journal::connect_to(&path).unwrap());
        tracing::subscriber::with_default(subscriber, || {
            let span =
                tracing::info_span!("build", project.name = "hello", build.id = 17, outcome = tracing::field::Empty);
            let _inside = span.enter();
            span.record("outcome", "two\nlines");
            tracing::warn!(duration_ms = 5, log = %"x".repeat(100_000), "Built {}", "hello");
        });
        let mut buffer = vec![0; 1 << 20];
        let length = journal.recv(&mut buffer).unwrap();
        let mut fields = fields(&buffer[..length]);
        assert_eq!(fields.remove("KENNEL_LOG").map(|log| log.len()), Some(VALUE_MAX));
        let expected = [
            ("KENNEL_BUILD", "17"),
            ("KENNEL_DURATION_MS", "5"),
            ("KENNEL_MODULE", "kennel::telemetry::journal::tests"),
            ("KENNEL_OUTCOME", "two\nlines"),
            ("KENNEL_PROJECT", "hello"),
            ("MESSAGE", "Built hello"),
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "kennel"),
        ];
        assert_eq!(fields, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }
}
