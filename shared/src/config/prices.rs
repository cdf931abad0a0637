//! Loads model prices: the built-in list, overridden by `KARTA_PRICES`.

use std::{collections::HashMap, fs, sync::LazyLock};

use serde::Deserialize;

use super::{ConfigError, optional};
use crate::domain::{Price, PriceList, PriceTable, PricesError};

const VARIABLE: &str = "KARTA_PRICES";

/// The rows of `prices.json`. A test reads it, so it can be read.
pub(crate) static LISTED: LazyLock<PriceList> = LazyLock::new(|| {
    let groups: Vec<Group> = serde_json::from_str(include_str!("../../prices.json")).unwrap_or_default();
    groups.into_iter().flat_map(|group| group.prices).collect()
});

/// Prices of one source.
#[derive(Deserialize)]
struct Group {
    #[serde(borrow)]
    prices: HashMap<&'static str, Price>,
}

/// The operator's prices over the list: JSON in the variable itself, which is all that a deployed function has, or in the file that it names.
pub(super) fn from_env() -> Result<PriceTable, ConfigError> {
    let Some(text) = optional(VARIABLE)? else {
        return PriceTable::new(&LISTED, HashMap::new()).map_err(|error| ConfigError::new(VARIABLE, error));
    };
    if text.trim_start().starts_with('{') {
        return parse(&text).map_err(|error| ConfigError::new(VARIABLE, error));
    }
    let json = fs::read_to_string(&text)
        .map_err(|error| ConfigError::new(VARIABLE, format!("names {text}, which cannot be read: {error}")))?;
    parse(&json).map_err(|error| ConfigError::new(VARIABLE, format!("names {text}, which {error}")))
}

/// Reads the operator's prices: a JSON object of prices by model.
pub(crate) fn parse(json: &str) -> Result<PriceTable, PricesError> {
    PriceTable::new(&LISTED, serde_json::from_str(json).map_err(|_| PricesError::Shape)?)
}
