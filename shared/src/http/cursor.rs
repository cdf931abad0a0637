//! Paging cursors. A cursor holds the id that the next page starts below, and a MAC over
//! organization, list and filters. It cannot be forged or used with another organization, list or
//! filter.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use super::Error;
use crate::{
    app::App,
    config::Ring,
    domain::Id,
    sealing::{self, Mac},
};

const ID_LEN: usize = 8;
const MAC_LEN: usize = 16;

/// Returns the `next_cursor` for items of `list` below an id; `None` if there is no next page.
/// `list` names the list and its filters.
pub async fn seal(app: &App, organization: Id, list: &str, below: Option<Id>) -> Result<Option<String>, Error> {
    let Some(id) = below else {
        return Ok(None);
    };
    let ring = app.secrets.ring(Ring::Cursor).await?;
    let (_, secret) = ring.current();
    let id = id.get().to_be_bytes();
    let mac = mac(secret, organization, list).tag(&id);
    Ok(Some(BASE64_URL_SAFE_NO_PAD.encode([&id[..], &mac[..MAC_LEN]].concat())))
}

/// Returns the id that the page starts below; `None` for the first page. Returns 422 if the cursor
/// belongs to another organization or list.
pub async fn open(app: &App, organization: Id, list: &str, cursor: Option<&str>) -> Result<Option<Id>, Error> {
    let Some(cursor) = cursor else {
        return Ok(None);
    };
    let ring = app.secrets.ring(Ring::Cursor).await?;
    let refused = || Error::invalid("cursor", "must be a next_cursor of this list, with the same filters");
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).map_err(|_| refused())?;
    let (id, tag) = bytes.split_at_checked(ID_LEN).filter(|(_, tag)| tag.len() == MAC_LEN).ok_or_else(refused)?;
    let genuine = ring.iter().any(|secret| {
        let expected = mac(secret, organization, list).tag(id);
        aws_lc_rs::constant_time::verify_slices_are_equal(&expected[..MAC_LEN], tag).is_ok()
    });
    let id = <[u8; ID_LEN]>::try_from(id).ok().map(u64::from_be_bytes).and_then(Id::new);
    id.filter(|_| genuine).map(Some).ok_or_else(refused)
}

fn mac(secret: &[u8], organization: Id, list: &str) -> Mac {
    sealing::derive_mac_key(secret, organization.to_string().as_bytes(), list.as_bytes())
}
