use std::time::Duration;

use jiff::fmt::rfc2822;

use super::Timestamp;

const MOST: Duration = Duration::from_hours(24);

/// How long the header `Retry-After` asks to wait: seconds, or an HTTP date (RFC 9110), at most a day. A date that has passed asks for no wait;
/// `None` for anything else.
pub fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // What does not fit is more than a day.
        return Some(text.parse().map_or(MOST, Duration::from_secs).min(MOST));
    }
    // The one form that is still sent ends in GMT; the parser takes other mail dates besides, none of which is ambiguous.
    let until = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(Timestamp::from(until).since(now).min(MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read_and_bounded() {
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
