use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Invalid, Timestamp};

const NOT_A_MONTH: Invalid = Invalid::new("must be a month from 1970 to 9998 such as 2026-11");

/// A calendar month in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Month {
    year: u16,
    /// 1 to 12.
    month: u8,
}

impl Month {
    pub(super) const fn new(year: u16, month: u8) -> Self {
        Self { year, month }
    }

    #[must_use]
    pub const fn next(self) -> Self {
        if self.month == 12 { Self::new(self.year + 1, 1) } else { Self::new(self.year, self.month + 1) }
    }

    pub fn start(self) -> Timestamp {
        format!("{self}-01T00:00:00Z").parse().expect("every month has a first day")
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl TryFrom<String> for Month {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let (year, month) = text.split_once('-').ok_or(NOT_A_MONTH)?;
        let number = |digits: &str, len| {
            let plain = digits.len() == len && digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse::<u16>().ok()).flatten().ok_or(NOT_A_MONTH)
        };
        let (year, month) = (number(year, 4)?, number(month, 2)?);
        match u8::try_from(month) {
            Ok(month @ 1..=12) if (1970..=9998).contains(&year) => Ok(Self { year, month }),
            _ => Err(NOT_A_MONTH),
        }
    }
}

impl From<Month> for String {
    fn from(month: Month) -> Self {
        month.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn month(text: &str) -> Result<Month, Invalid> {
        Month::try_from(text.to_owned())
    }

    #[test]
    fn month_round_trips_and_other_forms_are_rejected() {
        for text in ["2026-11", "1970-01", "9998-12"] {
            assert_eq!(month(text).unwrap().to_string(), text);
        }
        for text in ["", "2026", "2026-00", "2026-13", "2026-1", "26-11", "2026-11-01", "+026-11", "1969-12", "9999-01"]
        {
            assert!(month(text).is_err(), "{text}");
        }
    }

    #[test]
    fn instant_belongs_to_its_utc_month() {
        for (instant, expected) in [("2026-11-30T23:59:59.999Z", "2026-11"), ("2026-12-01T00:00:00Z", "2026-12")] {
            assert_eq!(instant.parse::<Timestamp>().unwrap().month().to_string(), expected);
        }
        let december = month("2026-12").unwrap();
        assert_eq!(december.next(), month("2027-01").unwrap());
        assert_eq!(december.next().start(), "2027-01-01T00:00:00Z".parse().unwrap());
    }
}
