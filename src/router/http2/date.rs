//! What the time is, as an answer's `Date` says it (RFC 9110, section 6.6.1).

use std::cell::RefCell;

use http::HeaderValue;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;

/// This second.
pub(super) fn now() -> HeaderValue {
    thread_local! {
        /// It is written out once in a second by each of the router's threads, not for each answer.
        static LAST: RefCell<Option<(i64, HeaderValue)>> = const { RefCell::new(None) };
    }
    let now = Timestamp::now();
    LAST.with_borrow_mut(|last| match last {
        Some((second, value)) if *second == now.as_second() => value.clone(),
        _ => last.insert((now.as_second(), write(now))).1.clone(),
    })
}

fn write(time: Timestamp) -> HeaderValue {
    let text = DateTimePrinter::new().timestamp_to_rfc9110_string(&time).expect("this year has four digits");
    HeaderValue::try_from(text).expect("a date is ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 9110, section 5.6.7.
    #[test]
    fn a_date_is_written_in_the_form_that_everybody_reads() {
        assert_eq!(write(Timestamp::from_second(784_111_777).unwrap()), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
