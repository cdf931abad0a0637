//! Reservations: the amounts that a running turn holds of the budgets of its organization and its
//! key lineage.
//!
//! The amount that a turn holds is an attribute of the item that it counts in, and each write
//! changes it together with the committed numbers. So the two always agree, a process that died
//! between two writes leaves nothing unknown, and the process that ends the turn releases exactly
//! what it holds. Each open turn adds about 40 bytes to these items, only where a cap applies.

use aws_sdk_dynamodb::{
    operation::update_item::{UpdateItemError, builders::UpdateItemFluentBuilder},
    types::{AttributeValue, ReturnValuesOnConditionCheckFailure},
};
use serde::{Deserialize, Serialize};

use super::{
    Item, Store, StoreError,
    batch::BatchKeys,
    committed::{Amount, COMPLETE, CommittedChange, attribute, hold_attribute, missing, read_committed, read_hold},
    table::{Key, Table},
};
use crate::domain::{Budget, CapKind, CapOwner, Exhausted, Id, Month};

/// Maximum attempts to write a hold. An attempt fails if the item changed. A turn's own earlier writes
/// cause at most three failures.
const MAX_ATTEMPTS: usize = 5;

/// The amounts that a turn holds of the budgets of its organization and its key lineage in a month.
///
/// The items in the store have the true amounts. These are the amounts of the last answer, and are
/// wrong after an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    pub organization: Id,
    pub lineage_id: Id,
    /// The month of the turn's usage events.
    pub month: Month,
    /// The attribute that holds the amounts.
    attribute: String,
    pub held_by_organization: Amount,
    pub held_by_key: Amount,
}

impl Reservation {
    /// Creates the reservation of a turn, which holds nothing yet. `turn` is the turn's id. A
    /// process that takes over a turn creates it again from the same values.
    pub fn new(organization: Id, lineage_id: Id, month: Month, turn: &str) -> Self {
        Self {
            organization,
            lineage_id,
            month,
            attribute: hold_attribute(turn),
            held_by_organization: Amount::default(),
            held_by_key: Amount::default(),
        }
    }

    pub(super) fn attribute(&self) -> &str {
        &self.attribute
    }

    fn of_organization(&self) -> Hold {
        let key = Key::usage_totals(self.organization, self.month);
        Hold { key, attribute: self.attribute.clone() }
    }

    fn of_key(&self) -> Hold {
        let key = Key::usage_of_key(self.organization, self.lineage_id, self.month);
        Hold { key, attribute: self.attribute.clone() }
    }
}

/// The attribute of an item with the amount that a turn holds.
struct Hold {
    key: Key,
    attribute: String,
}

enum Added {
    Yes,
    /// The budget has no caps.
    Uncapped,
    Reached(CapKind),
}

impl Store {
    /// Adds `amount` to what the turn holds of its organization's budget, then of its key
    /// lineage's, where these have caps. A refusal leaves the reservation as it was.
    ///
    /// **Rule.** A cap refuses if usage and the amounts that running turns hold have reached it, by
    /// the same comparison as [`BudgetVerdict`](crate::domain::BudgetVerdict). `amount` itself is
    /// not compared, so a turn may start while anything is left: a large amount or a small cap
    /// refuses nothing by itself. The condition `committed <= cap - amount` would refuse the last
    /// slice although tokens are left, and every turn under a cap smaller than a slice.
    ///
    /// **Bound.** A committed number was below the cap before any amount was added. So however many
    /// turns race, usage and holds together pass the cap by less than one `amount`: the input and
    /// one slice, or all of `max_tokens` if the model may hide output. Spending passes it by more only if turns spend more than they hold, which their
    /// callers limit to a slice for each open turn.
    ///
    /// **Retries.** Each write is one `UpdateItem` on condition that the turn holds what it held
    /// before. If a response is lost and the SDK sends the write again, the condition fails and
    /// returns the item with the new amount, which means success. So every amount counts once.
    ///
    /// # Errors
    ///
    /// After an error the turn may hold more than `reservation` shows, which is unchanged. A repeat
    /// with the same `amount` finds it instead of adding more.
    /// [`release_reservation`](Self::release_reservation) and
    /// [`Transaction::count_usage`](super::Transaction::count_usage) release what the turn really
    /// holds. [`StoreError::Fault`] if another process has settled the turn.
    pub async fn reserve(
        &self,
        reservation: &mut Reservation,
        (organization, key): (Option<&Budget>, Option<&Budget>),
        amount: Amount,
    ) -> Result<Result<(), Exhausted>, StoreError> {
        let mut reserved = reservation.clone();
        let result = self.reserve_holds(&mut reserved, (organization, key), amount).await?;
        *reservation = reserved;
        Ok(result)
    }

