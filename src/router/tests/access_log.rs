//! The line a request leaves in the journal.

use std::sync::Mutex;

use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::{Layer, Registry};

use super::*;
use crate::config::AccessLog;

/// Collects what is said of requests.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<String>>>);

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl<S: tracing::Subscriber> Layer<S> for Said {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target().ends_with("access_log") {
            let mut message = Message(String::new());
            event.record(&mut message);
            self.0.lock().unwrap().push(message.0);
        }
    }
}

/// What is said of three requests: one that is answered, one that the service fails at, one for an unknown host.
fn said(wanted: AccessLog) -> Vec<String> {
    let parts = Request::get("/a/b?token=secret").body(()).unwrap().into_parts().0;
    let said = Said::default();
    tracing::subscriber::with_default(Registry::default().with(said.clone()), || {
        let metrics = crate::router::metrics::Metrics::default();
        for (host, status) in [(HOST, 200), (HOST, 502), ("-", 404)] {
            let line = crate::router::access_log::Line::of(wanted, &parts, host, "192.0.2.7".parse().unwrap());
            let status = http::StatusCode::from_u16(status).unwrap();
            let mut tally = metrics.series(None, 1).tally(0, std::time::Instant::now(), status, line);
            tally.sent(1204);
        }
    });
    let said = said.0.lock().unwrap();
    said.iter().map(|line| line.split(" in ").next().unwrap().to_owned()).collect()
}

#[test]
fn a_request_leaves_a_line_without_its_query_if_the_operator_wants_one() {
    assert_eq!(said(AccessLog::Off), Vec::<String>::new());
    assert_eq!(said(AccessLog::Errors), [format!("GET {HOST}/a/b 502, 1204 bytes")]);
    let all = [format!("GET {HOST}/a/b 200, 1204 bytes"), format!("GET {HOST}/a/b 502, 1204 bytes")];
    assert_eq!(said(AccessLog::All)[..2], all);
    assert_eq!(said(AccessLog::All)[2], "GET -/a/b 404, 1204 bytes");
}
