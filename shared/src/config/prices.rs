//! Loads model prices: the built-in list, overridden by `KARTA_PRICES`.

use std::{collections::HashMap, fmt, fs, iter, sync::LazyLock};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

use super::{ConfigError, optional};
use crate::domain::{Price, PriceList, PriceTable, PricesError};

const VARIABLE: &str = "KARTA_PRICES";
/// A byte order mark, which some editors write in front of a file.
const BOM: char = '\u{FEFF}';

/// The rows of `prices.json`. A test reads it, so it can be read.
pub(crate) static LISTED: LazyLock<PriceList> = LazyLock::new(|| {
    let groups: Vec<PriceGroup> = serde_json::from_str(include_str!("../../prices.json")).unwrap_or_default();
    groups.into_iter().flat_map(|group| group.prices).collect()
});

/// Prices of one source.
#[derive(Deserialize)]
struct PriceGroup {
    #[serde(borrow)]
    prices: HashMap<&'static str, Price>,
}

/// The operator's prices over the list: JSON in the variable itself, which is all that a deployed function has, or in the file that it names.
pub(super) fn from_env() -> Result<PriceTable, ConfigError> {
    let Some(text) = optional(VARIABLE)? else {
        return PriceTable::new(&LISTED, iter::empty()).map_err(|error| ConfigError::new(VARIABLE, error));
    };
    if text.trim_start_matches(BOM).trim_start().starts_with('{') {
        return parse(&text).map_err(|error| ConfigError::new(VARIABLE, error));
    }
    let json = fs::read_to_string(&text)
        .map_err(|error| ConfigError::new(VARIABLE, format!("names {text}, which cannot be read: {error}")))?;
    parse(&json).map_err(|error| ConfigError::new(VARIABLE, format!("names {text}, which {error}")))
}

/// Reads the operator's prices: a JSON object of prices by model.
pub(crate) fn parse(json: &str) -> Result<PriceTable, PricesError> {
    let Rows(rows) = serde_json::from_str(json.trim_start_matches(BOM)).map_err(|_| PricesError::Shape)?;
    PriceTable::new(&LISTED, rows)
}

/// The members of a JSON object. A map would keep only the last of two with the same name.
struct Rows(Vec<(String, Price)>);

impl<'de> Deserialize<'de> for Rows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Rows;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of prices by model")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Rows, A::Error> {
                iter::from_fn(|| members.next_entry().transpose()).collect::<Result<_, _>>().map(Rows)
            }
        }

        deserializer.deserialize_map(Members)
    }
}
