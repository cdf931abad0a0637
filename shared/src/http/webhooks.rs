use std::slice;

use super::{Call, DeliveryResource, Error, Received, Route};
use crate::{
    app::App,
    domain::{Delivery, Event, ScopeSet, WebhookEndpoint, WebhookUrl},
};

impl<R: Route> Call<R> {
    /// A URL that events may be sent to, judged by its text; 422 with what is wrong with it.
    pub fn webhook_url(&self, app: &App, url: &Received) -> Result<WebhookUrl, Error> {
        let url = WebhookUrl::parse(url.expose(), app.webhooks).map_err(|problem| Error::invalid("url", problem))?;
        // A receiver beside the local runner is on its host, too.
        let ours = self.meta.host.as_ref().is_some_and(|host| url.is_on(slice::from_ref(host)));
        if ours && !url.is_loopback() {
            return Err(Error::invalid("url", "must not lead to this service itself"));
        }
        Ok(url)
    }
}

impl DeliveryResource {
    /// As it will be, once the event is fanned out.
    pub fn expected(event: &Event, scopes: ScopeSet) -> Self {
        Self::new(Delivery::new(event.id, event.event_type, event.created_at, event.created_at), scopes)
    }
}

/// Nothing is sent to an endpoint that is disabled; 409 where somebody asks for it all the same.
pub fn demand_enabled(endpoint: &WebhookEndpoint) -> Result<(), Error> {
    if endpoint.is_enabled() {
        return Ok(());
    }
    Err(Error::Conflict {
        code: "webhook_endpoint_disabled",
        message: "The endpoint is disabled, so nothing is sent there: set enabled to true first",
        resource_id: Some(endpoint.id),
    })
}