    async fn reserve_holds(
        &self,
        reservation: &mut Reservation,
        (organization, key): (Option<&Budget>, Option<&Budget>),
        amount: Amount,
    ) -> Result<Result<(), Exhausted>, StoreError> {
        let (of_organization, of_key) = (reservation.of_organization(), reservation.of_key());
        let Reservation { held_by_organization, held_by_key, .. } = reservation;
        let added = match self.reserve_hold(&of_organization, held_by_organization, organization, amount).await? {
            Added::Reached(kind) => return Ok(Err(Exhausted::Cap { kind, of: CapOwner::Organization })),
            added => added,
        };
        let Added::Reached(kind) = self.reserve_hold(&of_key, held_by_key, key, amount).await? else {
            return Ok(Ok(()));
        };
        if let Added::Yes = added {
            let before = held_by_organization.minus(amount);
            self.release_hold(&of_organization, held_by_organization, before).await?;
        }
        Ok(Err(Exhausted::Cap { kind, of: CapOwner::ApiKey }))
    }

    /// Releases all that a turn holds, without usage. Does nothing if the turn holds nothing.
    pub async fn release_reservation(&self, reservation: &Reservation) -> Result<(), StoreError> {
        let holds = [reservation.of_organization(), reservation.of_key()];
        let keys = holds.iter().map(|hold| hold.key.clone()).collect();
        let projection = Some(format!("pk, sk, {}", reservation.attribute));
        let items = self.batch_get_once([BatchKeys { table: Table::Usage, keys, projection }]).await?;
        for hold in holds {
            let item = items.iter().find(|item| Key::of_item(item).as_ref() == Some(&hold.key));
            let mut held = item.map_or(Ok(Amount::default()), |item| read_hold(item, &hold.attribute))?;
            if !held.is_zero() {
                self.release_hold(&hold, &mut held, Amount::default()).await?;
            }
        }
        Ok(())
    }

    /// Reserves `amount` in one item, in addition to what the turn holds there, unless a cap is reached.
    async fn reserve_hold(
        &self,
        hold: &Hold,
        current: &mut Amount,
        budget: Option<&Budget>,
        amount: Amount,
    ) -> Result<Added, StoreError> {
        let Some(budget) = budget.filter(|budget| budget.limits().next().is_some()) else {
            return Ok(Added::Uncapped);
        };
        let limits: Vec<_> = budget.limits().collect();
        for _ in 0..MAX_ATTEMPTS {
            let wanted = current.plus(amount);
            let Some(found) = self.set_hold(hold, *current, wanted, &limits).await? else {
                *current = wanted;
                return Ok(Added::Yes);
            };
            let stored = read_hold(&found, &hold.attribute)?;
            if stored == wanted && !amount.is_zero() {
                // The response to an earlier write was lost.
                *current = wanted;
                return Ok(Added::Yes);
            }
            if stored != *current {
                if stored.is_zero() {
                    return Err(StoreError::Fault("the turn's reservation was released by another process".to_owned()));
                }
                *current = stored;
            } else if !found.contains_key(COMPLETE) {
                self.complete_committed(&hold.key, &found).await?;
            } else if let Some(kind) = budget.reached(&read_committed(&found)?) {
                return Ok(Added::Reached(kind));
            }
        }
        Err(unsettled())
    }

