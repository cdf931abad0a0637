use std::time::Duration;

use serde::Deserialize;

use super::Invalid;

/// How long a rotated credential stays valid: 0 to 2,592,000 seconds (30 days), one day by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u64")]
pub struct Grace(Duration);

/// How long a repeat of a request can fetch a secret again.
pub const SECRET_REVEAL_PERIOD: Duration = Duration::from_mins(10);

impl Grace {
    /// Returns whether a key that rotates itself can still fetch a lost response.
    pub fn covers_repeats(self) -> bool {
        self.0 >= SECRET_REVEAL_PERIOD
    }

    pub const fn get(self) -> Duration {
        self.0
    }
}

impl Default for Grace {
    fn default() -> Self {
        Self(Duration::from_hours(24))
    }
}

impl TryFrom<u64> for Grace {
    type Error = Invalid;

    fn try_from(seconds: u64) -> Result<Self, Invalid> {
        if seconds <= 2_592_000 {
            Ok(Self(Duration::from_secs(seconds)))
        } else {
            Err(Invalid::new("must be 0 to 2592000 seconds"))
        }
    }
}
