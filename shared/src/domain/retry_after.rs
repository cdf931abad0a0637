use std::time::Duration;

use jiff::{civil::DateTime, fmt::rfc2822, tz::TimeZone};

use super::Timestamp;

const MAX_WAIT: Duration = Duration::from_hours(24);

/// Parses the header `Retry-After`: seconds or an HTTP date (RFC 9110). Returns the time to wait,
/// at most 24 hours; zero for a date in the past; `None` for any other text.
pub fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that does not fit is more than a day.
        return Some(text.parse().map_or(MAX_WAIT, Duration::from_secs).min(MAX_WAIT));
    }
    // The parser also accepts other mail dates, none of which is ambiguous.
    let until = rfc2822::DateTimeParser::new().parse_timestamp(text).ok().or_else(|| obsolete_date(text))?;
    Some(Timestamp::from(until).since(now).min(MAX_WAIT))
}

/// Parses the two obsolete forms of an HTTP date: those of RFC 850 and of `asctime`.
fn obsolete_date(text: &str) -> Option<jiff::Timestamp> {
    let forms = ["%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
    let date = forms.iter().find_map(|form| DateTime::strptime(form, text).ok())?;
    date.to_zoned(TimeZone::UTC).ok().map(|date| date.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_parsed_and_capped() {
        let now: Timestamp = "1994-11-06T08:49:07Z".parse().unwrap();
        for (text, seconds) in [
            ("0", Some(0)),
            ("120", Some(120)),
            (" 120 ", Some(120)),
            ("86400", Some(86_400)),
            ("86401", Some(86_400)),
            ("99999999999999999999999999", Some(86_400)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:49:07 GMT", Some(0)),
            ("Sat, 05 Nov 1994 08:49:07 GMT", Some(0)),
            ("Thu, 31 Dec 9998 23:59:59 GMT", Some(86_400)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(30)),
            ("Sun Nov  6 08:49:37 1994", Some(30)),
            ("Mon Nov  6 08:49:37 1994", None),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("soon", None),
            ("1994-11-06T08:49:37Z", None),
            ("Sun, 06 Nov 1994 08:49:37", None),
            ("Mon, 06 Nov 1994 08:49:37 GMT", None),
        ] {
            assert_eq!(retry_after(text, now).map(|wait| wait.as_secs()), seconds, "{text}");
        }
    }
}
