use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize, Serializer};

use super::{Invalid, Month};

const NOT_RFC_3339: Invalid =
    Invalid::new("must be an RFC 3339 date and time before 9999-12-30T22:00:00Z, such as 2027-01-31T12:00:00Z");

const NO_LEAP_SECOND: Invalid =
    Invalid::new("must have seconds from 00 to 59: a leap second is 23:59:60 UTC on the last day of a month");

/// An instant in UTC to the millisecond. Parses any RFC 3339 precision and offset and truncates
/// finer digits. Prints `2026-11-21T23:07:56.123Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// Returns `None` outside the years −9999 to 9999.
    pub fn from_millis(millis: i64) -> Option<Self> {
        jiff::Timestamp::from_millisecond(millis).ok().map(Self)
    }

    /// Milliseconds since 1970.
    pub fn as_millis(self) -> i64 {
        self.0.as_millisecond()
    }

    /// Returns whole seconds since 1970, rounded down.
    pub fn as_seconds(self) -> i64 {
        self.as_millis().div_euclid(1000)
    }

    /// Returns the UTC month.
    pub fn month(self) -> Month {
        let date = jiff::tz::Offset::UTC.to_datetime(self.0);
        Month::new(date.year().unsigned_abs(), date.month().unsigned_abs())
    }

    /// Returns the day of the UTC month, 1 to 31.
    pub fn day(self) -> u8 {
        jiff::tz::Offset::UTC.to_datetime(self.0).day().unsigned_abs()
    }

    /// Saturates.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by).unwrap_or(jiff::Timestamp::MAX))
    }

    /// Saturates.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by).unwrap_or(jiff::Timestamp::MIN))
    }

    /// Returns zero if `earlier` is in the future.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::try_from(self.0.duration_since(earlier.0)).unwrap_or(Duration::ZERO)
    }
}

impl From<jiff::Timestamp> for Timestamp {
    fn from(instant: jiff::Timestamp) -> Self {
        Self::from_millis(instant.as_millisecond()).unwrap_or(Self(instant))
    }
}

impl FromStr for Timestamp {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Some(millis) = printed_millis(text.as_bytes()) {
            return Self::from_millis(millis).ok_or(NOT_RFC_3339);
        }
        if !is_rfc_3339(text.as_bytes()) {
            return Err(NOT_RFC_3339);
        }
        let instant: jiff::Timestamp = truncate_to_nanoseconds(text).parse().map_err(|_| NOT_RFC_3339)?;
        if &text.as_bytes()[17..19] == b"60" && !is_last_second_of_a_month(instant) {
            return Err(NO_LEAP_SECOND);
        }
        Self::from_millis(instant.as_nanosecond().div_euclid(1_000_000).try_into().map_err(|_| NOT_RFC_3339)?)
            .ok_or(NOT_RFC_3339)
    }
}

/// Allows a leap second only at the end of a month (RFC 3339 §5.7). The parser reads `:60` as `:59`
/// of any minute.
fn is_last_second_of_a_month(instant: jiff::Timestamp) -> bool {
    let time = jiff::tz::Offset::UTC.to_datetime(instant);
    (time.hour(), time.minute(), time.second()) == (23, 59, 59) && time.day() == time.days_in_month()
}

/// Checks the shape `YYYY-MM-DDThh:mm:ss[.f…](Z|±hh:mm)`, because the parser accepts more than RFC
/// 3339.
fn is_rfc_3339(text: &[u8]) -> bool {
    let matches = |text: &[u8], shape: &[u8]| {
        text.len() == shape.len()
            && text.iter().zip(shape).all(|(byte, want)| match want {
                b'0' => byte.is_ascii_digit(),
                b'T' => matches!(byte, b'T' | b't' | b' '),
                b'+' => matches!(byte, b'+' | b'-'),
                other => byte == other,
            })
    };
    let Some((head, mut tail)) = text.split_at_checked(19) else {
        return false;
    };
    if let [b'.', fraction @ ..] = tail {
        let digits = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 {
            return false;
        }
        tail = &fraction[digits..];
    }
    let offset = matches(tail, b"+00:00") && tail[1..3] < b"24"[..] && tail[4..6] < b"60"[..];
    matches(head, b"0000-00-00T00:00:00") && (matches!(tail, b"Z" | b"z") || offset)
}

