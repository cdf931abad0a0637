//! Starts and stops the local control plane.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    net::{IpAddr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use axum::{
    Router,
    extract::{ConnectInfo, Request, State},
    response::Response,
    serve::ListenerExt,
};
use karta_shared::{
    App,
    app::CallObserver,
    clock::Clock,
    config::{self, Config, Deadlines, TurnLimits},
    domain::{Entropy, InternalGuard, ProviderBaseUrls, Reach, Slug},
    store::table::Tables,
};
use secrecy::SecretString;
use tokio::{
    net::TcpListener,
    sync::oneshot,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use crate::{
    bootstrap::{self, BootstrapResult},
    demo,
    emulator::Emulator,
    gateway::Gateway,
    provider::FakeProvider,
    registry,
    secrets::{LocalSecrets, ProvidedSecrets},
    template::{TEMPLATE, Template},
    workers,
};

/// How long a stop waits for running requests.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of a run.
pub struct Options {
    pub host: IpAddr,
    /// 0 picks a free port.
    pub port: u16,
    /// Directory of data and secrets. `None` keeps them in memory.
    pub data_dir: Option<PathBuf>,
    /// The organization to use. It is created if it does not exist.
    pub organization: Slug,
    /// bcrypt cost; `None` is 12.
    pub bcrypt_cost: Option<u32>,
    /// Signs session tokens. `None` generates a secret.
    pub session_token_secret: Option<SecretString>,
    /// Service tokens for the internal routes, separated by commas. `None` generates a token.
    pub service_tokens: Option<SecretString>,
    /// Data planes to notify of stale caches, in the format of the secret `data-planes`. Their URLs
    /// on loopback may use `http`.
    pub data_planes: Option<SecretString>,
    /// Signing secrets of Stripe's test events, separated by commas. Without them, billing is not
    /// configured.
    pub stripe_secrets: Option<SecretString>,
    /// Addresses and host names for which the internal routes exist. A list that is not set
    /// contains loopback if the runner listens on loopback, and is otherwise empty.
    pub internal: InternalGuard,
    /// Addresses that webhooks and model calls to an `endpoint_url` may be sent to.
    pub outbound_reach: Reach,
    pub deadlines: Deadlines,
    pub turn_limits: TurnLimits,
    /// Base URLs of model providers; `None` reads them from the environment.
    pub provider_base_urls: Option<ProviderBaseUrls>,
    /// Whether to add the demo project with its scripted provider.
    pub demo: bool,
    /// Whether the workers run. Tests that control the store or the clock turn them off.
    pub workers: bool,
    /// Records the AWS calls of each function. Tests compare them with the template's policies.
    pub call_observer: Option<Arc<dyn CallObserver>>,
    pub clock: Arc<dyn Clock>,
    pub entropy: Arc<dyn Entropy>,
}

/// A running control plane.
pub struct Runner {
    pub base_url: String,
    pub bootstrap: BootstrapResult,
    pub secrets: LocalSecrets,
    /// The app of the handlers, for tests that look behind the HTTP API.
    pub app: App,
    pub gateway: Arc<Gateway>,
    pub emulator: Emulator,
    stop: oneshot::Sender<()>,
    served: JoinHandle<std::io::Result<()>>,
    /// Aborted when the runner is dropped.
    workers: JoinSet<()>,
    /// The scripted provider of the demo.
    pub demo: Option<FakeProvider>,
    /// Held while the data directory is in use.
    _lock: Option<File>,
}

impl Runner {
    /// Starts the control plane. Returns a boxed `dyn Future`, because the compiler limits the nesting of
    /// future types.
    pub fn start(options: Options) -> Pin<Box<dyn Future<Output = Result<Self>>>> {
        Box::pin(Self::start_with_proxy(options, None))
    }

    /// Like [`start`](Self::start), but the SDK calls the URL that `proxy` returns for the store's
    /// URL. Tests inject faults there.
    pub async fn start_with_proxy(options: Options, proxy: Option<&dyn Fn(&str) -> String>) -> Result<Self> {
        let lock = options.data_dir.as_deref().map(lock).transpose()?;
        let folder = options.data_dir.as_deref();
        let tables = Tables::local();
        let mut config = Config::local(tables.clone(), options.bcrypt_cost)?;
        config.internal = if options.host.is_loopback() { options.internal.or_loopback() } else { options.internal };
        config.outbound_reach = options.outbound_reach;
        config.deadlines = options.deadlines;
        config.turn_limits = options.turn_limits;
        if let Some(urls) = options.provider_base_urls {
            config.provider_base_urls = urls;
        }
        let demo = if options.demo { Some(Box::pin(demo::provider()).await?) } else { None };
        if let Some(provider) = &demo {
            config.provider_base_urls = provider.replace(config.provider_base_urls, demo::PROVIDER);
        }
        let given = ProvidedSecrets {
            session_token_secret: options.session_token_secret,
            service_tokens: options.service_tokens,
            data_planes: options.data_planes,
            stripe_secrets: options.stripe_secrets,
        };
        let secrets = LocalSecrets::open(folder, given, &*options.entropy)?;
        let template = Template::parse(TEMPLATE)?;
        let emulator = Emulator::start(folder, &template, &tables, &*options.entropy)?;
        let dynamodb_endpoint = emulator.endpoint();
        let endpoint = proxy.map_or_else(|| dynamodb_endpoint.clone(), |proxy| proxy(&dynamodb_endpoint));
        let mut sdk = Box::pin(config::local_sdk(&endpoint, emulator.access_key())).await;
        if proxy.is_none() {
            sdk = sdk.into_builder().http_client(emulator.http_client()).build();
        }
        let mut app = App::new(config, &sdk, secrets.source(), options.clock, options.entropy);
        app.call_observer = options.call_observer;
        app.secrets.warm_up().await?;
        let gateway = Arc::new(Gateway::new(&app, &template)?);
        let workers = if options.workers {
            workers::start(registry::workers(&app, &gateway), &template, &emulator, &app.clock)?
        } else {
            JoinSet::new()
        };
        // Before the organization is created: its first key is shown only once.
        let address = SocketAddr::new(options.host, options.port);
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("--host, --port: cannot listen on {address} (if it is taken, choose another --port)")
        })?;
        let bootstrap = Box::pin(bootstrap::organization(&app, &options.organization, "local runner")).await?;
        if demo.is_some() {
            Box::pin(demo::set_up(&app, bootstrap.organization.id)).await?;
        } else {
            Box::pin(demo::retire(&app, bootstrap.organization.id)).await?;
        }

        let base_url = format!("http://{}", listener.local_addr()?);
        let listener = listener.tap_io(|connection| {
            connection.set_nodelay(true).ok();
        });
        let (stop, stopped) = oneshot::channel();
        let service = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&gateway))
            .into_make_service_with_connect_info::<SocketAddr>();
        let served = tokio::spawn(async move {
            axum::serve(listener, service)
                .with_graceful_shutdown(async {
                    stopped.await.ok();
                })
                .await
        });
        Ok(Self { base_url, bootstrap, secrets, app, gateway, emulator, stop, served, workers, demo, _lock: lock })
    }

    /// Waits for running requests, then stops.
    pub async fn stop(mut self) {
        drop(self.stop);
        if timeout(STOP_TIMEOUT, self.served).await.is_err() {
            tracing::warn!(timeout = ?STOP_TIMEOUT, "requests still running at stop");
        }
        self.workers.shutdown().await;
        drop((self.app, self.gateway));
        timeout(STOP_TIMEOUT, self.emulator.stop()).await.ok();
    }
}

async fn answer(
    State(gateway): State<Arc<Gateway>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    gateway.answer(peer, request).await
}

/// Creates the directory with access for its owner only, and locks it. Two runners over one store
/// would each rely on their own cache.
pub(crate) fn lock(folder: &Path) -> Result<File> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("--data-dir: cannot create {}", folder.display()))?;
    let path = folder.join("lock");
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("--data-dir: cannot open the lock file {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("{} is in use by another runner: stop it, or choose another --data-dir", folder.display())
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("--data-dir: cannot lock {}", path.display()))
        }
    }
}
