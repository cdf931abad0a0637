//! Loads model prices: the built-in list, overridden by `KARTA_PRICES`.

use std::{collections::HashMap, fs, iter, sync::LazyLock};

use serde::Deserialize;

use super::{ConfigError, optional};
use crate::domain::{ObjectMembers, ObjectOnly, Price, PriceList, PriceTable, PricesError};

const VARIABLE: &str = "KARTA_PRICES";
/// A byte order mark, which some editors write at the start of a file.
const BOM: char = '\u{FEFF}';

/// The rows of `prices.json`. A test parses the file, so parsing cannot fail here.
pub(crate) static LISTED: LazyLock<PriceList> = LazyLock::new(|| {
    let groups: Vec<PriceGroup> = serde_json::from_str(include_str!("../../prices.json")).unwrap_or_default();
    groups.into_iter().flat_map(|group| group.prices).collect()
});

#[derive(Deserialize)]
struct PriceGroup {
    #[serde(borrow)]
    prices: HashMap<&'static str, Price>,
}

/// Returns the built-in prices with the operator's overrides. The variable holds either the JSON
/// itself, the only form that a deployed function can use, or the path of a JSON file.
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

/// Parses the operator's prices: a JSON object that maps models to prices.
pub(crate) fn parse(json: &str) -> Result<PriceTable, PricesError> {
    let rows: ObjectMembers<ObjectOnly<Price>> =
        serde_json::from_str(json.trim_start_matches(BOM)).map_err(|_| PricesError::Shape)?;
    PriceTable::new(&LISTED, rows.into_iter().map(|(model, ObjectOnly(price))| (model, price)))
}
