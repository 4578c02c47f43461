//! The part of `kennel status` that shows certificates: until when, when the next comes, and what keeps it from coming.

use jiff::Timestamp;

use super::screen::{Column, Mood, Row, Screen, clean, span};
use crate::api::wire::CertificateInfo;

/// Shows them, if there are any.
pub(super) fn show(certificates: &[CertificateInfo], screen: &mut Screen<'_>) -> std::io::Result<()> {
    if certificates.is_empty() {
        return Ok(());
    }
    let heading = [Column::whole("CERTIFICATE"), Column::mood("UNTIL"), Column::text("NEXT")];
    let rows: Vec<Row> = certificates.iter().map(|certificate| row(certificate, screen.now)).collect();
    screen.line("")?;
    screen.table(&heading, &rows)?;
    for certificate in certificates {
        if let Some(problem) = &certificate.problem {
            let title = screen.paint(Mood::Bad, &format!("No new certificate for {}", certificate.name));
            screen.line("")?;
            screen.line(&title)?;
            screen.line(&format!("    {}", clean(problem)))?;
        }
    }
    Ok(())
}

fn row(certificate: &CertificateInfo, now: i64) -> Row {
    let CertificateInfo { name, expires_at, next_at, problem } = certificate;
    let (mood, until) = match expires_at {
        None => (Mood::Bad, "none yet".to_owned()),
        Some(at) if *at <= now => (Mood::Bad, format!("{}, over", day(*at))),
        Some(at) => (if problem.is_some() { Mood::Busy } else { Mood::Good }, day(*at)),
    };
    let next = match next_at {
        None => "never: there is no [acme]".to_owned(),
        Some(at) if *at <= now => "now".to_owned(),
        Some(at) => format!("in {}", span(at - now)),
    };
    Row { mood, cells: vec![name.to_string(), until, next] }
}

fn day(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map_or_else(|_| "some time".to_owned(), |at| at.strftime("%F").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_shown_with_its_end_and_its_next_and_what_is_wrong() {
        let certificate = |name: &str, expires_at, next_at, problem: Option<&str>| CertificateInfo {
            name: name.parse().unwrap(),
            expires_at,
            next_at,
            problem: problem.map(str::to_owned),
        };
        let day = 86_400_000;
        let all = [
            certificate("*.shop.example.com", Some(90 * day), Some(60 * day), None),
            certificate("shop.example.org", None, Some(day + 300_000), Some("it says \u{1b}[1mno")),
            certificate("old.example.org", Some(day), Some(0), None),
        ];
        let (mut out, mut talk) = (Vec::new(), Vec::new());
        show(&all, &mut Screen::plain(&mut out, &mut talk, day)).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap(), @r"

        CERTIFICATE         UNTIL             NEXT
        *.shop.example.com  1970-04-01        in 59d
        shop.example.org    none yet          in 5m
        old.example.org     1970-01-02, over  now

        No new certificate for shop.example.org
            it says �[1mno
        ");
    }
}
