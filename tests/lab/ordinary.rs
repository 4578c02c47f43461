//! Real software under kennel's unit: Radicale, a calendar server that nobody here wrote, just as PyPI has it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use http::{Method, Request, header};

use crate::harness::http::{Answer, request, send};
use crate::harness::{App, Lab, ROUTER, Service, machine, until};

/// Where the lab puts it.
const RADICALE: &str = "/lab/ordinary";

const START: &str = "#!/bin/sh
here=$(dirname \"$(readlink -f \"$0\")\")
export PYTHONPATH=\"$here/../lib\" PYTHONDONTWRITEBYTECODE=1
exec /usr/bin/python3 -m radicale --server-hosts \"$HOST:$PORT\" --auth-type none \\
  --storage-filesystem-folder \"$KENNEL_DATA_DIR/collections\" --logging-level \"$LOG_LEVEL\"
";

const EVENT: &str = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//lab//EN\r\nBEGIN:VEVENT\r\nUID:walk-1\r\n\
    DTSTAMP:20260101T000000Z\r\nDTSTART:20260102T080000Z\r\nDTEND:20260102T090000Z\r\nSUMMARY:Walk the dog\r\n\
    END:VEVENT\r\nEND:VCALENDAR\r\n";

/// The repository of somebody who runs Radicale: its files, how to start it, and a kennel.toml.
fn radicale(log_level: &str) -> App {
    let service = Service::new("calendar", "")
        .settings(&["drain_secs = 1", "health_check = \"/.web/\""])
        .env("LOG_LEVEL", log_level);
    let mut app = App::default().with(service).program("calendar/bin/calendar", START);
    let mut todo = vec![Path::new(RADICALE).to_owned()];
    while let Some(dir) = todo.pop() {
        let entries = fs::read_dir(&dir).expect("the lab brings Radicale: run these tests with `tests/lab/lab test`");
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                todo.push(path);
            } else {
                let name = path.strip_prefix(RADICALE).unwrap().display().to_string();
                app = app.file(&format!("calendar/lib/{name}"), fs::read(&path).unwrap());
            }
        }
    }
    app
}

/// Asks as Ada, whom Radicale believes without a password.
async fn as_ada(method: &str, host: &str, path: &str, body: &'static str) -> Answer {
    let request = request(Method::from_bytes(method.as_bytes()).unwrap(), host, path, body);
    let (mut parts, body) = request.into_parts();
    parts.headers.insert(header::AUTHORIZATION, "Basic YWRhOng=".parse().unwrap());
    parts.headers.insert("depth", "1".parse().unwrap());
    send(ROUTER, Request::from_parts(parts, body)).await.unwrap_or_else(|err| panic!("{method} {path}: {err}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_calendar_server_from_pypi_is_deployed_used_and_redeployed() {
    let lab = Lab::hello().await;
    let first = lab.deploy("hello", "main", &radicale("info")).await.remove("calendar").unwrap();
    let host = first.host.clone();
    let page = lab.visit(&host, "/.web/").await.expect(200);
    assert!(page.text().contains("Radicale"), "{}", page.text());

    as_ada("MKCALENDAR", &host, "/ada/dogs/", "").await.expect(201);
    as_ada("PUT", &host, "/ada/dogs/walk.ics", EVENT).await.expect(201);
    assert!(as_ada("GET", &host, "/ada/dogs/walk.ics", "").await.expect(200).text().contains("Walk the dog"));
    let found = as_ada("PROPFIND", &host, "/ada/dogs/", "").await.expect(207).text();
    assert!(found.contains("/ada/dogs/walk.ics"), "{found}");
    let redirect = lab.visit(&host, "/").await.expect(302);
    assert!(redirect.header("location").contains(".web"), "a redirect reaches the visitor: {:?}", redirect.headers);

    let second = lab.deploy("hello", "main", &radicale("debug")).await.remove("calendar").unwrap();

    assert_ne!(second.id, first.id);
    let kept = as_ada("GET", &host, "/ada/dogs/walk.ics", "").await.expect(200).text();
    assert!(kept.contains("Walk the dog"), "{kept}");
    lab.becomes(first.id, "retired").await;
    as_ada("DELETE", &host, "/ada/dogs/walk.ics", "").await.expect(200);
    as_ada("GET", &host, "/ada/dogs/walk.ics", "").await.expect(404);
    until("its log is in the journal", Duration::from_secs(5), async || {
        let log = machine::ok("journalctl", &["--output=cat", "-t", &second.journal_tag]).await;
        log.contains("PUT request").then_some(())
    })
    .await;
    lab.finish().await;
}