    /// Releases what a turn holds above `target`. No cap refuses this.
    async fn release_hold(&self, hold: &Hold, current: &mut Amount, target: Amount) -> Result<(), StoreError> {
        for _ in 0..MAX_ATTEMPTS {
            let Some(found) = self.set_hold(hold, *current, target, &[]).await? else {
                *current = target;
                return Ok(());
            };
            *current = read_hold(&found, &hold.attribute)?;
            // Zero: another process released everything.
            if *current == target || current.is_zero() {
                return Ok(());
            }
        }
        Err(unsettled())
    }

    /// Changes what a turn holds, and the committed numbers by the difference, in one write.
    /// Returns the item if the turn does not hold `before`, if a committed number exceeds its
    /// limit, or if the committed numbers are not complete.
    async fn set_hold(
        &self,
        hold: &Hold,
        before: Amount,
        after: Amount,
        limits: &[(CapKind, i128)],
    ) -> Result<Option<Item>, StoreError> {
        let (mut update, add) = self.add_committed(&hold.key, CommittedChange::from(after) - before.into());
        let mut conditions = vec![format!("attribute_exists({COMPLETE})")];
        if before.is_zero() {
            conditions.push("attribute_not_exists(#hold)".to_owned());
        } else {
            conditions.push("#hold = :before".to_owned());
            update = update.expression_attribute_values(":before", before.attribute_value());
        }
        for (kind, limit) in limits {
            let name = attribute(*kind);
            conditions.push(format!("{name} <= :limit_{name}"));
            update = update.expression_attribute_values(format!(":limit_{name}"), AttributeValue::N(limit.to_string()));
        }
        let change = if after.is_zero() {
            "REMOVE #hold"
        } else {
            update = update.expression_attribute_values(":after", after.attribute_value());
            "SET #hold = :after"
        };
        let sent = update
            .expression_attribute_names("#hold", &hold.attribute)
            .update_expression(format!("{change} {add}"))
            .condition_expression(conditions.join(" AND "))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .send()
            .await;
        let Err(error) = sent else { return Ok(None) };
        match error.as_service_error() {
            Some(UpdateItemError::ConditionalCheckFailedException(failed)) => {
                Ok(Some(failed.item.clone().unwrap_or_default()))
            }
            _ => Err(error.into()),
        }
    }

    /// Adds to the committed numbers what they lack of the totals in `found`, once.
    async fn complete_committed(&self, key: &Key, found: &Item) -> Result<(), StoreError> {
        let (update, add) = self.add_committed(key, missing(found)?);
        let sent = update
            .update_expression(format!("SET {COMPLETE} = :one {add}"))
            .expression_attribute_values(":one", AttributeValue::N("1".to_owned()))
            .condition_expression(format!("attribute_not_exists({COMPLETE})"))
            .send()
            .await;
        match sent {
            Ok(_) => Ok(()),
            Err(error) => match error.as_service_error() {
                // Another turn was first.
                Some(UpdateItemError::ConditionalCheckFailedException(_)) => Ok(()),
                _ => Err(error.into()),
            },
        }
    }

    /// Starts an update that adds `change` to the committed numbers. Returns it with its `ADD`
    /// clause.
    fn add_committed(&self, key: &Key, change: CommittedChange) -> (UpdateItemFluentBuilder, String) {
        let update = self.client.update_item().table_name(self.table(Table::Usage)).set_key(Some(key.attributes()));
        let attributes = change.attributes();
        let clauses = attributes.map(|(name, _)| format!("{name} :{name}")).join(", ");
        let update = attributes.into_iter().fold(update, |update, (name, change)| {
            update.expression_attribute_values(format!(":{name}"), AttributeValue::N(change.to_string()))
        });
        (update, format!("ADD {clauses}"))
    }
}

fn unsettled() -> StoreError {
    StoreError::Unavailable("the item of a reservation keeps changing".to_owned())
}
