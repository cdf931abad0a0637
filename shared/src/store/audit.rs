use super::{
    Conflict, StoreError, Transaction,
    table::{Key, Table},
};
use crate::domain::{AuditEvent, Id};

impl Transaction {
    /// Adds the event to the organization's log, together with the change it tells of.
    pub fn audit(&mut self, organization: Id, event: &AuditEvent) -> Result<(), StoreError> {
        let key = Key::audit_event(organization, event.at, event.id);
        self.insert(Table::Main, &key, event, Conflict::IdTaken)
    }
}
