use std::slice;

use super::{Call, DeliveryResource, Error, Route, UncheckedText};
use crate::{
    app::App,
    domain::{Delivery, Event, OutboundUrl, ScopeSet, WebhookEndpoint},
};

impl<R: Route> Call<R> {
    /// Parses a webhook URL. Returns 422 if the URL is invalid or points to this service.
    pub fn webhook_url(&self, app: &App, url: &UncheckedText) -> Result<OutboundUrl, Error> {
        let url =
            OutboundUrl::parse(url.expose(), app.outbound_reach).map_err(|problem| Error::invalid("url", problem))?;
        // A receiver on the developer's machine has the local runner's host.
        let is_own_host = self.meta.host.as_ref().is_some_and(|host| url.is_on(slice::from_ref(host)));
        if is_own_host && !url.is_loopback() {
            return Err(Error::invalid("url", "must not point to this service"));
        }
        Ok(url)
    }
}

impl DeliveryResource {
    /// Returns the delivery as it will look once the event is fanned out.
    pub fn expected(event: &Event, scopes: ScopeSet) -> Self {
        Self::new(Delivery::new(event.id, event.event_type, event.created_at, event.created_at), scopes)
    }
}

/// Returns 409 if the endpoint is disabled.
pub fn require_enabled(endpoint: &WebhookEndpoint) -> Result<(), Error> {
    if endpoint.is_enabled() {
        return Ok(());
    }
    Err(Error::Conflict {
        code: "webhook_endpoint_disabled",
        message: "The endpoint is disabled. Set enabled to true first.",
        resource_id: Some(endpoint.id),
    })
}