/// Truncates an RFC 3339 fraction to the nine digits that the parser accepts.
fn truncate_to_nanoseconds(text: &str) -> Cow<'_, str> {
    let digits = text.bytes().skip(20).take_while(u8::is_ascii_digit).count();
    if digits > 9 { Cow::Owned(format!("{}{}", &text[..29], &text[20 + digits..])) } else { Cow::Borrowed(text) }
}

impl TryFrom<String> for Timestamp {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(instant: Timestamp) -> Self {
        instant.to_string()
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match printed(self.as_millis()).as_ref().map(|text| str::from_utf8(text)) {
            Some(Ok(text)) => serializer.serialize_str(text),
            _ => serializer.collect_str(self),
        }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match printed(self.as_millis()).as_ref().map(|text| str::from_utf8(text)) {
            Some(Ok(text)) => f.write_str(text),
            _ => write!(f, "{:.3}", self.0),
        }
    }
}

const SECOND: i64 = 1_000;
const DAY: i64 = 86_400 * SECOND;
/// Days from 0000-03-01 to 1970-01-01. A year that starts in March ends with the leap day.
const EPOCH: i64 = 719_468;

/// Prints an instant of the years 0 to 9999, faster than the general printer.
fn printed(millis: i64) -> Option<[u8; 24]> {
    let (year, month, day) = date(millis.div_euclid(DAY));
    if !(0..=9_999).contains(&year) {
        return None;
    }
    let time = millis.rem_euclid(DAY);
    let (hour, minute) = (time / (3_600 * SECOND), time / (60 * SECOND) % 60);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let seconds = time / SECOND % 60;
    for (mut number, digits) in [
        (year, 0..4),
        (month, 5..7),
        (day, 8..10),
        (hour, 11..13),
        (minute, 14..16),
        (seconds, 17..19),
        (time % SECOND, 20..23),
    ] {
        for digit in text[digits].iter_mut().rev() {
            *digit += u8::try_from(number % 10).unwrap_or_default();
            number /= 10;
        }
    }
    Some(text)
}

/// Parses the printed form; any other text is left to the general parser.
fn printed_millis(text: &[u8]) -> Option<i64> {
    let is_printed = text.len() == 24 && text[19] == b'.' && text[23] == b'Z' && text[10] == b'T';
    if !is_printed || [text[4], text[7], text[13], text[16]] != *b"--::" {
        return None;
    }
    let number = |digits: std::ops::Range<usize>| {
        let digits = text[digits].iter();
        digits.copied().try_fold(0, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + i64::from(digit - b'0')))
    };
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let days = days(year, month, day);
    if hour > 23 || minute > 59 || second > 59 || date(days) != (year, month, day) {
        return None;
    }
    Some(days * DAY + ((hour * 60 + minute) * 60 + second) * SECOND + number(20..23)?)
}

/// Days since 1970-01-01. A date that does not exist is counted as if its month were longer.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year * 365 + year / 4 - year / 100 + day_of_year - EPOCH
}

