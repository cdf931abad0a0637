//! Loads model prices: the built-in list, overridden by `KARTA_PRICES`.

use std::{collections::HashMap, fs, iter, sync::LazyLock};

use serde::{Deserialize, de::IgnoredAny};

use super::{ConfigError, optional};
use crate::domain::{ObjectMembers, Price, PriceList, PriceProblem, PriceTable, PricesError};

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
    let json = fs::read_to_string(&text).map_err(|error| {
        ConfigError::new(
            VARIABLE,
            format!("must be a JSON object or the path of a JSON file: {text} cannot be read: {error}"),
        )
    })?;
    parse(&json).map_err(|error| ConfigError::new(VARIABLE, format!("names {text}, which {error}")))
}

/// A row before its members are checked, so that an error can name the member.
#[derive(Deserialize)]
#[serde(untagged)]
enum RawRow {
    Members(ObjectMembers<serde_json::Value>),
    Other(IgnoredAny),
}

/// Parses the operator's prices: a JSON object that maps models to prices.
pub(crate) fn parse(json: &str) -> Result<PriceTable, PricesError> {
    let rows: ObjectMembers<RawRow> =
        serde_json::from_str(json.trim_start_matches(BOM)).map_err(|_| PricesError::Shape)?;
    let mut prices = Vec::new();
    for (at, (model, row)) in rows.into_iter().enumerate() {
        let price = price(row).map_err(|problem| PricesError::entry(at, &model, problem))?;
        prices.push((model, price));
    }
    PriceTable::new(&LISTED, prices)
}

fn price(row: RawRow) -> Result<Price, PriceProblem> {
    let members = match row {
        RawRow::Members(members) => members.by_name().map_err(|_| PriceProblem::Repeated)?,
        RawRow::Other(_) => return Err(PriceProblem::NoObject),
    };
    if members.keys().any(|name| !Price::MEMBERS.contains(&name.as_str())) {
        return Err(PriceProblem::Unknown);
    }
    let optional = |member: &'static str| match members.get(member) {
        None => Ok(None),
        Some(value) if value.is_null() && Price::OPTIONAL.contains(&member) => Ok(None),
        Some(value) => {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            number.map(Some).ok_or(PriceProblem::Number(member))
        }
    };
    let required = |member| optional(member)?.ok_or(PriceProblem::Missing(member));
    let (input, output) = (required("input")?, required("output")?);
    Ok(Price { input, output, cache_read: optional("cache_read")?, cache_write: optional("cache_write")? })
}
