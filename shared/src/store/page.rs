use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

use super::{
    Item, Store, StoreError, required_text,
    table::{ABOVE_IDS, Table},
};
use crate::domain::Id;

/// Maximum number of items that one page examines: a filter with few matches must not read all
/// items of an organization.
const MAX_EXAMINED: usize = 1_000;

/// Maximum bytes of items that one page examines. A response is a string within Lambda's 6 MB, in
/// which one byte may be escaped as four.
pub(super) const MAX_PAGE_BYTES: usize = 1_000_000;

/// A page of a list, newest first.
#[derive(Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// The next page contains the items older than this one. `None` on the last page.
    pub resume_below: Option<Id>,
}

/// A list: a partition whose sort keys have the order of ids.
pub(super) struct Listing<T> {
    pub(super) table: Table,
    pub(super) partition: String,
    pub(super) sort_key: fn(Id) -> String,
    pub(super) read: fn(Item) -> Result<T, StoreError>,
    /// Whether unreadable items are omitted. Otherwise they are errors.
    pub(super) skips_unreadable: bool,
    pub(super) id: fn(&T) -> Id,
}

/// A second partition of the table. Its items complete the list's items with the same sort keys.
pub(super) struct Joined<T> {
    pub(super) partition: String,
    pub(super) join: fn(&mut T, Item),
}

/// Number of items read from the joined partition beyond those of the list. Both are read at the
/// same time, and an item may be new in one of them.
const JOINED_MARGIN: usize = 16;

impl Store {
    /// Returns up to `limit` of the newest items that match `keep` and have smaller ids than
    /// `below`.
    pub(super) async fn page<T>(
        &self,
        listing: Listing<T>,
        below: Option<Id>,
        limit: usize,
        keep: impl Fn(&T) -> bool,
    ) -> Result<Page<T>, StoreError> {
        self.page_joined(listing, None, below, limit, keep).await
    }

    /// Like [`page`](Self::page), and completes each item from the joined partition before `keep`
    /// sees it. The joined partition's sort keys are a subset of the list's.
    pub(super) async fn page_joined<T>(
        &self,
        listing: Listing<T>,
        joined: Option<Joined<T>>,
        below: Option<Id>,
        limit: usize,
        keep: impl Fn(&T) -> bool,
    ) -> Result<Page<T>, StoreError> {
        let mut items = Vec::with_capacity(limit);
        let mut resume_below = below;
        let (mut examined, mut skipped, mut bytes) = (0, 0, 0);
        // The sort key that the next query starts below. It also covers skipped items, which a
        // cursor cannot.
        let mut upper = below.map_or_else(|| ABOVE_IDS.to_owned(), listing.sort_key);
        loop {
            // One more item than requested shows whether another page follows.
            let query_limit =
                (limit + 1 - items.len()).max((examined + skipped).min(200)).min(MAX_EXAMINED + 1 - examined);
            let newest = |partition: &str, query_limit: usize| {
                self.client
                    .query()
                    .table_name(self.table(listing.table))
                    .key_condition_expression("pk = :pk AND sk < :upper")
                    .expression_attribute_values(":pk", AttributeValue::S(partition.to_owned()))
                    .expression_attribute_values(":upper", AttributeValue::S(upper.clone()))
                    .scan_index_forward(false)
                    .consistent_read(true)
                    .limit(i32::try_from(query_limit).unwrap_or(i32::MAX))
                    .send()
            };
            let listed = newest(&listing.partition, query_limit);
            let (output, mut complements) = match &joined {
                None => (listed.await?, HashMap::new()),
                Some(Joined { partition, .. }) => {
                    let (output, complements) =
                        tokio::try_join!(listed, newest(partition, query_limit + JOINED_MARGIN))?;
                    (output, by_sort_key(complements.items.unwrap_or_default())?)
                }
            };
            let exhausted = output.last_evaluated_key.is_none();
            for item in output.items.unwrap_or_default() {
                let size = item_bytes(&item);
                required_text(&item, "sk")?.clone_into(&mut upper);
                let mut item = match (listing.read)(item) {
                    Err(fault) if listing.skips_unreadable => {
                        let pk = &listing.partition;
                        tracing::error!(pk, sk = upper, %fault, "unreadable list item skipped");
                        skipped += 1;
                        continue;
                    }
                    read => read?,
                };
                if let (Some(Joined { join, .. }), Some(complement)) = (&joined, complements.remove(&upper)) {
                    join(&mut item, complement);
                }
                let at = (listing.id)(&item);
                let full = items.len() == limit || examined == MAX_EXAMINED || bytes + size > MAX_PAGE_BYTES;
                if full && examined > 0 {
                    return Ok(Page { items, resume_below });
                }
                examined += 1;
                bytes += size;
                resume_below = Some(at);
                if keep(&item) {
                    items.push(item);
                }
            }
            if exhausted {
                return Ok(Page { items, resume_below: None });
            }
        }
    }
}

fn by_sort_key(items: Vec<Item>) -> Result<HashMap<String, Item>, StoreError> {
    items.into_iter().map(|item| Ok((required_text(&item, "sk")?.to_owned(), item))).collect()
}

/// Approximates the size that DynamoDB counts for an item.
pub(super) fn item_bytes(item: &Item) -> usize {
    item.iter().map(|(name, value)| name.len() + size_of(value)).sum()
}

/// Approximates the size that DynamoDB counts for an attribute.
fn size_of(value: &AttributeValue) -> usize {
    match value {
        AttributeValue::S(text) | AttributeValue::N(text) => text.len(),
        AttributeValue::L(items) => items.iter().map(size_of).sum(),
        AttributeValue::M(fields) => fields.iter().map(|(name, value)| name.len() + size_of(value)).sum(),
        _ => 1,
    }
}