/// Returns the year, month and day that is `days` after 1970-01-01.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + EPOCH;
    let (era, days) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (days - days / 1_460 + days / 36_524 - days / 146_096) / 365;
    let day_of_year = days - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn any_precision_and_offset_prints_utc_milliseconds() {
        for (text, printed) in [
            ("2026-11-21T23:07:56Z", "2026-11-21T23:07:56.000Z"),
            ("2026-11-21T23:07:56.1239Z", "2026-11-21T23:07:56.123Z"),
            ("2026-11-22T01:07:56.5+02:00", "2026-11-21T23:07:56.500Z"),
            ("2026-11-21t23:07:56.123456789z", "2026-11-21T23:07:56.123Z"),
            ("2026-11-21T23:07:56.12345678901234567890-01:30", "2026-11-22T00:37:56.123Z"),
        ] {
            assert_eq!(text.parse::<Timestamp>().unwrap().to_string(), printed);
        }
    }

    #[test]
    fn other_formats_are_rejected() {
        for text in [
            "",
            "tomorrow",
            "2026-11-21",
            "2026-11-21T23:07Z",
            "2026-11-21T23:07:56",
            "2026-11-21T23:07:56.Z",
            "2026-11-21T23:07:56+0200",
            "2026-13-01T00:00:00Z",
            "2026-02-30T00:00:00Z",
            "2026-11-21T23:07:56+24:00",
            "2026-11-21T23:07:56+23:60",
            "9999-12-31T23:59:59Z",
            "2026-11-21T23:07:56Z[UTC]",
            "+002026-11-21T23:07:56Z",
            "1795000000",
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(NOT_RFC_3339), "{text}");
        }
    }

    #[test]
    fn leap_seconds_only_end_a_utc_month() {
        for (text, printed) in [
            ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.000Z"),
            ("2027-06-30T23:59:60.5Z", "2027-06-30T23:59:59.500Z"),
            ("1990-12-31T15:59:60-08:00", "1990-12-31T23:59:59.000Z"),
            ("2028-03-01T01:29:60+01:30", "2028-02-29T23:59:59.000Z"),
        ] {
            assert_eq!(text.parse::<Timestamp>().map(|instant| instant.to_string()), Ok(printed.to_owned()), "{text}");
        }
        for text in [
            "2027-01-01T12:34:60Z",
            "2027-01-30T23:59:60Z",
            "2027-02-28T23:59:60+01:00",
            "2028-02-28T23:59:60Z",
            "2027-06-30T23:58:60Z",
            "2027-06-30T22:59:60Z",
            "2027-12-31T23:59:60-08:00",
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(NO_LEAP_SECOND), "{text}");
        }
        assert_eq!("2027-06-30T23:59:61Z".parse::<Timestamp>(), Err(NOT_RFC_3339));
    }

    fn general_form(millis: i64) -> (String, i64) {
        let instant = jiff::Timestamp::from_millisecond(millis).unwrap();
        let text = format!("{instant:.3}");
        let read = text.parse::<jiff::Timestamp>().unwrap().as_millisecond();
        (text, read)
    }

    #[test]
    fn fast_path_supports_every_day() {
        for day in (-4_400..3_000).map(|month| month * 30).chain(days(1_999, 12, 1)..days(2_004, 3, 2)) {
            let millis = day * DAY + 86_399_999;
            let (text, read) = general_form(millis);
            assert_eq!(text.parse::<Timestamp>().map(Timestamp::as_millis), Ok(read), "{text}");
            assert_eq!(Timestamp::from_millis(millis).unwrap().to_string(), text);
        }
    }

    #[test]
    fn fast_path_rejects_nonexistent_dates() {
        for text in ["2026-02-29", "1900-02-29", "2026-04-31", "2026-00-10", "2026-13-10", "2026-10-00", "2026-10-32"] {
            assert_eq!(printed_millis(format!("{text}T12:00:00.000Z").as_bytes()), None, "{text}");
        }
        for text in ["24:00:00.000Z", "23:60:00.000Z", "23:59:60.000Z", "23:59:59.00aZ", "+1:59:59.000Z"] {
            assert_eq!(printed_millis(format!("2026-11-21T{text}").as_bytes()), None, "{text}");
        }
        assert!(printed_millis(b"2000-02-29T12:00:00.000Z").is_some());
    }

    proptest! {
        #[test]
        fn fast_path_agrees_with_general_path(millis in -377_705_023_201_000_i64..253_402_207_200_000) {
            let (text, read) = general_form(millis);
            let instant = Timestamp::from_millis(millis).unwrap();
            prop_assert_eq!(instant.to_string(), text.clone());
            prop_assert_eq!(serde_json::to_value(instant).unwrap(), text.clone());
            if let Some(millis) = printed_millis(text.as_bytes()) {
                prop_assert_eq!(millis, read);
            }
        }

        #[test]
        fn timestamps_round_trip(millis in 0_i64..4_102_444_800_000) {
            let instant = Timestamp::from_millis(millis).unwrap();
            prop_assert_eq!(instant.to_string().parse::<Timestamp>(), Ok(instant));
        }
    }
}
