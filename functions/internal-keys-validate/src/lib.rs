//! `POST /v1/internal/keys/validate`: validates an API key for a data plane.
//!
//! Every fault that prevents a verdict results in a 503 or 504, never in an invalid key.

mod answer;

use std::{net::IpAddr, time::Duration};

use karta_shared::{
    App,
    auth::{RecordUse, Verdict, trace},
    config::{Ring, Secret},
    domain::{Invalid, client_address},
    http::{ApiResponse, Call, Error, Internal, NoQuery, Route, UncheckedText, Validate},
};
use serde::Deserialize;

use self::answer::{Code, details, explain_step};
pub use self::answer::{Explained, KeyDetails, Output};

/// Maximum age of a verdict when it is sent. A data plane caches it for 5 s from its arrival.
const VERDICT_MAX_AGE: Duration = Duration::from_millis(500);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    key: UncheckedText,
    ip_address: Option<Address>,
    explain: Option<bool>,
}

/// The address that the key is used from.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub struct Address(IpAddr);

impl TryFrom<String> for Address {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        client_address(&text).map(Self).ok_or(Invalid::new("must be an IPv4 or IPv6 address"))
    }
}

#[derive(Debug)]
pub struct InternalKeysValidate;

impl Route for InternalKeysValidate {
    const NAME: &'static str = "internal-keys-validate";
    const SECRETS: &'static [Secret] = &[Secret::Ring(Ring::KeyTag)];
    /// A data plane waits 5 s for the response.
    const DEADLINE: Duration = Duration::from_secs(4);
    type Access = Internal<Validate>;
    type Path = ();
    type Query = NoQuery;
    type Body = Input;
    type Output = Output;

    async fn handle(app: &App, call: &Call<Self>) -> Result<ApiResponse<Output>, Error> {
        let Input { key, ip_address, explain } = &call.body;
        let address = ip_address.map(|address| address.0);
        let explain = explain.unwrap_or(false);
        let record_use = if explain { RecordUse::Never } else { RecordUse::IfPermitted(address) };
        let verdict = app.validator().validate_for_cache(key.expose(), record_use, VERDICT_MAX_AGE).await;
        let verdict = verdict.map_err(|fault| Error::Unavailable(fault.to_string()))?;
        let trace = explain.then(|| trace(&verdict, address).into_iter().map(explain_step).collect());
        let result = match verdict {
            Verdict::Valid(valid) if valid.is_permitted(address) => Ok(details(*valid)),
            Verdict::Valid(_) => Err(Code::AddressNotAllowed),
            Verdict::Invalid(why) => Err(why.into()),
        };
        let (key, code) = match result {
            Ok(key) => (Some(key), None),
            Err(code) => (None, Some(code)),
        };
        ApiResponse::ok(&Output { valid: key.is_some(), key, code, trace })
    }
}
