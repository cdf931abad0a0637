use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::Result;
use axum::{Router, extract::State};
use http::HeaderMap;
use karta_shared::domain::Id;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

/// Time of the first arrival and number of arrivals by event.
type Arrivals = BTreeMap<Id, (Instant, usize)>;

struct Inbox {
    arrived: Mutex<Arrivals>,
    count: watch::Sender<usize>,
}

/// A receiver that returns 200 for every request.
pub(crate) struct Receiver {
    pub(crate) url: String,
    inbox: Arc<Inbox>,
    served: JoinHandle<()>,
}

impl Receiver {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/", listener.local_addr()?);
        let inbox = Arc::new(Inbox { arrived: Mutex::default(), count: watch::Sender::new(0) });
        let router = Router::new().fallback(receive).with_state(Arc::clone(&inbox));
        let served = tokio::spawn(async move {
            axum::serve(listener, router).await.ok();
        });
        Ok(Self { url, inbox, served })
    }

    pub(crate) async fn wait_for(&self, count: usize) {
        self.inbox.count.subscribe().wait_for(|arrived| *arrived >= count).await.ok();
    }

    pub(crate) fn count(&self) -> usize {
        self.arrived(Arrivals::len)
    }

    pub(crate) fn first(&self, event: Id) -> Option<Instant> {
        self.arrived(|arrived| arrived.get(&event).map(|(first, _)| *first))
    }

    pub(crate) fn ids(&self) -> BTreeSet<Id> {
        self.arrived(|arrived| arrived.keys().copied().collect())
    }

    pub(crate) fn repeated(&self) -> usize {
        self.arrived(|arrived| arrived.values().filter(|(_, times)| *times > 1).count())
    }

    fn arrived<T>(&self, read: impl FnOnce(&Arrivals) -> T) -> T {
        read(&self.inbox.arrived.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.served.abort();
    }
}

async fn receive(State(inbox): State<Arc<Inbox>>, headers: HeaderMap) {
    let id = headers.get("webhook-id").and_then(|id| id.to_str().ok()?.strip_prefix("evt_").and_then(Id::parse));
    let Some(id) = id else { return };
    let count = {
        let mut arrived = inbox.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.entry(id).or_insert((Instant::now(), 0)).1 += 1;
        arrived.len()
    };
    inbox.count.send_replace(count);
}
