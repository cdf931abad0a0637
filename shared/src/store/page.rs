use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

use super::{
    Item, Store, StoreError,
    table::{ABOVE_IDS, Table},
    text,
};
use crate::domain::Id;

/// How many items one page looks at: a filter that matches little must not read a whole tenant.
const EXAMINED_AT_MOST: usize = 1_000;

/// How many bytes of items one page looks at. An answer is a string in Lambda's 6 MB, in which one byte may take four.
const BYTES_AT_MOST: usize = 1_000_000;

/// A page of a list, newest first.
#[derive(Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Where the next page starts: at the items older than this one. `None` on the last page.
    pub resume_below: Option<Id>,
}

/// What is listed: a partition whose sort keys have the order of ids.
pub(super) struct Listing<T> {
    pub(super) table: Table,
    pub(super) partition: String,
    /// The sort key under which an id stands.
    pub(super) place: fn(Id) -> String,
    pub(super) read: fn(Item) -> Result<T, StoreError>,
    /// Whether an item that cannot be read is left out. It is an error otherwise.
    pub(super) skips_unreadable: bool,
    pub(super) id: fn(&T) -> Id,
}

/// A second partition of the table whose items complete those of the list that have the same sort keys.
pub(super) struct Joined<T> {
    pub(super) partition: String,
    pub(super) join: fn(&mut T, Item),
}

/// How many more items of a joined partition are read than of the list: the two are read at the same time, and an item may be new in one of them.
const JOINED_BEYOND: usize = 16;

impl Store {
    /// The newest `limit` items below an id that `keep` lets through.
    pub(super) async fn page<T>(
        &self,
        listing: Listing<T>,
        below: Option<Id>,
        limit: usize,
        keep: impl Fn(&T) -> bool,
    ) -> Result<Page<T>, StoreError> {
        self.page_joined(listing, None, below, limit, keep).await
    }

    /// The same, each item completed before it is judged. The sort keys of the joined partition are some of the list's.
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
        // Below what was skipped, too: a cursor cannot say that.
        let mut upper = below.map_or_else(|| ABOVE_IDS.to_owned(), listing.place);
        loop {
            // One more than is wanted tells whether another page follows.
            let ask = (limit + 1 - items.len()).max((examined + skipped).min(200)).min(EXAMINED_AT_MOST + 1 - examined);
            let newest = |partition: &str, ask: usize| {
                self.client
                    .query()
                    .table_name(self.table(listing.table))
                    .key_condition_expression("pk = :pk AND sk < :upper")
                    .expression_attribute_values(":pk", AttributeValue::S(partition.to_owned()))
                    .expression_attribute_values(":upper", AttributeValue::S(upper.clone()))
                    .scan_index_forward(false)
                    .consistent_read(true)
                    .limit(i32::try_from(ask).unwrap_or(i32::MAX))
                    .send()
            };
            let listed = newest(&listing.partition, ask);
            let (output, mut complements) = match &joined {
                None => (listed.await?, HashMap::new()),
                Some(Joined { partition, .. }) => {
                    let (output, complements) = tokio::try_join!(listed, newest(partition, ask + JOINED_BEYOND))?;
                    (output, by_sort_key(complements.items.unwrap_or_default())?)
                }
            };
            let exhausted = output.last_evaluated_key.is_none();
            for item in output.items.unwrap_or_default() {
                let size: usize = item.iter().map(|(name, value)| name.len() + size_of(value)).sum();
                text(&item, "sk")?.clone_into(&mut upper);
                let mut item = match (listing.read)(item) {
                    Err(error) if listing.skips_unreadable => {
                        tracing::error!(partition = listing.partition, sk = upper, %error, "an item is left out of its list");
                        skipped += 1;
                        continue;
                    }
                    read => read?,
                };
                if let (Some(Joined { join, .. }), Some(complement)) = (&joined, complements.remove(&upper)) {
                    join(&mut item, complement);
                }
                let at = (listing.id)(&item);
                let full = items.len() == limit || examined == EXAMINED_AT_MOST || bytes + size > BYTES_AT_MOST;
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
    items.into_iter().map(|item| Ok((text(&item, "sk")?.to_owned(), item))).collect()
}

/// About as DynamoDB counts an attribute.
fn size_of(value: &AttributeValue) -> usize {
    match value {
        AttributeValue::S(text) | AttributeValue::N(text) => text.len(),
        AttributeValue::L(items) => items.iter().map(size_of).sum(),
        AttributeValue::M(fields) => fields.iter().map(|(name, value)| name.len() + size_of(value)).sum(),
        _ => 1,
    }
}
